"""The part of `verify` for the int8 prefill graph: its weights, and the keys and values it computes.

Weights are compared with the checkpoint's in steps of their own grid, layer by layer. The smoothing factors
(`calibrate/prefill.py`) need not be known: a product computes its weight times the gain of the norm before it, and the
factors of the up projection's rows, powers of two, follow from the rows' size. Keys and values show that the graph
computes correctly with these weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import onnx
import torch

from vl3edge.models.config import TextConfig
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.bundle.bundle import Bundle
from vl3edge.runtime.bundle.file_names import PREFILL_GRAPH

from ..calibrate.prefill import cache_errors, prefilled
from ..graphs.decoder import PREFIX
from ..tensor_source import pad_heads
from .graph_weights import GraphTensors
from .report import StageResult

LARGEST_STEPS = 0.6  # root mean square, in steps of the grid; rounding makes 0.29
LARGEST_ERROR = 0.5  # of the keys or values of any layer, relative to their spread, whatever the export measured
_SMALLEST_ERROR = 0.02  # the least that the export's error counts for, as it was measured on other prompts
_FROM = f"{PREFILL_GRAPH} belongs to another checkpoint, or to the one that this one was quantized from"


class Source(Protocol):
    """A checkpoint's tensors by canonical name."""

    def tensor(self, name: str) -> torch.Tensor: ...


def verify_prompt_graph(
    bundle: Bundle,
    backend: Backend,
    config: TextConfig,
    original: Source,
    read: Sequence[torch.Tensor],
    caches: Sequence[Sequence[np.ndarray]],
) -> list[StageResult]:
    """The stages of its weights, and of its keys and values.

    read: inputs float32 [S, hidden]. caches: for each, the reference's keys and values of every layer, float32 [2,
        kv_heads, S, head_dim].
    """
    path = bundle.path(PREFILL_GRAPH)
    tensors = GraphTensors(path, onnx.load(path, load_external_data=False).graph)
    steps = dict(_steps(tensors, original, config))
    name, largest = max(steps.items(), key=lambda item: np.nan_to_num(item[1], nan=np.inf))
    passed = largest <= LARGEST_STEPS
    detail = "" if passed else f"{name} is {largest:.3g} steps away: {_FROM}"
    compared = f"{len(steps)} products of {PREFILL_GRAPH}, root mean square in steps of the grid"
    mean = float(np.mean(list(steps.values())))
    stages = [StageResult("prompt weights", compared, largest, mean, f"{LARGEST_STEPS} steps", passed, detail)]

    session = backend.session(path)
    ours = [prefilled(session, inputs.numpy(), config.head_dim) for inputs in read]
    errors = cache_errors(ours, [np.stack(cache) for cache in caches])
    layer, kind = np.unravel_index(int(np.nan_to_num(errors, nan=np.inf).argmax()), errors.shape)
    largest = float(errors[layer, kind])
    allowed = min(LARGEST_ERROR, 3 * max(bundle.manifest.prefill_quantization.relative_error, _SMALLEST_ERROR))
    passed = largest <= allowed
    which = f"{('keys', 'values')[kind]} of layer {layer}"
    detail = "" if passed else f"the {which} differ most: {PREFILL_GRAPH} is wrong, or runs incorrectly here"
    compared = f"keys and values of {sum(map(len, read))} tokens, relative to their spread; the worst layer"
    return [*stages, StageResult("prompts", compared, largest, float(errors.mean()), f"{allowed:.2g}", passed, detail)]


def _steps(tensors: GraphTensors, original: Source, config: TextConfig) -> Iterator[tuple[str, float]]:
    """Each product by its name in the graph, and its distance from the checkpoint's, in steps of its grid."""

    def wanted(*names: str) -> np.ndarray:
        return np.concatenate([original.tensor(f"{name}.weight").float().numpy() for name in names])

    def off(
        stored: tuple[np.ndarray, np.ndarray],
        weight: np.ndarray,
        gains: tuple[np.ndarray, np.ndarray],
        rows: np.ndarray | None = None,
    ) -> float:
        """stored: codes and scales. gains: [in], of the graph's and the checkpoint's norms. rows: [out], factors of the
        graph's outputs."""
        codes, scales = stored
        step = scales[:, None] * np.abs(gains[0]) * (1 if rows is None else rows[:, None])
        difference = codes * np.sign(gains[0]) * step - weight * gains[1]
        step = np.maximum(step, np.finfo(np.float32).tiny)  # where a gain is zero, nothing may differ
        return float(np.sqrt(np.square(difference / step).mean(dtype=np.float64)))

    for index in range(config.num_layers):
        stem, name = f"{PREFIX}layers.{index}.", f"layers.{index}"
        rows = partial(_rows, tensors, config, name)
        norm = f"{stem}input_layernorm"
        gains = tensors.array(f"{norm}.weight"), wanted(norm)
        yield f"{name}.qkv", off(rows("qkv"), wanted(*(f"{stem}self_attn.{k}_proj" for k in "qkv")), gains)
        if index == config.num_layers - 1:
            return
        weight = wanted(f"{stem}self_attn.o_proj")
        gains = tensors.array(f"{name}.output.evening"), np.ones(weight.shape[1], np.float32)
        yield f"{name}.output", off(rows("output"), weight, gains)
        norm = f"{stem}post_attention_layernorm"
        gains = tensors.array(f"{norm}.weight"), wanted(norm)
        yield f"{name}.gate", off(rows("gate"), wanted(f"{stem}mlp.gate_proj"), gains)
        weight = wanted(f"{stem}mlp.up_proj")
        codes, scales = rows("up")
        sizes = (np.linalg.norm(each, axis=1) for each in (weight * gains[1], codes * scales[:, None] * gains[0]))
        ours, theirs = reversed([np.maximum(size, np.finfo(np.float32).tiny) for size in sizes])
        factors = np.exp2(np.rint(np.log2(theirs / ours))).astype(np.float32)
        yield f"{name}.up", off((codes, scales), weight, gains, factors)
        weight = wanted(f"{stem}mlp.down_proj")
        yield f"{name}.down", off(rows("down"), weight, (1 / factors, np.ones_like(factors)))


def _rows(tensors: GraphTensors, config: TextConfig, layer: str, product: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes float32 [out, in] and scales float32 [out] of a product, heads unpadded as in the checkpoint."""
    stem = f"{layer}.{product}"
    codes, scales = tensors.array(f"{stem}.codes").T.astype(np.float32), tensors.array(f"{stem}.scales")
    if product != "qkv":
        return codes, scales
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    real = pad_heads(np.ones(width, np.bool_), config.head_dim)
    return codes[real], scales[real]
