"""The vision encoder and the projector as ONNX files for TensorRT, built operator by operator.

They differ from `vision.py`'s graphs, which are for ONNX Runtime, in what a compiler with fixed profiles needs:

- The encoder takes patches and their positions instead of frames: `patches` uint8 [F, N, patch · patch · 3], a patch
  reading (row, column, channel), and `positions` int32 [N, 2], row and column of each -> `features` float32 [F, N, C].
  A profile is a box of sizes. In frames × patches the largest box *is* the memory bound; in frames × height × width it
  would need the widest image's width and the tallest one's height, many times the bound.
- The projector takes `features` float32 [P, C], all patches of a call, and `blocks` int32 [K, B], the patches that are
  averaged into each kept token -> `tokens` float32 [K, D]. One graph serves every merge size.
- Attention is plain matrix products and a softmax, the query scaled beforehand: the form TensorRT fuses. Heads can be
padded with zeros to a multiple of 16 (72 -> 80), which changes no product; TensorRT for RTX fuses 72 directly.
- Opset 17 without newer operators, which the parsers of TensorRT 10.3 and later all support.

In a bundle both share the bytes of `vision.onnx` and of a projector's data. The compiler casts float32 weights: a plan
stores them in the type it computes in.

Types are part of the graph (TensorRT builds it "strongly typed"). With `fp16`, matrix products are float16; the
residual stream, LayerNorm, softmax, rotation, GELU and the averages stay float32 (see ARCHITECTURE.md for the drift
measured). Without, everything is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from onnx import TensorProto

from vl3edge.models.config import ModelConfig, VisionConfig
from vl3edge.models.tensor_names import PROJECTOR, VISION
from vl3edge.runtime.bundle.plans import tensorrt_graph
from vl3edge.runtime.decode.rope import rotary_frequencies

from ..calibrate.smoothquant import SmoothedSource
from ..calibrate.vision import VisionCalibration
from ..errors import ExportError
from ..onnx_writer import GraphWriter
from ..tensor_source import TensorSource, pad_heads, padded_head_dim
from .vision_int8 import SCALES, quantize_weight
from .vision_tensorrt_int8 import Weight8, activation_steps, quantized_linear

OPSET = 17
_LARGEST_HALF = 65504.0
_SQRT_HALF, _SQRT_2_OVER_PI = 0.5**0.5, (2 / np.pi) ** 0.5


def export_tensorrt_vision(
    source: TensorSource,
    config: ModelConfig,
    folder: Path,
    fp16: bool = True,
    pad: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    calibration: VisionCalibration | None = None,
    stored: Mapping[str, TensorProto] = MappingProxyType({}),
) -> list[Path]:
    """Writes `vision.onnx` and its data, or `vision-tensorrt.onnx` alone, into `folder`; returns the files.

    pad: widen heads to a multiple of 16. progress: called with (layers written, layers in all). calibration: the inputs
        of the layers' products, which are then computed in 8 bits (`vision_tensorrt_int8.py`). stored: weights of the
        folder's other graphs (`stored_weights.py`), read from their files; not with `pad`.
    Raises ExportError for a weight written here that float16 cannot hold.
    """
    steps: dict[str, float] = {}
    if calibration is not None:
        source, steps = SmoothedSource(source, calibration.smoothing), activation_steps(calibration)
    with _writer(folder, "vision", stored) as graph:
        builder = _VisionBuilder(graph, source, fp16, config.vision, pad, steps, stored)
        builder.begin(config)
        for layer in range(config.vision.num_layers):
            builder.layer(layer)
            progress(layer + 1, config.vision.num_layers)
        builder.end()
        return graph.save()


def export_tensorrt_projector(
    source: TensorSource,
    config: ModelConfig,
    folder: Path,
    fp16: bool = True,
    stored: Mapping[str, TensorProto] = MappingProxyType({}),
) -> list[Path]:
    """Writes `projector.onnx` and its data, or `projector-tensorrt.onnx` alone, as `export_tensorrt_vision` does."""
    width = config.vision.hidden_size
    with _writer(folder, "projector", stored) as graph:
        builder = _TypedBuilder(graph, source, fp16, stored=stored)
        features = graph.input("features", TensorProto.FLOAT, ["P", width])
        blocks = graph.input("blocks", TensorProto.INT32, ["K", "B"])
        gathered = graph.node("Gather", [features, blocks], "gathered", axis=0)
        merged = graph.node("ReduceMean", [gathered], "merged", axes=[1], keepdims=0)
        hidden = builder.linear(builder.product_type(merged, "merged.cast"), f"{PROJECTOR}readout.0", "first")
        active = builder.gelu(builder.float32(hidden, "first.float32"), "gelu", tanh=False)
        tokens = builder.linear(builder.product_type(active, "gelu.cast"), f"{PROJECTOR}readout.2", "second")
        graph.node("Identity", [builder.float32(tokens, "second.float32")], "tokens")
        graph.output("tokens", TensorProto.FLOAT, ["K", config.text.hidden_size])
        return graph.save()


def _writer(folder: Path, graph: str, stored: Mapping[str, TensorProto]) -> GraphWriter:
    """With all weights in other files, the rest is small and stays in the graph."""
    if stored:
        return GraphWriter(folder / tensorrt_graph(graph), OPSET, inline_bytes=1 << 20)
    return GraphWriter(folder / f"{graph}.onnx", OPSET)


class _TypedBuilder:
    """Nodes with explicit types: float32 everywhere, and `product_type` for what goes into matrix products.

    steps: quantization steps of the inputs of 8-bit products, by name. stored: as for `export_tensorrt_vision`.
    """

    def __init__(
        self,
        graph: GraphWriter,
        source: TensorSource,
        fp16: bool,
        steps: Mapping[str, float] = MappingProxyType({}),
        stored: Mapping[str, TensorProto] = MappingProxyType({}),
    ) -> None:
        self.graph = graph
        self.source = source
        self.fp16 = fp16
        self.steps = steps
        self.stored = stored

    def product_type(self, x: str, name: str) -> str:
        """x float32 in the type of matrix products."""
        return str(self.graph.node("Cast", [x], name, to=TensorProto.FLOAT16)) if self.fp16 else x

    def float32(self, x: str, name: str) -> str:
        """x in the type of matrix products as float32."""
        return str(self.graph.node("Cast", [x], name, to=TensorProto.FLOAT)) if self.fp16 else x

    def weight(self, name: str, value: np.ndarray) -> str:
        """A weight in the type of matrix products; ExportError if float16 cannot hold it."""
        if not self.fp16:
            return self.graph.weight(name, value.astype(np.float32, copy=False))
        largest = float(np.abs(value).max(initial=0))
        if largest > _LARGEST_HALF:
            raise ExportError(f"too large for float16, in which TensorRT plans run: {name} (up to {largest:.3g})")
        return self.graph.weight(name, value.astype(np.float16))

    def operand(self, name: str, make: Callable[[], np.ndarray]) -> str:
        """A weight in the type of matrix products: the stored one, or that of `make`, written here."""
        if name not in self.stored:
            return self.weight(name, make())
        return self.as_type(name, TensorProto.FLOAT16 if self.fp16 else TensorProto.FLOAT)

    def whole(self, name: str, make: Callable[[], np.ndarray]) -> str:
        """A weight in float32, as `operand`."""
        if name not in self.stored:
            return self.graph.weight(name, make().astype(np.float32, copy=False))
        return self.as_type(name, TensorProto.FLOAT)

    def as_type(self, name: str, dtype: int) -> str:
        """A stored weight, cast if it is of another type."""
        stored = self.graph.shared(name, self.stored[name])
        if self.stored[name].data_type == dtype:
            return stored
        return str(self.graph.node("Cast", [stored], f"{name}.cast", to=dtype))

    def constant(self, name: str, value: float) -> str:
        return self.graph.weight(name, np.array(value, np.float32))

    def linear(
        self,
        x: str,
        stem: str,
        name: str,
        rows: Callable[[np.ndarray], np.ndarray] = lambda value: value,
        columns: Callable[[np.ndarray], np.ndarray] = lambda value: value,
    ) -> str:
        """x · Wᵀ + b of the tensors stem.weight [out, in] and stem.bias, in the type of matrix products.

        rows changes the outputs, columns the inputs (given and returned as the first axis).
        """

        def weight() -> np.ndarray:
            return columns(rows(self.source.array(f"{stem}.weight")).T)

        def bias() -> np.ndarray:
            return rows(self.source.array(f"{stem}.bias"))

        if stem in self.steps:
            added = self.whole(f"{stem}.bias", bias)
            return quantized_linear(
                self.graph, x, name, self._weight8(stem, weight), added, self.steps[stem], self.fp16
            )
        product = self.graph.node("MatMul", [x, self.operand(f"{stem}.weight", weight)], f"{name}.matmul")
        return str(self.graph.node("Add", [product, self.operand(f"{stem}.bias", bias)], name))

    def _weight8(self, stem: str, make: Callable[[], np.ndarray]) -> Weight8:
        """The stored codes of a weight, or those of `make`'s result, written here."""
        name, scales = f"{stem}.weight", f"{stem}.weight{SCALES}"
        if name in self.stored:
            width = self.stored[name].dims[1]
            for each in (name, scales):
                self.graph.shared(each, self.stored[each])
        else:
            codes, steps = quantize_weight(make())
            width = len(steps)
            self.graph.weight(name, codes)
            self.graph.weight(scales, steps)
        return Weight8(name, scales, self.graph.weight(f"{stem}.zeros", np.zeros(width, np.int8)))

    def layer_norm(self, x: str, stem: str, name: str, epsilon: float) -> str:
        scale, bias = (
            self.whole(f"{stem}.{leaf}", partial(self.source.array, f"{stem}.{leaf}")) for leaf in ("weight", "bias")
        )
        return str(self.graph.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=epsilon))

    def gelu(self, x: str, name: str, tanh: bool) -> str:
        """GELU of x float32, from operators that every TensorRT has: ONNX's Gelu needs opset 20."""
        graph = self.graph
        if tanh:
            squared = graph.node("Mul", [x, x], f"{name}.squared")
            cubic = graph.node("Mul", [squared, self.constant(f"{name}.cubic", 0.044715)], f"{name}.scaled")
            plus = graph.node("Add", [cubic, self.constant(f"{name}.one", 1.0)], f"{name}.plus_one")
            inner = graph.node("Mul", [plus, x], f"{name}.polynomial")
            inner = graph.node("Mul", [inner, self.constant(f"{name}.factor", _SQRT_2_OVER_PI)], f"{name}.inner")
            curve = graph.node("Tanh", [inner], f"{name}.tanh")
        else:
            inner = graph.node("Mul", [x, self.constant(f"{name}.factor", _SQRT_HALF)], f"{name}.inner")
            curve = graph.node("Erf", [inner], f"{name}.erf")
        share = graph.node("Add", [curve, self.constant(f"{name}.offset", 1.0)], f"{name}.share")
        halved = graph.node("Mul", [x, self.constant(f"{name}.half", 0.5)], f"{name}.halved")
        return str(graph.node("Mul", [halved, share], name))


