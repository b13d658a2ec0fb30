"""Rows of the embedding table inside a decoder's graph, so that a GPU's step begins with a token's id.

Where a head is tied to the embeddings, its weights are on the GPU already: the row is taken from those, by operators
that CUDA has, and has the bits that the runtime gives it on the host (`EmbeddingTable.rows`): codes, less their zero
point, times a scale, in float32. A table of its own, or one in float32, would be another copy in the GPU's memory, so
there the runtime goes on looking rows up. A `Concat` would join embeddings and rows as well, but CUDA's copies its
sizes from memory that is gone when a captured CUDA graph is replayed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto, numpy_helper

from .embeddings import FILE_NAME
from .fp16_graph import FLOAT, Fp16Graph

CODES, SCALES, ZEROS, WHOLE = "lm_head.codes", "lm_head.scales.half", "lm_head.zeros", "lm_head.weight.half"


def tied_table(graph: Fp16Graph) -> dict[str, TensorProto]:
    """The head's tensors that lie in the embeddings' file, by their names; none where a lookup wants another copy."""
    tensors = {
        tensor.name: tensor
        for tensor in graph.graph.initializer
        if any(entry.value == FILE_NAME for entry in tensor.external_data)
    }
    return tensors if WHOLE in tensors or CODES in tensors else {}


def emit_lookup(graph: Fp16Graph, table: Mapping[str, TensorProto], tokens: str, embeddings: str, name: str) -> None:
    """Emits `name` [B, S, H]: the table's rows of tokens int64 [B, 1], or `embeddings` where a token is negative.

    A negative id is a place from the end of the table, so it is looked up like any other, and the row is not taken.
    """
    hidden = graph.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    rows = _whole(graph, tokens) if WHOLE in table else _dequantized(graph, table, tokens, hidden)
    least, last = graph.constant("lookup.least", [0], [1]), graph.constant("lookup.last", [2], [1])
    graph.append("GreaterOrEqual", [tokens, least], ["lookup.given"])
    graph.append("Unsqueeze", ["lookup.given", last], ["lookup.chosen"])
    graph.append("Where", ["lookup.chosen", rows, embeddings], [name])


def _whole(graph: Fp16Graph, tokens: str) -> str:
    graph.append("Gather", [WHOLE, tokens], ["lookup.row.half"])
    graph.append("Cast", ["lookup.row.half"], ["lookup.row"], to=FLOAT)
    return "lookup.row"


def _dequantized(graph: Fp16Graph, table: Mapping[str, TensorProto], tokens: str, hidden: int) -> str:
    _, blocks, num_bytes = table[CODES].dims
    bits = 8 * blocks * num_bytes // hidden
    middle = 0 if ZEROS in table else 2 ** (bits - 1)
    shape = [blocks, hidden // blocks]
    codes = _numbers(graph, tokens, CODES, _unpacked(graph, bits, middle), "lookup.codes", shape)
    trailing = graph.constant("lookup.trailing", [3], [1])
    if ZEROS in table:
        shape = [table[ZEROS].dims[1] * 8 // bits]
        whole = _numbers(graph, tokens, ZEROS, _unpacked(graph, bits, 0), "lookup.zeros.whole", shape)
        ends = [graph.constant(f"lookup.{end}", [at], [1]) for end, at in (("from", 0), ("to", blocks), ("along", 2))]
        graph.append("Slice", [whole, *ends], ["lookup.zeros"])
        graph.append("Unsqueeze", ["lookup.zeros", trailing], ["lookup.zero"])
        graph.append("Sub", [codes, "lookup.zero"], ["lookup.centred"])
        codes = "lookup.centred"
    graph.append("Gather", [SCALES, tokens], ["lookup.scales.half"])
    graph.append("Cast", ["lookup.scales.half"], ["lookup.scales"], to=FLOAT)
    graph.append("Unsqueeze", ["lookup.scales", trailing], ["lookup.scale"])
    graph.append("Mul", [codes, "lookup.scale"], ["lookup.scaled"])
    graph.append("Reshape", ["lookup.scaled", graph.constant("lookup.shape", [0, 1, hidden], [3])], ["lookup.row"])
    return "lookup.row"


def _numbers(graph: Fp16Graph, tokens: str, packed: str, unpacked: str, name: str, shape: list[int]) -> str:
    """Emits the numbers float32 [B, 1, *shape] that the bytes of the tokens' rows stand for."""
    graph.append("Gather", [packed, tokens], [f"{name}.bytes"])
    graph.append("Cast", [f"{name}.bytes"], [f"{name}.index"], to=TensorProto.INT32)
    graph.append("Gather", [unpacked, f"{name}.index"], [f"{name}.each"])
    wanted = graph.constant(f"{name}.shape", [0, 1, *shape], [2 + len(shape)])
    graph.append("Reshape", [f"{name}.each", wanted], [name])
    return name


def _unpacked(graph: Fp16Graph, bits: int, middle: int) -> str:
    """The name of a table float32 [256, 8 / bits]: the codes in each byte, the lowest bits first, less the middle."""
    name = f"lookup.unpacked.{middle}"
    if name not in {tensor.name for tensor in graph.graph.initializer}:
        shifts = np.arange(0, 8, bits)
        codes = np.arange(256)[:, None] >> shifts & (2**bits - 1)
        graph.graph.initializer.append(numpy_helper.from_array((codes - middle).astype(np.float32), name))
    return name
