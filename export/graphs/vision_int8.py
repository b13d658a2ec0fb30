"""The vision encoder's products in 8 bits: a rewrite of its traced graph, for ONNX Runtime on CPUs.

Weights are int8, one scale per output channel. Activations are quantized dynamically to uint8, one scale per patch: a
patch's result then depends on no other patch, so features do not depend on how frames are divided into calls, and one
patch of large values does not hurt the others. A scale per tensor would be 4 % faster and have neither property. The
products are `MatMulIntegerToFloat`, uint8 times int8, for which CPUs have instructions (VNNI; int8 times int8 has no
fast path); `MatMulNBits` gains less than half as much at these sizes, and only `DynamicQuantizeMatMul`, with its scale
per tensor, as much (`benchmarks/vision.py` measures them).

The patch embedding, attention, norms and the residual stream stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from ..errors import ExportError

MIDDLE, LIMIT = 128, 127
# GELU of either kind never goes below -0.17, so its zero is near the lower end of the 8 bits, not in the middle.
_GELU_LOWEST, _GELU_ZERO = 0.1701, 16
SMALLEST_SCALE = 1e-12
CODES, SCALES = ".int8", ".scale"  # of a weight in 8 bits, after its name

Read = Callable[[str], np.ndarray]


def quantize_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [in, out] and scales float32 [out] of a weight float32 [in, out], rounded to nearest."""
    scale = np.maximum(np.abs(weight).max(axis=0) / LIMIT, SMALLEST_SCALE).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def quantize_products(model: ir.Model, names: Sequence[str], read: Read) -> None:
    """Replaces every product with one of the weights `names` in a traced graph, and attaches those weights.

    names: of initializers [in, out] that are right operands of MatMul. read: the float32 weight of a name; called when
    the scales are computed, and again when the file is written, so that one weight at a time is in memory.
    Raises ExportError if the graph lacks a product with one of them.
    """
    products = {str(n.inputs[1].name): n for n in model.graph if n.op_type == "MatMul" and n.inputs[1] is not None}
    if missing := [name for name in names if name not in products]:
        raise ExportError(f"the traced graph has no product with {', '.join(missing)}")
    model.opset_imports.setdefault("com.microsoft", 1)
    rewriter = _Rewriter(model.graph)
    for name in names:
        rewriter.replace(products[name], name, read)


class _Rewriter:
    """Replaces products one by one; those that read the same values share their quantization."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._constants: dict[str, ir.Value] = {}
        self._rows: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._new: list[ir.Node] = []
        self._stem = ""

    def replace(self, product: ir.Node, name: str, read: Read) -> None:
        """x @ w becomes (uint8 of x) @ (int8 of w) · scale of w · scale of the patch."""
        self._new, self._stem = [], name
        x, weight = product.inputs
        if x is None or weight is None or weight.shape is None:
            raise ExportError(f"the traced graph gives the product with {name} no shape")
        rows, row_scale, zero = self._quantized_rows(x)
        del self._graph.initializers[name]
        stored = self._initializer(_lazy(name + CODES, weight.shape, lambda: quantize_weight(read(name))[0]))
        scale = self._initializer(ir.tensor(quantize_weight(read(name))[1], name=name + SCALES))
        inputs = [rows, stored, self._constant("int8.one", np.float32(1)), scale, zero]
        result = self._node("MatMulIntegerToFloat", inputs, domain="com.microsoft")
        result = self._node("Mul", [result, row_scale])
        self._graph.insert_before(product, self._new)
        product.outputs[0].replace_all_uses_with(result)
        self._graph.remove(product, safe=True)

    def _quantized_rows(self, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """x [..., in] as uint8, the scale float32 [..., 1] of each row, and the zero point of all."""
        key = str(x.name)
        if key not in self._rows:
            producer = x.producer()
            gelu = producer is not None and producer.op_type == "Gelu"
            scale = self._gelu_scale(x) if gelu else self._symmetric_scale(x)
            zero = self._constant("int8.gelu_zero", np.uint8(_GELU_ZERO)) if gelu else self._zero()
            scaled = self._node("Div", [x, scale])
            one = self._constant("int8.one", np.float32(1))
            self._rows[key] = self._node("QuantizeLinear", [scaled, one, zero]), scale, zero
        return self._rows[key]

    def _symmetric_scale(self, x: ir.Value) -> ir.Value:
        axes = self._constant("int8.last_axis", np.array([-1], np.int64))
        highest = self._node("ReduceMax", [x, axes])
        lowest = self._node("Neg", [self._node("ReduceMin", [x, axes])])  # cheaper than |x|, which would be stored
        share = self._constant("int8.share", np.float32(1 / LIMIT))
        scale = self._node("Mul", [self._node("Max", [highest, lowest]), share])
        return self._node("Max", [scale, self._constant("int8.smallest", np.float32(SMALLEST_SCALE))])

    def _gelu_scale(self, x: ir.Value) -> ir.Value:
        highest = self._node("ReduceMax", [x, self._constant("int8.last_axis", np.array([-1], np.int64))])
        share = self._constant("int8.gelu_share", np.float32(1 / (255 - _GELU_ZERO)))
        smallest = self._constant("int8.gelu_smallest", np.float32(_GELU_LOWEST / _GELU_ZERO))
        return self._node("Max", [self._node("Mul", [highest, share]), smallest])

    def _zero(self) -> ir.Value:
        return self._constant("int8.zero", np.uint8(MIDDLE))

    def _node(self, op: str, inputs: Sequence[ir.Value], domain: str = "") -> ir.Value:
        node = ir.node(op, inputs, domain=domain)
        node.name = f"{self._stem}/{op}.{len(self._new)}"
        node.outputs[0].name = f"{node.name}.out"
        self._new.append(node)
        return node.outputs[0]

    def _constant(self, name: str, value: np.generic | np.ndarray) -> ir.Value:
        if name not in self._constants:
            self._constants[name] = self._initializer(ir.tensor(np.asarray(value), name=name))
        return self._constants[name]

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        self._graph.register_initializer(value)
        return value


def _lazy(name: str, shape: ir.Shape, make: Callable[[], np.ndarray]) -> ir.LazyTensor:
    return ir.LazyTensor(lambda: ir.tensor(make(), name=name), ir.DataType.INT8, ir.Shape(list(shape)), name=name)
