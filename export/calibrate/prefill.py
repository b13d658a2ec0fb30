"""Observes the inputs of the decoder's products during prefill, in the float32 layers on calibration sequences.

They give the factors that smooth outlier channels (see `smoothquant.py`, arXiv 2211.10438): the norms' gains absorb
those of the products that read them, the up projection's rows those of the down projection. Attention output cannot be
scaled at its source, because steps read the cached values too; the graph scales it in a separate product. Factors are
powers of two, so in float32 the decoder does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.decoder import DecoderLayer, rotary
from vl3edge.models.tensor_names import DECODER
from vl3edge.quant.calibration import CalibrationSet
from vl3edge.quant.dequantized import DequantizedCheckpoint
from vl3edge.quant.sequences import CalibrationSequence
from vl3edge.runtime.backends.select import select_backend

from ..errors import ExportError
from ..tensor_source import pad_heads, padded_head_dim
from .smoothquant import Smoothing, factors, watch_inputs

CALIBRATION_TOKENS = 4096
"""Enough to find the outlier channels, which are the same for any input."""
_WATCHED = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")  # one for each input of a layer


@dataclass(frozen=True, eq=False)
class HeldOutPrompt:
    """Embeddings float32 [S, hidden], and the keys and values float32 [layers, 2, kv_heads, S, head_dim] of them."""

    embeddings: np.ndarray
    cache: np.ndarray


@dataclass(frozen=True, eq=False)
class PrefillCalibration:
    """How the decoder is smoothed. num_tokens: tokens observed, without the held-out ones."""

    smoothing: Smoothing
    num_tokens: int
    held_out: tuple[HeldOutPrompt, ...]


@torch.inference_mode()
def calibrate_prefill(
    checkpoint: Checkpoint | DequantizedCheckpoint,
    data: CalibrationSet,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PrefillCalibration:
    """Runs the float32 layers, one at a time, on about 4,096 tokens and 2,048 held out.

    progress: called with (layers done, in all). Raises ExportError for a layer that produces NaN or infinity.
    """
    text = checkpoint.config.text
    watched, held_out = _some(data.calibration, CALIBRATION_TOKENS), _some(data.held_out, CALIBRATION_TOKENS // 2)
    hidden = [torch.from_numpy(sequence) for sequence in (*watched, *held_out)]
    cos_sin = rotary(text, 0, max(map(len, hidden)))
    made: dict[str, np.ndarray] = {}
    read: dict[str, np.ndarray] = {}
    caches: list[list[np.ndarray]] = [[] for _ in held_out]
    for index in range(text.num_layers):
        layer = DecoderLayer.from_checkpoint(cast(Checkpoint, checkpoint), index)
        largest: dict[str, np.ndarray] = {}
        hooks = watch_inputs(((name, layer.get_submodule(name)) for name in _WATCHED), largest)
        for number, states in enumerate(hidden):
            if number == len(watched):
                for hook in hooks:
                    hook.remove()
            output, (key, value) = layer(states[None], (cos_sin[0][: len(states)], cos_sin[1][: len(states)]))
            hidden[number] = output[0]
            if number >= len(watched):
                caches[number - len(watched)].append(torch.stack((key[0], value[0])).numpy())
        if not all(bool(torch.isfinite(states).all()) for states in hidden):
            raise ExportError(f"layer {index} of the decoder produces NaN or infinity; the checkpoint is damaged")
        _even_out(layer, f"{DECODER}layers.{index}.", largest, made, read)
        checkpoint.release()
        progress(index + 1, text.num_layers)
    prompts = (HeldOutPrompt(x, np.stack(cache)) for x, cache in zip(held_out, caches, strict=True))
    return PrefillCalibration(Smoothing(made, read), sum(map(len, watched)), tuple(prompts))


def cache_error(path: Path, held_out: Sequence[HeldOutPrompt]) -> float:
    """The largest of the `cache_errors` of the graph at `path`."""
    session = select_backend("cpu").session(path)
    ours = [prefilled(session, prompt.embeddings, prompt.cache.shape[-1]) for prompt in held_out]
    return float(cache_errors(ours, [prompt.cache for prompt in held_out]).max())


def cache_errors(ours: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> np.ndarray:
    """Errors of keys and values, float64 [layers, 2]: root mean square, relative to that of their spread over tokens.

    Each float32 [layers, 2, kv_heads, S, head_dim]. A channel's mean does not count: keys have biases much larger than
    the differences between tokens.
    """
    squared = spread = np.zeros(reference[0].shape[:2])
    for x, y in zip(ours, reference, strict=True):
        squared = squared + np.square(x - y, dtype=np.float64).sum(axis=(2, 3, 4))
        spread = spread + np.square(y - y.mean(axis=3, keepdims=True), dtype=np.float64).sum(axis=(2, 3, 4))
    return np.asarray(np.sqrt(squared / np.maximum(spread, np.finfo(np.float32).tiny)))


def prefilled(session: onnxruntime.InferenceSession, embeddings: np.ndarray, head_dim: int) -> np.ndarray:
    """Keys and values float32 [layers, 2, kv_heads, S, head_dim] that a graph computes from embeddings [S, hidden].

    It runs twice, so that the second call has a past. head_dim: the model's; the cache's may be wider.
    """
    tokens = len(embeddings)
    inputs = {value.name: value.shape for value in session.get_inputs() if value.name.startswith("past_key_values.")}
    past = {name: np.zeros((1, shape[1], tokens, shape[3]), np.float32) for name, shape in inputs.items()}
    names = [name.replace("past_key_values", "present") for name in past]
    for part in np.array_split(np.arange(tokens), min(2, tokens)):
        feeds = {"inputs_embeds": embeddings[None, part], "seqlens_k": part[-1:].astype(np.int32)}
        feeds["total_sequence_length"] = np.array(part[-1] + 1, np.int32)
        past = dict(zip(past, session.run(names, feeds | past), strict=True))
    cache = np.concatenate(list(past.values())).reshape(len(past) // 2, 2, -1, tokens, padded_head_dim(head_dim))
    real: np.ndarray = cache[..., pad_heads(np.ones(head_dim, np.bool_), head_dim)]
    return real


def _some(sequences: Sequence[CalibrationSequence], tokens: int) -> list[np.ndarray]:
    """The embeddings of the first sequences, at least one, up to about this many tokens."""
    chosen: list[np.ndarray] = []
    for sequence in sequences:
        chosen.append(sequence.embeddings)
        tokens -= len(sequence.embeddings)
        if tokens <= 0:
            break
    return chosen


def _even_out(
    layer: DecoderLayer,
    stem: str,
    largest: dict[str, np.ndarray],
    made: dict[str, np.ndarray],
    read: dict[str, np.ndarray],
) -> None:
    """Adds a layer's factors, under canonical names."""
    attention = [f"self_attn.{part}_proj" for part in "qkv"]
    for maker, readers in (
        ("input_layernorm.weight", attention),
        ("", ["self_attn.o_proj"]),
        ("post_attention_layernorm.weight", ["mlp.gate_proj", "mlp.up_proj"]),
        ("mlp.up_proj.weight", ["mlp.down_proj"]),
    ):
        weights = [layer.get_parameter(f"{name}.weight").abs().amax(dim=0).numpy() for name in readers]
        found = factors(largest[readers[0]], np.max(weights, axis=0))
        if maker:
            made[stem + maker] = found
        read |= {f"{stem}{name}.weight": found for name in readers}
