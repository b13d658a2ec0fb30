"""The prefill graph for CPUs: int8 products, and nothing that only an answer needs.

Prefill is bound by arithmetic, decoding by memory: one needs weights that integer instructions multiply directly, the
other the fewest bytes. `MatMulNBits` unpacks its 4 bits for every few rows and sums in groups; int8 products of whole
rows are more than twice as fast on CPUs with VNNI, and a whole prompt about 1.6 times as fast (`benchmarks/peers.py`),
at the price of storing the layers' weights a second time, a byte each.

All tokens of a prompt but the last go through this graph; the last one is a step of `decoder.onnx`, which computes the
logits. So there is no head here, and nothing after the last layer's attention. Both use the same cache.

Weights are int8 with one scale per output channel. Activations are quantized dynamically to uint8 with one scale per
token, so a token's keys and values depend only on earlier tokens, however the prompt is split into calls. The norms'
outputs and the down projection's inputs are smoothed beforehand (`calibrate/prefill.py`).

Inputs and outputs are those of `decoder.onnx` (`decoder.py`), without logits and token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vl3edge.models.config import TextConfig
from vl3edge.runtime.bundle.file_names import PREFILL_GRAPH

from ..calibrate.smoothquant import SmoothedSource, Smoothing
from ..onnx_writer import GraphWriter
from ..tensor_source import TensorSource, pad_heads
from .attention import MS, PromptAttention
from .decoder import PREFIX, DecoderBuilder
from .vision_int8 import LIMIT, MIDDLE, SMALLEST_SCALE, quantize_weight


class PrefillBuilder(DecoderBuilder):
    """Emits the graph of one TextConfig. source: the decoder's weights, not yet smoothed by `smoothing`."""

    def __init__(self, graph: GraphWriter, config: TextConfig, source: TensorSource, smoothing: Smoothing) -> None:
        super().__init__(graph, config, SmoothedSource(source, smoothing), "fp32")
        self._smoothing = smoothing

    def layers(self) -> Iterator[int]:
        hidden, update = self.inputs(), ""
        attention = PromptAttention(self.graph, self.config, self.cache_head_dim, *self.rotary_tables())
        self._emit_constants()
        last = self.config.num_layers - 1
        for layer in range(last + 1):
            attended, hidden = self.attended(hidden, update, layer, attention)
            if layer < last:
                update, hidden = self.transformed(hidden, attended, layer)
            yield layer
        self.outputs()

    def float_product(self, x: str, name: str, parts: list[str]) -> str:
        if parts[0].endswith("o_proj"):
            factors = self._smoothing.read[f"{parts[0]}.weight"]
            x = self.graph.node("Mul", [x, self.graph.weight(f"{name}.evening", 1 / factors)], f"{name}.even")
        rows, scale = self._quantized(x)
        return self._scaled(self._product(rows, name, parts), scale, name)

    def mlp(self, x: str, layer: int) -> str:
        stem, name = f"{PREFIX}layers.{layer}.mlp.", f"layers.{layer}"
        rows, scale = self._quantized(x)
        gate = self._scaled(self._product(rows, f"{name}.gate", [stem + "gate_proj"]), scale, f"{name}.gate")
        up = self._product(rows, f"{name}.up", [stem + "up_proj"])
        active = self.graph.node("QuickGelu", [gate], f"{name}.silu", domain=MS, alpha=1.0)
        # A token's scale does not affect its rounding, so that of `up` can be applied at the end.
        gated = self.graph.node("Mul", [active, up], f"{name}.gated")
        rows, gated_scale = self._quantized(gated)
        both = self.graph.node("Mul", [scale, gated_scale], f"{name}.down.scale.both")
        return self._scaled(self._product(rows, f"{name}.down", [stem + "down_proj"]), both, f"{name}.down")

    def _product(self, rows: str, name: str, parts: list[str]) -> str:
        """uint8 rows · int8 Wᵀ of the linears `parts` side by side, before the scales of the rows."""
        weight = np.concatenate([self.source.array(f"{part}.weight") for part in parts])
        if parts[0].endswith("q_proj"):
            weight = pad_heads(weight, self.config.head_dim)
        codes, scales = quantize_weight(weight.T)
        inputs = [rows, self.graph.weight(f"{name}.codes", codes), "one"]
        inputs += [self.graph.weight(f"{name}.scales", scales), "middle"]
        return str(self.graph.node("MatMulIntegerToFloat", inputs, f"{name}.integers", domain=MS))

    def _scaled(self, product: str, scale: str, name: str) -> str:
        return str(self.graph.node("Mul", [product, scale], f"{name}.product"))

    def _quantized(self, x: str) -> tuple[str, str]:
        """x [B, S, in] as uint8 around 128, and the scale [B, S, 1] of each token."""
        node = self.graph.node
        lowest = node("Neg", [node("ReduceMin", [x, "last_axis"], f"{x}.min")], f"{x}.lowest")
        largest = node("Max", [node("ReduceMax", [x, "last_axis"], f"{x}.max"), lowest], f"{x}.largest")
        scale = node("Max", [node("Mul", [largest, "share"], f"{x}.share"), "smallest"], f"{x}.scale")
        scaled = node("Div", [x, scale], f"{x}.scaled")
        return node("QuantizeLinear", [scaled, "one", "middle"], f"{x}.rows"), scale

    def _emit_constants(self) -> None:
        for name, value in (
            ("one", np.float32(1)),
            ("share", np.float32(1 / LIMIT)),
            ("smallest", np.float32(SMALLEST_SCALE)),
            ("middle", np.uint8(MIDDLE)),
            ("last_axis", np.array([-1], np.int64)),
        ):
            self.graph.weight(name, np.asarray(value))


def write_prefill(
    config: TextConfig,
    source: TensorSource,
    smoothing: Smoothing,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Writes the prefill graph and its data into folder; returns the files written.

    source: the decoder's float32 weights. progress: called with (layers done, in all).
    """
    with GraphWriter(folder / PREFILL_GRAPH) as graph:
        for layer in PrefillBuilder(graph, config, source, smoothing).layers():
            progress(layer + 1, config.num_layers)
        return graph.save()
