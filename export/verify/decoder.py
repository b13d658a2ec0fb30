"""The decoder's part of `verify`: its weights, logits and tokens, and the whole path at the end.

The bundle answers greedily from the reference's inputs, and the reference reads the bundle's answer in one pass, layer
by layer. If both prefer the same token at every position, the reference's own greedy answer is the same, by induction:
up to each position both have read the same tokens. So a model of any size costs one pass over its layers.

A quantized decoder is checked in three ways. Are its weights the checkpoint's, within the steps of the grid? Does the
graph compute what these weights imply, without rounding activations? And as it runs, how far are its predictions (in
nats)?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.divergence import kl_divergence
from vl3edge.models.tensor_names import EMBEDDINGS
from vl3edge.quant.dequantized import DequantizedCheckpoint
from vl3edge.quant.gptq_reader import GptqLinears
from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.bundle.bundle import Bundle
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH, PREFILL_GRAPH
from vl3edge.runtime.bundle.head_tokens import HeadTokens
from vl3edge.runtime.bundle.specs import TextSpec
from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph, load_decoder_graph
from vl3edge.runtime.errors import Vl3EdgeError
from vl3edge.runtime.prompt.tokenizer import Tokenizer

from ..decoder_parity import reference_logits
from ..graphs.decoder_int4 import HEAD
from ..parity import load_session
from ..progress import Progress
from .clips import VerifyClip
from .graph_weights import GraphLinears
from .prefill import verify_prompt_graph
from .report import LARGEST_STEPS, Bound, StageResult, compare

LARGEST_KL = 0.5  # nats per token, from rounding activations
Source = Checkpoint | DequantizedCheckpoint


@dataclass(frozen=True)
class GreedyAnswer:
    """The bundle's answer to the reference's inputs: ids, and the logits float32 [n, rows of the head] behind them."""

    ids: tuple[int, ...]
    logits: np.ndarray


def verify_decoder(
    bundle: Bundle,
    backend: Backend,
    checkpoint: Checkpoint,
    clips: Sequence[VerifyClip],
    tokens: Sequence[np.ndarray],
    count: int,
    bound: Bound,
    progress: Progress,
) -> tuple[list[GreedyAnswer], list[StageResult]]:
    """Weights, logits and tokens; and the bundle's answers of at most `count` tokens to the reference's inputs."""
    original: Source = checkpoint
    if checkpoint.config.quantization is not None:
        original = DequantizedCheckpoint(checkpoint, GptqLinears(checkpoint))
    spec, eos = bundle.manifest.text, bundle.manifest.tokens.eos_ids
    inputs = [_inputs(checkpoint, clip, visual) for clip, visual in zip(clips, tokens, strict=True)]
    embeddings = checkpoint.tensor(EMBEDDINGS)
    head = HeadTokens.of(bundle)
    said = np.arange(spec.vocab_size) if head is None else head.ids
    decoder = Decoder(load_decoder_graph(backend, bundle), spec)
    answers = [_greedy(decoder, prompt, embeddings, count, eos, said) for prompt in inputs]
    del decoder
    read = [_with_answer(prompt, answer, embeddings) for prompt, answer in zip(inputs, answers, strict=True)]
    lengths = [len(answer.ids) for answer in answers]

    ours = [answer.logits for answer in answers]
    prompts = PREFILL_GRAPH in bundle.manifest.files and not backend.decodes_on_gpu
    caches: list[list[np.ndarray]] = [[] for _ in read]
    what = partial(progress, "reference decoder")
    whole = reference_logits(original, read, lengths, what, caches=caches if prompts else None)
    reference = [logits[:, said] for logits in whole]
    graph = GraphLinears(bundle.path(DECODER_GRAPH), checkpoint.config.text)
    if not graph.names and not prompts:
        checkpoint.release()
        stages = [_logits(ours, reference, bound)]
        return answers, [*stages, _tokens(answers, reference, said, bound)]

    stages, run = [], ours
    if prompts:
        stages += verify_prompt_graph(bundle, backend, checkpoint.config.text, original, read, caches)
        run = _alone(bundle, backend, read, lengths)
    if graph.names:
        stages.append(_weights(graph, original, said))
        checkpoint.release()
        what = partial(progress, "reference decoder with the bundle's weights")
        meant = reference_logits(DequantizedCheckpoint(checkpoint, graph), read, lengths, what)
        meant = [logits if HEAD in graph.names else logits[:, said] for logits in meant]  # such a head has these alone
        stages += _quantized_logits(bundle, spec, read, lengths, run, meant, bound)
    else:
        stages.append(_logits(run, reference, bound))
    loss = _kl(reference, ours)
    words = f"predictions of {len(loss)} tokens against the checkpoint's, KL in nats"
    stages.append(StageResult("quantization", words, float(loss.max()), float(loss.mean()), "", None))
    return answers, [*stages, _tokens(answers, reference, said, None)]


def _alone(bundle: Bundle, backend: Backend, read: Sequence[torch.Tensor], lengths: Sequence[int]) -> list[np.ndarray]:
    """Logits of decoder.onnx without the prefill graph, which is judged separately."""
    decoder = Decoder(DecoderGraph(backend.session(bundle.path(DECODER_GRAPH))), bundle.manifest.text)
    return [_teacher_forced(decoder, inputs.numpy(), count) for inputs, count in zip(read, lengths, strict=True)]


def _logits(ours: Sequence[np.ndarray], reference: Sequence[np.ndarray], bound: Bound) -> StageResult:
    compared = f"logits of {sum(map(len, ours))} tokens"
    hint = f"{DECODER_GRAPH} is a different decoder, or runs incorrectly on this backend"
    return compare("logits", compared, ours, reference, bound, hint)


def _inputs(checkpoint: Checkpoint, clip: VerifyClip, visual: np.ndarray) -> torch.Tensor:
    """Decoder inputs float32 [S, hidden] of a prompt: rows of the checkpoint's table, and visual tokens."""
    ids = torch.tensor(clip.prompt)
    rows = checkpoint.tensor(EMBEDDINGS)[ids].float()
    config = checkpoint.config
    rows[ids == (config.image_token_id if clip.kind == "image" else config.video_token_id)] = torch.from_numpy(visual)
    return rows


