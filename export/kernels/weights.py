"""Where the kernels find a decoder's weights: in the files of its ONNX graphs, so nothing is stored twice.

`weights.json`, beside `kernels.json`: format, format_version, epsilon, and for `cos`, `sin`, `norm`, `head`,
`embeddings` and every one of `layers` the place of its tensors. A tensor: file, offset in bytes, dtype, shape. A
matrix: outputs, inputs, bits, group, and of its tensors codes, scales, zeros, order those it has; with 16 or 32 bits
codes are the weights themselves, [inputs, outputs] where `transposed` says so. Query, key and value are a list of one
matrix, or of several where their bits differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from vl3edge.export.errors import ExportError
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH
from vl3edge.runtime.bundle.kernel_weights import WEIGHTS_FORMAT, WEIGHTS_FORMAT_VERSION
from vl3edge.runtime.bundle.specs import TextSpec

from .shape import EMBEDDINGS, HEADS, ROLES, DecoderShape, MatrixKind

Json = dict[str, Any]
_LANGUAGE_MODEL = "model.language_model."
_DTYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32}


def decoder_weights(folder: Path, shape: DecoderShape) -> Json:
    """The content of `weights.json` for a bundle's decoder; ExportError for a graph of another version."""
    graph = _Graph(folder / DECODER_GRAPH, shape.text)
    return {
        "format": WEIGHTS_FORMAT,
        "format_version": WEIGHTS_FORMAT_VERSION,
        "epsilon": shape.epsilon,
        "cos": graph.tensor("rotary.cos"),
        "sin": graph.tensor("rotary.sin"),
        "norm": graph.tensor(f"{_LANGUAGE_MODEL}norm.weight"),
        "head": graph.head(),
        "embeddings": _embeddings(folder / EMBEDDINGS, shape.embeddings),
        "layers": [graph.layer(number) for number in range(shape.text.num_layers)],
    }


class _Graph:
    """The products of `decoder.onnx` and the places of its tensors."""

    def __init__(self, path: Path, text: TextSpec) -> None:
        graph = onnx.load(path, load_external_data=False).graph
        self._path, self._text = path, text
        self._content = path.read_bytes()
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes = {node.name: node for node in graph.node}
        self._casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}

    def layer(self, number: int) -> Json:
        stem = f"{_LANGUAGE_MODEL}layers.{number}."
        single = {role: self._matrix(self._nodes[f"layers.{number}.{role}.matmul"]) for role in ROLES[1:]}
        return {
            "input_norm": self.tensor(f"{stem}input_layernorm.weight"),
            "bias": self.tensor(self._nodes[f"layers.{number}.qkv.biased"].input[1]),
            "mlp_norm": self.tensor(f"{stem}post_attention_layernorm.weight"),
            "qkv": self._joined(f"layers.{number}.qkv"),
            **single,
        }

    def head(self) -> Json:
        quantized, whole = HEADS
        return self._matrix(self._nodes.get(f"{quantized}.matmul") or self._nodes[whole])

    def tensor(self, name: str) -> Json:
        """The place of a weight; of the stored one if the graph casts it."""
        tensor = self._tensors.get(self._casts.get(name, name))
        if tensor is None:
            raise ExportError(f"{DECODER_GRAPH} has no {name}, or is of another version; export again.")
        shape, dtype = list(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            return {"file": place["location"], "offset": int(place["offset"]), "dtype": dtype.name, "shape": shape}
        # Any identical bytes in the file serve as this tensor.
        offset = self._content.index(tensor.raw_data)
        return {"file": self._path.name, "offset": offset, "dtype": dtype.name, "shape": shape}

    def _joined(self, name: str) -> list[Json]:
        """A product, or those of its parts."""
        if f"{name}.matmul" in self._nodes:
            return [self._matrix(self._nodes[f"{name}.matmul"])]
        parts = [node for part in range(3) if (node := self._nodes.get(f"{name}.{part}.matmul"))]
        return [self._matrix(node) for node in parts]

    def _matrix(self, node: onnx.NodeProto) -> Json:
        if node.op_type != "MatMulNBits":
            codes, transposed = self.tensor(node.input[1]), node.op_type == "MatMul"
            inputs, outputs = codes["shape"] if transposed else reversed(codes["shape"])
            group = MatrixKind.whole(inputs).group
            facts = {"outputs": outputs, "inputs": inputs, "bits": 16, "group": group, "transposed": transposed}
            return facts | {"tensors": {"codes": codes}}
        given = {attribute.name: attribute.i for attribute in node.attribute}
        facts = {"outputs": given["N"], "inputs": given["K"], "bits": given["bits"], "group": given["block_size"]}
        names = dict(zip(("codes", "scales", "zeros"), node.input[1:], strict=False))
        ordered = self._nodes.get(node.name.removesuffix(".matmul") + ".ordered")
        if ordered is not None and ordered.output[0] == node.input[0]:
            names["order"] = ordered.input[1]
        return facts | {"tensors": {name: self.tensor(value) for name, value in names.items() if value}}


def _embeddings(path: Path, matrix: MatrixKind) -> Json:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    names = {"codes": "embeddings" if "embeddings" in entries else "codes", "scales": "scales", "zeros": "zero_points"}
    if "head" in entries:  # all that a step looks up are tokens that a tied head can say
        names["codes"] = "head"
    elif "head.codes" in entries:
        names = {name: f"head.{stored}" for name, stored in names.items()}
    tensors = {
        name: {
            "file": path.name,
            "offset": 8 + length + entries[stored]["data_offsets"][0],
            "dtype": np.dtype(_DTYPES[entries[stored]["dtype"]]).name,
            "shape": entries[stored]["shape"],
        }
        for name, stored in names.items()
        if stored in entries
    }
    outputs = tensors["codes"]["shape"][0]
    return {"outputs": outputs, "inputs": matrix.inputs, "bits": matrix.bits, "group": matrix.group, "tensors": tensors}
