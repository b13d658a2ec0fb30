"""Products in 8 bits for TensorRT: explicit quantization, as its compiler wants it.

Where the encoder's other products are float16, these have a QuantizeLinear and a DequantizeLinear in front: int8 around
zero, one scale per output channel for the weights and one per tensor for the activations, fixed by calibration: for
int8, TensorRT has no scales that follow the data. It puts the rounding into the operator that makes the activations and
multiplies int8 by int8. Operators are those of opset 13, whose scales and results are float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from vl3edge.models.tensor_names import VISION

from ..calibrate.vision import VisionCalibration
from ..onnx_writer import GraphWriter
from .vision_int8 import LIMIT, quantize_weight


def activation_steps(calibration: VisionCalibration) -> dict[str, float]:
    """The step between two int8 values of each product's input, by the canonical name of the product."""
    inputs = calibration.smoothing.inputs(calibration.largest)
    return {f"{VISION}encoder.{name}": float(inputs[name].max()) / LIMIT or 1.0 for name in calibration.products}


def quantized_linear(
    graph: GraphWriter, x: str, stem: str, name: str, tensors: Mapping[str, np.ndarray], step: float, half: bool
) -> str:
    """x · weight + bias with int8 operands; x and the result are float16 if `half`, else float32.

    tensors: "weight" float32 [in, out] and "bias" [out]. step: of x.
    """
    values, scales = quantize_weight(tensors["weight"])
    if half:
        x = graph.node("Cast", [x], f"{name}.given", to=TensorProto.FLOAT)
    place = [
        graph.weight(f"{name}.step", np.array(step, np.float32)),
        graph.weight(f"{name}.zero", np.array(0, np.int8)),
    ]
    rounded = graph.node("QuantizeLinear", [x, *place], f"{name}.int8")
    rounded = graph.node("DequantizeLinear", [rounded, *place], f"{name}.rounded")
    zeros = graph.weight(f"{stem}.zeros", np.zeros_like(scales, np.int8))
    stored = [graph.weight(f"{stem}.weight", values), graph.weight(f"{stem}.scales", scales), zeros]
    weight = graph.node("DequantizeLinear", stored, f"{name}.weight", axis=1)
    product = graph.node("MatMul", [rounded, weight], f"{name}.matmul")
    bias = graph.weight(f"{stem}.bias", tensors["bias"].astype(np.float32))
    if not half:
        return str(graph.node("Add", [product, bias], name))
    result = graph.node("Add", [product, bias], f"{name}.sum")
    return str(graph.node("Cast", [result], name, to=TensorProto.FLOAT16))
