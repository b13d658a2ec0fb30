"""Ways to compute one product of the vision encoder on a CPU with ONNX Runtime, timed beside each other.

The sizes are the released models': hidden 1152, MLP 4304, rows for a few frames' patches. Used by `vision.py`.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from vl3edge.export.graphs.vision_int8 import quantize_products, quantize_weight

ROWS = 2720  # four frames of 476 × 280 pixels
SHAPES = ((1152, 1152), (1152, 4304), (4304, 1152))
FORMS = {
    "float32": "MatMul",
    "8 bits, a scale per row": "what vision_int8.py makes",
    "8 bits, a scale per tensor": "DynamicQuantizeMatMul",
    "int8 times int8, a scale per tensor": "MatMulIntegerToFloat",
    "MatMulNBits, 8 bits, blocks of 128": "accuracy_level 4",
    "MatMulNBits, 4 bits, blocks of 128": "accuracy_level 4",
}


def measure(rounds: int = 5) -> list[dict[str, Any]]:
    """One line per shape and form: milliseconds (median), how many times float32's speed, relative error."""
    rng = np.random.default_rng(0)
    lines = []
    for inputs, outputs in SHAPES:
        weight = (rng.standard_normal((inputs, outputs)) / inputs**0.5).astype(np.float32)
        x = rng.standard_normal((ROWS, inputs)).astype(np.float32)
        exact = x[:64] @ weight
        sessions = {form: _session(form, weight) for form in FORMS}
        seconds: dict[str, list[float]] = {form: [] for form in FORMS}
        errors = {}
        for _ in range(rounds + 1):
            for form, session in sessions.items():
                begin = time.perf_counter()
                (y,) = session.run(None, {"x": x})
                seconds[form].append(time.perf_counter() - begin)
                errors[form] = float(np.linalg.norm(y[:64] - exact) / np.linalg.norm(exact))
        median = {form: statistics.median(values[1:]) for form, values in seconds.items()}
        lines += [
            {
                "inputs": inputs,
                "outputs": outputs,
                "form": form,
                "operator": FORMS[form],
                "ms": round(median[form] * 1e3, 1),
                "speedup": round(median["float32"] / median[form], 2),
                "relative_error": float(f"{errors[form]:.2e}"),
            }
            for form in FORMS
        ]
    return lines


def _session(form: str, weight: np.ndarray) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    model = ir.to_proto(_model(form, weight)).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _model(form: str, weight: np.ndarray) -> ir.Model:
    """x float32 [rows, in] -> y float32 [rows, out]"""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", len(weight)]))
    tensors: list[ir.Value] = []

    def constant(name: str, value: np.ndarray | np.generic) -> ir.Value:
        tensor = ir.tensor(np.asarray(value), name=name)
        made = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        tensors.append(made)
        return made

    nodes: list[ir.Node] = []
    quantized, scale = quantize_weight(weight)
    if form in ("float32", "8 bits, a scale per row"):
        nodes.append(ir.node("MatMul", [x, constant("w", weight)]))
    elif form == "8 bits, a scale per tensor":
        inputs = [x, constant("w", quantized), constant("s", scale)]
        nodes.append(ir.node("DynamicQuantizeMatMul", inputs, domain="com.microsoft"))
    elif form == "int8 times int8, a scale per tensor":
        one, zero = constant("one", np.float32(4 / 127)), constant("zero", np.int8(0))
        nodes.append(ir.node("QuantizeLinear", [x, one, zero]))
        inputs = [nodes[0].outputs[0], constant("w", quantized), one, constant("s", scale), zero]
        nodes.append(ir.node("MatMulIntegerToFloat", inputs, domain="com.microsoft"))
    else:
        nodes.append(_nbits(x, weight, 8 if "8 bits" in form else 4, constant))
    for number, node in enumerate(nodes):
        node.outputs[0].name = f"v{number}"
    last = ir.node("Identity", nodes[-1].outputs)
    last.outputs[0].name, last.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    last.outputs[0].shape = ir.Shape(["rows", weight.shape[1]])
    opsets = {"": 20, "com.microsoft": 1}
    graph = ir.Graph([x], last.outputs, nodes=[*nodes, last], initializers=tensors, opset_imports=opsets, name="g")
    model = ir.Model(graph, ir_version=10)
    if form == "8 bits, a scale per row":
        quantize_products(model, ["w"], lambda name: weight)
    return model


def _nbits(x: ir.Value, weight: np.ndarray, bits: int, constant: Any, block: int = 128) -> ir.Node:
    inputs, outputs = weight.shape
    blocks = -(-inputs // block)
    grouped = np.zeros((outputs, blocks * block), np.float32)
    grouped[:, :inputs] = weight.T
    grouped = grouped.reshape(outputs, blocks, block)
    middle = 1 << (bits - 1)
    scale = (np.abs(grouped).max(axis=2) / (middle - 1)).astype(np.float32)
    numbers = (np.rint(grouped / scale[..., None]) + middle).astype(np.uint8)
    packed = numbers if bits == 8 else numbers[..., ::2] | numbers[..., 1::2] << 4
    attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 4}
    given = [x, constant("w", packed), constant("s", scale)]
    return ir.node("MatMulNBits", given, attributes, domain="com.microsoft")
