"""8-bit products for TensorRT: explicit quantization, as its compiler requires.

The encoder's other products are float16; these have a QuantizeLinear and a DequantizeLinear in front: symmetric int8,
one scale per output channel for the weights and one per tensor for the activations, fixed by calibration, since
TensorRT has no dynamic scales for int8. It fuses the rounding into the operator that produces the activations, and
multiplies int8 by int8. Operators are those of opset 13, whose scales and results are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from vl3edge.models.tensor_names import VISION

from ..calibrate.vision import VisionCalibration
from ..onnx_writer import GraphWriter
from .vision_int8 import LIMIT


def activation_steps(calibration: VisionCalibration) -> dict[str, float]:
    """The step between two int8 values of each product's input, by the canonical name of the product."""
    inputs = calibration.smoothing.inputs(calibration.largest)
    return {f"{VISION}encoder.{name}": float(inputs[name].max()) / LIMIT or 1.0 for name in calibration.products}


@dataclass(frozen=True)
class Weight8:
    """Names in a graph of a weight int8 [in, out], its scales float32 [out] and its zeros int8 [out]."""

    codes: str
    scales: str
    zeros: str


def quantized_linear(graph: GraphWriter, x: str, name: str, weight: Weight8, bias: str, step: float, fp16: bool) -> str:
    """x · weight + bias with int8 operands; x and the result are float16 if `fp16`, else float32.

    bias: float32 [out]. step: of x.
    """
    if fp16:
        x = graph.node("Cast", [x], f"{name}.given", to=TensorProto.FLOAT)
    place = [
        graph.weight(f"{name}.step", np.array(step, np.float32)),
        graph.weight(f"{name}.zero", np.array(0, np.int8)),
    ]
    rounded = graph.node("QuantizeLinear", [x, *place], f"{name}.int8")
    rounded = graph.node("DequantizeLinear", [rounded, *place], f"{name}.rounded")
    stored = [weight.codes, weight.scales, weight.zeros]
    product = graph.node(
        "MatMul", [rounded, graph.node("DequantizeLinear", stored, f"{name}.weight", axis=1)], f"{name}.matmul"
    )
    if not fp16:
        return str(graph.node("Add", [product, bias], name))
    result = graph.node("Add", [product, bias], f"{name}.sum")
    return str(graph.node("Cast", [result], name, to=TensorProto.FLOAT16))