class _VisionBuilder(_TypedBuilder):
    """Emits the encoder: `begin`, then `layer` for each, then `end`."""

    def __init__(
        self,
        graph: GraphWriter,
        source: TensorSource,
        fp16: bool,
        vision: VisionConfig,
        pad: bool,
        steps: Mapping[str, float],
        stored: Mapping[str, TensorProto],
    ) -> None:
        super().__init__(graph, source, fp16, steps, stored)
        self.vision = vision
        self.head_dim = padded_head_dim(vision.head_dim) if pad else vision.head_dim
        self._pad = (lambda rows: pad_heads(rows, vision.head_dim)) if pad else (lambda rows: rows)

    def begin(self, config: ModelConfig) -> None:
        graph, vision = self.graph, self.vision
        values = vision.patch_size**2 * vision.num_channels
        patches = graph.input("patches", TensorProto.UINT8, ["F", "N", values])
        positions = graph.input("positions", TensorProto.INT32, ["N", 2])
        mean, std = (np.array(x, np.float64) for x in (config.image_mean, config.image_std))
        scale, offset = (
            graph.weight(f"pixels.{name}", np.tile(value, vision.patch_size**2).astype(np.float32))
            for name, value in (("scale", 1 / (255 * std)), ("offset", -mean / std))
        )
        pixels = graph.node("Cast", [patches], "pixels.float32", to=TensorProto.FLOAT)
        pixels = graph.node("Mul", [pixels, scale], "pixels.scaled")
        pixels = graph.node("Add", [pixels, offset], "pixels")
        embedded = self.linear(
            self.product_type(pixels, "pixels.cast"),
            f"{VISION}embeddings.patch_embedding",
            "embedded",
            rows=lambda w: w.transpose(0, 2, 3, 1).reshape(len(w), -1) if w.ndim == 4 else w,
        )
        self._hidden = self.float32(embedded, "embedded.float32")
        self._cos, self._sin = self._rotary(positions)
        shape = [0, 0, vision.num_heads, self.head_dim]
        self._heads_shape = graph.weight("heads.shape", np.array(shape, np.int64))
        self._flat_shape = graph.weight("flat.shape", np.array([0, 0, vision.num_heads * self.head_dim], np.int64))
        self._scale = self.constant("attention.scale", vision.head_dim**-0.5)

    def layer(self, index: int) -> None:
        graph, vision = self.graph, self.vision
        stem, name = f"{VISION}encoder.layers.{index}.", f"layers.{index}"
        x = self.layer_norm(self._hidden, f"{stem}layer_norm1", f"{name}.norm1", vision.layer_norm_eps)
        x = self.product_type(x, f"{name}.norm1.cast")
        query = self._rotate(self._heads(x, f"{stem}self_attn.q_proj", f"{name}.query"), f"{name}.query.turned")
        query = str(graph.node("Mul", [query, self._scale], f"{name}.query.scaled"))
        query = self.product_type(query, f"{name}.query.cast")
        key = self._rotate(self._heads(x, f"{stem}self_attn.k_proj", f"{name}.key"), f"{name}.key.turned")
        key = self.product_type(key, f"{name}.key.cast")
        value = self._heads(x, f"{stem}self_attn.v_proj", f"{name}.value")
        query = graph.node("Transpose", [query], f"{name}.query.t", perm=[0, 2, 1, 3])
        key = graph.node("Transpose", [key], f"{name}.key.t", perm=[0, 2, 3, 1])
        value = graph.node("Transpose", [value], f"{name}.value.t", perm=[0, 2, 1, 3])
        # The casts around the softmax make TensorRT for RTX sum scores in float32 inside its fused kernel.
        scores = self.float32(str(graph.node("MatMul", [query, key], f"{name}.scores")), f"{name}.scores.float32")
        probabilities = self.product_type(
            str(graph.node("Softmax", [scores], f"{name}.shares", axis=-1)), f"{name}.cast"
        )
        attended = graph.node("MatMul", [probabilities, value], f"{name}.attended")
        attended = graph.node("Transpose", [attended], f"{name}.attended.t", perm=[0, 2, 1, 3])
        attended = graph.node("Reshape", [attended, self._flat_shape], f"{name}.attended.flat")
        update = self.linear(attended, f"{stem}self_attn.out_proj", f"{name}.output", columns=self._pad)
        hidden = graph.node("Add", [self._hidden, self.float32(update, f"{name}.output.float32")], f"{name}.sum1")

        x = self.layer_norm(str(hidden), f"{stem}layer_norm2", f"{name}.norm2", vision.layer_norm_eps)
        x = self.linear(self.product_type(x, f"{name}.norm2.cast"), f"{stem}mlp.fc1", f"{name}.fc1")
        tanh = vision.hidden_act == "gelu_pytorch_tanh"
        x = self.gelu(self.float32(x, f"{name}.fc1.float32"), f"{name}.gelu", tanh)
        x = self.linear(self.product_type(x, f"{name}.gelu.cast"), f"{stem}mlp.fc2", f"{name}.fc2")
        self._hidden = str(graph.node("Add", [hidden, self.float32(x, f"{name}.fc2.float32")], f"{name}.sum2"))

    def end(self) -> None:
        self.layer_norm(self._hidden, f"{VISION}post_layernorm", "features", self.vision.layer_norm_eps)
        self.graph.output("features", TensorProto.FLOAT, ["F", "N", self.vision.hidden_size])

    def _heads(self, x: str, stem: str, name: str) -> str:
        """One of q, k, v: [F, N, heads, head_dim]."""
        flat = self.linear(x, stem, f"{name}.flat", rows=self._pad)
        return str(self.graph.node("Reshape", [flat, self._heads_shape], name))

    def _rotary(self, positions: str) -> tuple[str, str]:
        """cos and sin float32 [N, 1, head_dim / 2]: the first half of the real pairs rotates by row, then by column."""
        graph, pairs = self.graph, self.vision.head_dim // 4
        frequencies = rotary_frequencies(self.vision.rope_theta, 2 * pairs)
        table = np.zeros((2, self.head_dim // 2), np.float32)
        table[0, :pairs] = table[1, pairs : 2 * pairs] = frequencies
        places = graph.node("Cast", [positions], "positions.float32", to=TensorProto.FLOAT)
        parts = []
        # Elementwise products, not a matrix product: TensorRT might compute the latter in TF32, with 10 bits.
        for axis, word in enumerate(("row", "column")):
            index = graph.weight(f"{word}.index", np.array([axis], np.int64))
            place = graph.node("Gather", [places, index], word, axis=1)
            row = graph.weight(f"{word}.frequencies", table[axis][None])
            parts.append(graph.node("Mul", [place, row], f"{word}.angles"))
        angles = graph.node("Add", parts, "angles.flat")
        axes = graph.weight("angles.axes", np.array([1], np.int64))
        angles = graph.node("Unsqueeze", [angles, axes], "angles")
        return graph.node("Cos", [angles], "cos"), graph.node("Sin", [angles], "sin")

    def _rotate(self, x: str, name: str) -> str:
        """x [F, N, heads, head_dim] rotated in float32: halves of a head against each other."""
        graph = self.graph
        first, second = graph.node("Split", [self.float32(x, f"{name}.float32")], f"{name}.half", outputs=2, axis=-1)
        parts = []
        for k, (a, b, op) in enumerate(((first, second, "Sub"), (second, first, "Add"))):
            cosine = graph.node("Mul", [a, self._cos], f"{name}.{k}.cos")
            sine = graph.node("Mul", [b, self._sin], f"{name}.{k}.sin")
            parts.append(graph.node(op, [cosine, sine], f"{name}.{k}"))
        return str(graph.node("Concat", parts, name, axis=-1))