def _greedy(
    decoder: Decoder,
    prompt: torch.Tensor,
    embeddings: torch.Tensor,
    count: int,
    eos: tuple[int, ...],
    said: np.ndarray,
) -> GreedyAnswer:
    """The decoder's answer, fed with the checkpoint's own rows, up to its end or `count` tokens.

    said: int64 [n], the tokens whose logits count.
    """
    decoder.rewind(0)
    decoder.prefill(prompt.numpy())
    ids, logits = [decoder.token], [decoder.logits[0][said]]
    while len(ids) < count and ids[-1] not in eos:
        decoder.step(embeddings[ids[-1:]].float().numpy())
        ids.append(decoder.token)
        logits.append(decoder.logits[0][said])
    return GreedyAnswer(tuple(ids), np.stack(logits))


def _with_answer(prompt: torch.Tensor, answer: GreedyAnswer, embeddings: torch.Tensor) -> torch.Tensor:
    """The tokens read when the last token of the answer is chosen."""
    return torch.cat([prompt, embeddings[list(answer.ids[:-1])].float()])


def _weights(graph: GraphLinears, original: Source, said: np.ndarray) -> StageResult:
    """Each quantized layer against the checkpoint's, in steps of its grid. said: int64 [n], the tokens of the head."""
    worst, worst_name, total = 0.0, "", 0.0
    for name in graph.names:
        layer = graph.linear(name)
        weight = original.tensor(f"{name}.weight").float().numpy()
        difference = (weight[said] if name == HEAD else weight) - layer.dequantized()
        if layer.order is not None:
            difference = difference[:, layer.order]
        steps = np.abs(layer.scales.astype(np.float32)) + np.finfo(np.float32).tiny
        error = float(np.sqrt(((difference.reshape(*steps.shape, -1) / steps[..., None]) ** 2).mean()))
        total += error
        if not error <= worst:
            worst, worst_name = error, name
    passed = worst <= LARGEST_STEPS
    detail = "" if passed else f"{worst_name} is {worst:.3g} steps away: it is not the checkpoint's"
    compared = f"{len(graph.names)} quantized layers, root mean square in steps of the grid"
    return StageResult("weights", compared, worst, total / len(graph.names), f"{LARGEST_STEPS} steps", passed, detail)


