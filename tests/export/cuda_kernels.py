"""Versions of operators that ONNX Runtime 1.23 and later have CUDA kernels for (its docs/OperatorKernels.md)."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

CUDA_KERNELS = {
    "Add": 14,
    "Cast": 13,
    "Concat": 13,
    "Cos": 7,
    "Div": 14,
    "Expand": 13,
    "Gather": 13,
    "GatherElements": 13,
    "Gemm": 13,
    "GreaterOrEqual": 16,
    "IsNaN": 13,
    "LayerNormalization": 17,
    "MatMul": 13,
    "Mul": 14,
    "Range": 11,
    "ReduceMean": 13,
    "Reshape": 14,
    "Shape": 15,
    "Sin": 7,
    "Slice": 13,
    "Squeeze": 13,
    "Sub": 14,
    "TopK": 11,
    "Transpose": 13,
    "Unsqueeze": 13,
    "Where": 16,
}
FUSED = {
    "FastGelu",
    "Gelu",
    "GroupQueryAttention",
    "MatMulNBits",
    "MultiHeadAttention",
    "QuickGelu",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization",
}
"""ONNX Runtime's own, with kernels for float16 or, of the last two, float32."""


def without_kernel(model: onnx.ModelProto) -> set[str]:
    """Operators of a graph, by name and version, that a GPU would leave to the CPU."""
    (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
    nodes: Iterable[onnx.NodeProto] = (node for node in model.graph.node if node.op_type not in FUSED)
    versions = {node.op_type: onnx.defs.get_schema(node.op_type, opset).since_version for node in nodes}
    return {f"{op} {version}" for op, version in versions.items() if CUDA_KERNELS.get(op) != version}
