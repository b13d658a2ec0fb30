"""The vision encoder and the projectors for NVIDIA GPUs, derived from the CPU graphs: products in float16.

Products, rotation, attention and GELU read and write float16. In float16 ONNX Runtime's `MultiHeadAttention` is flash
attention: its memory grows linearly with the patches, and its scores are summed in float32. The residual stream, the
norms and the averages of a projector stay float32: a float16 stream doubles the drift (ARCHITECTURE.md). Features are
float16, as the projector's first product reads them, which halves a clip's memory on the GPU.

Inputs and outputs are otherwise those of `vision.py`'s graphs, whose weights they name (`fp16_graph.py`). An 8-bit
encoder is computed here from its stored weights, without rounding activations to 8 bits: CUDA has no such products, and
needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import helper, numpy_helper

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.runtime.bundle.file_names import VISION_GRAPHS, fp16_file

from ..calibrate.fp16_range import Fp16Range
from ..parity import Difference
from .fp16_graph import FLOAT, HALF, Fp16Graph
from .vision import check_projector, check_vision

_IN_HALF = {"MatMul", "RotaryEmbedding", "MultiHeadAttention", "Gelu", "FastGelu"}
_IN_FLOAT = {"LayerNormalization", "Mul", "Add", "Div", "Cast", "Cos", "Sin", "ReduceMean"}
_AS_GIVEN = {"Reshape", "Transpose", "Unsqueeze", "Expand", "Concat", "Gather", "Slice"}
_TO_8_BITS = {"ReduceMax", "ReduceMin", "Neg", "Max"}  # nothing depends on them here
_MS = "com.microsoft"


def write_fp16_vision(folder: Path, graphs: Sequence[str] = VISION_GRAPHS) -> list[Path]:
    """Writes the GPU's graphs beside `vision.onnx` and the projectors, whose data they share; returns their paths.

    graphs: those that there are.
    """
    return [_Fp16Vision(folder / f"{stem}.onnx").write(folder / fp16_file(stem)) for stem in graphs]


def check_fp16_vision(
    checkpoint: Checkpoint, folder: Path, graphs: Sequence[str] = VISION_GRAPHS
) -> dict[str, Difference]:
    """Differences of a folder's GPU graphs from the float32 torch modules, by the stems of their files.

    Raises ExportError for a model with values that float16 cannot hold.
    """
    seen, measured = Fp16Range(), {}
    for graph in graphs:
        path = folder / fp16_file(graph)
        if graph == "vision":
            measured[path.stem] = check_vision(checkpoint, path, seen)
            continue
        processing = checkpoint.config.image if graph.endswith("image") else checkpoint.config.video
        measured[path.stem] = check_projector(checkpoint, path, processing.merge_size, seen)
    seen.check("the vision path for GPUs runs")
    return measured


class _Fp16Vision(Fp16Graph):
    """A traced graph of the vision path."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, {"features": HALF, "tokens": FLOAT})
        for value in self.graph.input:
            if value.name == "features":
                value.type.tensor_type.elem_type = HALF
        self._makers = {name: node for node in self.graph.node for name in node.output}
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self._rounded: dict[str, str] = {}  # names of rows in 8 bits, and of what they were rounded from

    def take(self, node: onnx.NodeProto) -> None:
        if node.op_type == "QuantizeLinear":
            self._rounded[node.output[0]] = self._makers[node.input[0]].input[0]  # before the division by its scale
        elif node.op_type == "MatMulIntegerToFloat":
            self._take_8_bit_product(node)
        elif node.op_type == "Mul" and self._made_by(node.input[0]) == "MatMulIntegerToFloat":
            self.alias(node.output[0], node.input[0])  # the scale of rows that are not rounded here
        elif node.op_type == "Gelu":  # the standard's own is of opset 20
            op = "FastGelu" if _attribute(node, "approximate") == b"tanh" else "Gelu"
            self.emit(helper.make_node(op, node.input, node.output, node.name, domain=_MS))
        elif node.op_type == "ReduceMean":  # whose axes are an input from opset 18 on
            axes = numpy_helper.to_array(self._constants[node.input[1]]).tolist()
            keepdims = _attribute(node, "keepdims")
            self.emit(
                helper.make_node("ReduceMean", node.input[:1], node.output, node.name, axes=axes, keepdims=keepdims)
            )
        elif node.op_type not in _TO_8_BITS:
            super().take(node)

    def dtype(self, node: onnx.NodeProto) -> int | None:
        op = node.op_type
        if op == "Shape" or not any(self.is_float(name) for name in node.input):
            return FLOAT if op == "Cast" and _attribute(node, "to") == FLOAT else None
        if op in _AS_GIVEN:
            return self.given(node.input[0])
        if op not in _IN_HALF | _IN_FLOAT:
            raise self.unknown(node)
        return HALF if op in _IN_HALF or self._adds_bias(node) else FLOAT

    def _adds_bias(self, node: onnx.NodeProto) -> bool:
        """Whether a node ends a product, and is not an addition to the residual stream."""
        if node.op_type != "Add" or self.given(node.input[0]) != HALF:
            return False
        name = node.input[1]
        return name in self._constants or (
            self._made_by(name) == "Cast" and self._makers[name].input[0] in self._constants
        )

    def _take_8_bit_product(self, node: onnx.NodeProto) -> None:
        rows, codes, _, scale, _ = node.input
        self.append("Cast", [codes], [f"{codes}.float"], to=FLOAT)
        weight = helper.make_node("Mul", [f"{codes}.float", scale], [f"{codes}.weight"], f"{codes}.weight")
        self.emit(weight)
        self.emit(helper.make_node("MatMul", [self._rounded[rows], weight.output[0]], node.output, node.name))

    def _made_by(self, name: str) -> str:
        """The operator whose output this is; "" for inputs and weights."""
        maker = self._makers.get(name)
        return "" if maker is None else str(maker.op_type)


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    (value,) = (helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name)
    return value
