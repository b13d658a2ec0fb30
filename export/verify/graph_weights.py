"""The quantized layers of an exported decoder, read back from its graph under the checkpoint's names.

The weights that a bundle's codes represent, whatever produced them: `verify` runs the torch layers with them, and
compares them with the checkpoint's. The graph joins layers that read the same input and pads heads; here they are
separate and unpadded, as in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vl3edge.models.config import TextConfig
from vl3edge.quant.linear import LayerError, QuantizedLinear
from vl3edge.quant.packing import MatMulNBitsTensors, from_matmul_nbits

from ..errors import ExportError
from ..graphs.decoder import PREFIX
from ..graphs.decoder_int4 import HEAD
from ..tensor_source import pad_heads

_JOINED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),  # of older bundles, which have one product
    "gate": ("mlp.gate_proj",),
    "up": ("mlp.up_proj",),
    "output": ("self_attn.o_proj",),
    "down": ("mlp.down_proj",),
}


@dataclass(frozen=True)
class _Place:
    """Rows `start` to `stop` of one product of the graph, without the rows that pad heads if `heads` is set."""

    node: onnx.NodeProto
    start: int
    stop: int
    heads: bool


class GraphTensors:
    """The weights of a graph by name, memory-mapped if stored in separate files."""

    def __init__(self, path: Path, graph: onnx.GraphProto) -> None:
        self._path = path
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def array(self, name: str) -> np.ndarray:
        """The weight of this name; ExportError if the graph has none."""
        if name not in self._tensors:
            raise ExportError(f"{self._path.name} has no {name}, or is of another version; export again.")
        tensor = self._tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        place = {entry.key: entry.value for entry in tensor.external_data}
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.memmap(self._path.parent / place["location"], dtype, "r", int(place["offset"]), tuple(tensor.dims))


class GraphLinears:
    """The MatMulNBits products of `decoder.onnx`, as `vl3edge.quant.dequantized.Linears`.

    errors: empty, as a graph does not store them.
    """

    errors: Mapping[str, LayerError] = {}

    def __init__(self, path: Path, config: TextConfig) -> None:
        graph = onnx.load(path, load_external_data=False).graph
        self._config = config
        self._array = GraphTensors(path, graph).array
        self._casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
        self._orders = {node.output[0]: node.input[1] for node in graph.node if node.name.endswith(".ordered")}
        products = [node for node in graph.node if node.op_type == "MatMulNBits"]
        self._places = {name: place for node in products for name, place in self._parts(node)}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._places)

    def linear(self, name: str) -> QuantizedLinear:
        """One layer by its canonical name; KeyError if the graph does not have it quantized."""
        place = self._places[name]
        facts = _attributes(place.node)
        packed, scales, *zeros = place.node.input[1:]
        rows = slice(place.start, place.stop)
        tensors = MatMulNBitsTensors(
            packed=self._array(packed).reshape(facts["N"], -1)[rows],
            scales=self._array(self._casts[scales])[rows],
            zero_points=self._array(zeros[0]).reshape(facts["N"], -1)[rows] if zeros else None,
            bits=facts["bits"],
            block_size=facts["block_size"],
            order=self._array(self._orders[place.node.input[0]]) if place.node.input[0] in self._orders else None,
        )
        layer = from_matmul_nbits(tensors)
        if not place.heads:
            return layer
        real = pad_heads(np.ones(self._features(name), np.bool_), self._config.head_dim)
        return replace(layer, codes=layer.codes[real], scales=layer.scales[real], zeros=layer.zeros[real])

    def _parts(self, node: onnx.NodeProto) -> Iterator[tuple[str, _Place]]:
        """The layers joined in one product; its name is `layers.0.qkv.matmul`, or `….qkv.1.matmul` for one of them."""
        stem = node.name.removesuffix(".matmul")
        if stem == HEAD:
            yield HEAD, _Place(node, 0, _attributes(node)["N"], heads=False)
            return
        _, layer, joined, part, *_ = [*stem.split("."), "", "", ""]
        if joined not in _JOINED:
            raise ExportError(
                f"decoder.onnx has a product {node.name!r} that this version does not know; export again."
            )
        names = [f"{PREFIX}layers.{layer}.{name}" for name in _JOINED[joined]]
        start = 0
        for name in [names[int(part)]] if part else names:
            heads = joined == "qkv"
            width = self._features(name)
            stop = start + (len(pad_heads(np.empty(width), self._config.head_dim)) if heads else width)
            yield name, _Place(node, start, stop, heads)
            start = stop

    def _features(self, name: str) -> int:
        """Outputs of a layer in the checkpoint."""
        config = self._config
        return {
            "q_proj": config.num_heads * config.head_dim,
            "k_proj": config.num_kv_heads * config.head_dim,
            "v_proj": config.num_kv_heads * config.head_dim,
            "gate_proj": config.intermediate_size,
            "up_proj": config.intermediate_size,
        }.get(name.rpartition(".")[2], config.hidden_size)


def _attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}