def _quantized_logits(
    bundle: Bundle,
    spec: TextSpec,
    read: Sequence[torch.Tensor],
    lengths: Sequence[int],
    ours: Sequence[np.ndarray],
    meant: Sequence[np.ndarray],
    bound: Bound,
) -> list[StageResult]:
    """The graph without rounding of activations, which is nearly exact; then the graph as it runs."""
    decoder = Decoder(DecoderGraph(load_session(bundle.path("decoder.onnx"))), spec)
    exact = [_teacher_forced(decoder, inputs.numpy(), count) for inputs, count in zip(read, lengths, strict=True)]
    del decoder
    compared = f"logits of {sum(lengths)} tokens, against the torch layers with the bundle's own weights"
    hint = "decoder.onnx does not match its quantized weights, or its norms, biases or sizes differ"
    stages = [compare("logits", compared, exact, meant, bound, hint)]
    loss = _kl(meant, ours)
    passed = bool(loss.mean() <= LARGEST_KL)
    words = f"predictions of {len(loss)} tokens as it runs, activations rounded or not, KL in nats"
    detail = "" if passed else "results are far from what the weights imply: check this backend's int4 kernel"
    allowed = f"{LARGEST_KL} in the mean"
    return [
        *stages,
        StageResult("logits as run", words, float(loss.max()), float(loss.mean()), allowed, passed, detail),
    ]


def _teacher_forced(decoder: Decoder, inputs: np.ndarray, count: int) -> np.ndarray:
    """Logits [count, vocab] of the last positions of inputs [S, hidden]."""
    decoder.rewind(0)
    decoder.prefill(inputs[: len(inputs) - count + 1])
    logits = [decoder.logits[0].copy()]
    for row in inputs[len(inputs) - count + 1 :]:
        decoder.step(row[None])
        logits.append(decoder.logits[0].copy())
    return np.stack(logits)


def _kl(reference: Sequence[np.ndarray], ours: Sequence[np.ndarray]) -> np.ndarray:
    """KL(reference ‖ ours) of every position, in nats: float64 [positions]."""
    p, q = (torch.from_numpy(np.concatenate(list(part))).double().log_softmax(-1) for part in (reference, ours))
    loss: np.ndarray = kl_divergence(p, q).numpy()
    return loss


def _tokens(
    answers: Sequence[GreedyAnswer], reference: Sequence[np.ndarray], said: np.ndarray, bound: Bound | None
) -> StageResult:
    """Positions where the reference prefers another token; without a bound that is no failure.

    said: int64 [n], the tokens that the logits are of. Two tokens closer than the logits' bound are both accepted.
    """
    count = sum(len(answer.ids) for answer in answers)
    first, gap, differ, close = "", 0.0, 0, True
    for number, (answer, logits) in enumerate(zip(answers, reference, strict=True), 1):
        for position, row in enumerate(np.searchsorted(said, answer.ids)):
            margin = float(logits[position].max() - logits[position][row])
            if margin <= 0:
                continue
            differ += 1
            gap = max(gap, margin)
            first = first or f"first at token {position + 1} of clip {number}"
            close = close and bound is not None and margin <= 2 * bound.largest * float(np.abs(logits).max())
    compared = f"{count} greedy tokens, {count - differ} as the reference chooses"
    words = f"{first}, where the reference's best leads by at most {gap:.3g}" if differ else ""
    if bound is None:
        return StageResult("tokens", compared, None, None, "", None, words)
    return StageResult("tokens", compared, None, None, "equal except for ties", close, words)


def verify_whole_path(
    bundle: Bundle,
    backend: Backend,
    clips: Sequence[VerifyClip],
    tokens: Sequence[np.ndarray],
    answers: Sequence[GreedyAnswer],
    count: int,
    bound: Bound,
) -> list[StageResult]:
    """The runtime on its own, from full-size frames to an answer: differences as they add up."""
    name, compared = "whole path", "visual tokens and answers of the runtime alone"
    try:
        model = VideoLlama3(bundle, backend)
        plans = [SamplingPlan(max_frames=len(clip.frames)) for clip in clips]
        encoded = [model.encode(clip.source, plan, kind=clip.kind) for clip, plan in zip(clips, plans, strict=True)]
        visual = compare(
            "whole path, vision",
            f"visual tokens from full-size frames, of {len(clips)} clips",
            [clip.visual.tokens for clip in encoded],
            tokens,
            Bound(4 * bound.largest, 4 * bound.mean),
            "no single stage differs that much",
        )
        tokenizer = Tokenizer.of(bundle)
        differing = []
        greedy = GenerationConfig(max_new_tokens=count, temperature=0.0, repetition_penalty=1.0)
        for clip, media, answer in zip(clips, encoded, answers, strict=True):
            text = model.ask(media, clip.question, greedy).text
            if text != (meant := tokenizer.decode(list(answer.ids))):
                differing.append(f"{clip.name}: {text!r}, stage by stage {meant!r}")
    except Vl3EdgeError as e:
        return [StageResult(name, compared, None, None, "runs", False, str(e))]
    words = f"answers of {len(clips)} clips, the same as stage by stage: {len(clips) - len(differing)}"
    return [visual, StageResult("whole path, answers", words, None, None, "", None, "; ".join(differing))]
