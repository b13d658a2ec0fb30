"""What goes into the decoder's products while it reads a prompt: the float32 layers watched on calibration sequences.

From that come factors that even out loud channels (`smoothing.py` says how, arXiv 2211.10438): the norms' gains take
those of the products that read them, the up projection's rows those of the down projection. What attention makes cannot
be scaled where it is made, values being in the cache that steps read, too; the graph does that in a product of its own.
Factors are powers of two, so in float32 the decoder stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
import torch
from torch import nn

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.decoder import DecoderLayer, rotary
from vl3edge.models.tensors import DECODER
from vl3edge.quant.calibration import CalibrationSet
from vl3edge.quant.dequantized import DequantizedCheckpoint
from vl3edge.quant.sequences import CalibrationSequence

from .check import load_session
from .decoder import pad_heads, padded_head_dim
from .smoothing import Smoothing, factors

CALIBRATION_TOKENS = 4096
"""Enough to find loud channels in: they are the same whatever is read."""
_HELD_OUT_TOKENS = 2048


@dataclass(frozen=True, eq=False)
class HeldOutPrompt:
    """Embeddings float32 [S, hidden], and the keys and values float32 [layers, 2, kv_heads, S, head_dim] of them."""

    embeddings: np.ndarray
    cache: np.ndarray


@dataclass(frozen=True, eq=False)
class PrefillCalibration:
    """How the decoder is made more even. num_tokens: that were looked at, without those held out."""

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

    progress: called with (layers done, in all).
    """
    text = checkpoint.config.text
    watched, held_out = _some(data.calibration, CALIBRATION_TOKENS), _some(data.held_out, _HELD_OUT_TOKENS)
    hidden = [torch.from_numpy(sequence) for sequence in (*watched, *held_out)]
    turn = rotary(text, 0, max(map(len, hidden)))
    made: dict[str, np.ndarray] = {}
    read: dict[str, np.ndarray] = {}
    caches: list[list[np.ndarray]] = [[] for _ in held_out]
    for index in range(text.num_layers):
        layer = DecoderLayer.from_checkpoint(cast(Checkpoint, checkpoint), index)
        largest: dict[str, np.ndarray] = {}
        hooks = list(_watch(layer, largest))
        for number, states in enumerate(hidden):
            if number == len(watched):
                for hook in hooks:
                    hook.remove()
            output, (key, value) = layer(states[None], (turn[0][: len(states)], turn[1][: len(states)]))
            hidden[number] = output[0]
            if number >= len(watched):
                caches[number - len(watched)].append(torch.stack((key[0], value[0])).numpy())
        _even_out(layer, f"{DECODER}layers.{index}.", largest, made, read)
        checkpoint.release()
        progress(index + 1, text.num_layers)
    prompts = (HeldOutPrompt(x, np.stack(cache)) for x, cache in zip(held_out, caches, strict=True))
    return PrefillCalibration(Smoothing(made, read), sum(map(len, watched)), tuple(prompts))


def relative_error(path: Path, held_out: Sequence[HeldOutPrompt]) -> float:
    """Root mean square difference of the graph's keys and values from those held out, over their root mean square."""
    session = load_session(path, prepack=True)
    squared = total = 0.0
    for prompt in held_out:
        difference = prefilled(session, prompt.embeddings, prompt.cache.shape[-1]) - prompt.cache
        squared += float(np.square(difference, dtype=np.float64).sum())
        total += float(np.square(prompt.cache, dtype=np.float64).sum())
    return float(np.sqrt(squared / total)) if total else 0.0


def prefilled(session: onnxruntime.InferenceSession, embeddings: np.ndarray, head_dim: int) -> np.ndarray:
    """Keys and values float32 [layers, 2, kv_heads, S, head_dim] that a graph makes of embeddings [S, hidden].

    head_dim: the model's; the cache's may be wider.
    """
    tokens = len(embeddings)
    feeds = {"inputs_embeds": embeddings[None], "seqlens_k": np.array([tokens - 1], np.int32)}
    feeds["total_sequence_length"] = np.array(tokens, np.int32)
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            feeds[value.name] = np.zeros((1, value.shape[1], tokens, value.shape[3]), np.float32)
    names = [value.name for value in session.get_outputs() if value.name.startswith("present.")]
    cache = np.concatenate(session.run(names, feeds)).reshape(len(names) // 2, 2, -1, tokens, padded_head_dim(head_dim))
    real: np.ndarray = cache[..., pad_heads(np.ones(head_dim, np.bool_), head_dim)]
    return real


def _some(sequences: Sequence[CalibrationSequence], tokens: int) -> list[np.ndarray]:
    """The embeddings of the first sequences that have so many tokens together; at least one."""
    chosen: list[np.ndarray] = []
    for sequence in sequences:
        chosen.append(sequence.embeddings)
        tokens -= len(sequence.embeddings)
        if tokens <= 0:
            break
    return chosen


def _watch(layer: DecoderLayer, largest: dict[str, np.ndarray]) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Fills `largest` by the names of a layer's linears, absolute input of each channel, as the layer runs."""

    def watching(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found = inputs[0].abs().flatten(0, -2).amax(dim=0).numpy()
            largest[name] = np.maximum(largest[name], found) if name in largest else found

        return look

    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        yield layer.get_submodule(name).register_forward_pre_hook(watching(name))


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
