"""What a decoder's kernels depend on: its sizes, and how each of its matrices is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from vl3edge.export.errors import ExportError
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH
from vl3edge.runtime.bundle.specs import TextSpec

ROLES = ("qkv", "output", "gate", "up", "down")
EMBEDDINGS = "embeddings.safetensors"
HEADS = ("lm_head", "logits")  # quantized, and not
_WHOLE_GROUP = 64  # columns per tile of a prompt's product, unless a group of codes determines them
_LEAST_GROUP = 16  # inputs that tensor cores take at once
_WHOLE_BITS = {"F16": 16, "F32": 32}


@dataclass(frozen=True, order=True)
class MatrixKind:
    """How a matrix with rows of this many inputs is stored, as in `products.py`; bits 32 are float32 embeddings."""

    inputs: int
    bits: int
    group: int
    zeros: bool = False
    order: bool = False

    @classmethod
    def whole(cls, inputs: int) -> MatrixKind:
        """Storage of weights that are not quantized."""
        return cls(inputs, 16, min(inputs & -inputs, _WHOLE_GROUP))

    def constants(self, prefix: str = "") -> dict[str, int]:
        """The constants of a kernel that describe it, but for K."""
        facts = {"BITS": self.bits, "GROUP": self.group, "ZEROS": self.zeros, "ORDER": self.order}
        return {prefix + name: value for name, value in facts.items()}


@dataclass(frozen=True)
class DecoderShape:
    """A decoder: sizes, epsilon of its norms, every kind of matrix that a role has in some layer.

    gated: the gate's and the up projection's of one layer. head, embeddings: of the whole vocabulary.
    """

    text: TextSpec
    epsilon: float
    head: MatrixKind
    embeddings: MatrixKind
    matrices: dict[str, frozenset[MatrixKind]] = field(default_factory=dict)
    gated: frozenset[tuple[MatrixKind, MatrixKind]] = frozenset()


def uniform_shape(text: TextSpec, epsilon: float, bits: int, group: int, head_bits: int) -> DecoderShape:
    """A decoder whose layers are all quantized alike, symmetrically, and whose head is its embeddings."""
    heads, hidden = text.num_heads * text.rotary_dim, text.hidden_size
    inputs = {"qkv": hidden, "output": heads, "gate": hidden, "up": hidden, "down": text.intermediate_size}
    kinds = {role: MatrixKind(size, bits, group) for role, size in inputs.items()}
    head = MatrixKind(hidden, head_bits, group)
    matrices = {role: frozenset({kind}) for role, kind in kinds.items()}
    return DecoderShape(text, epsilon, head, head, matrices, frozenset({(kinds["gate"], kinds["up"])}))


def read_shape(folder: Path, text: TextSpec) -> DecoderShape:
    """The shape of a bundle's decoder, from its graph; ExportError if the kernels do not support it."""
    graph = onnx.load(folder / DECODER_GRAPH, load_external_data=False).graph
    found = dict(_matrices(graph, text))
    heads = [found.pop(name) for name in HEADS if name in found]
    if len(heads) != 1:
        raise ExportError(f"{DECODER_GRAPH} has no output head that this version knows; export again.")
    matrices: dict[str, set[MatrixKind]] = {role: set() for role in ROLES}
    layers: dict[tuple[str, str], MatrixKind] = {}
    for name, matrix in found.items():
        _, layer, role, *_ = name.split(".")
        matrices[role].add(matrix)
        layers[layer, role] = matrix
    gated = {(layers[layer, "gate"], layers[layer, "up"]) for layer, role in layers if role == "gate"}
    epsilons = {attribute.f for node in graph.node for attribute in node.attribute if attribute.name == "epsilon"}
    if len(epsilons) != 1:
        raise ExportError(f"{DECODER_GRAPH} has norms of different epsilons; export again.")
    return DecoderShape(
        text,
        epsilons.pop(),
        heads[0],
        _embeddings(folder / EMBEDDINGS, text.hidden_size),
        {role: frozenset(kinds) for role, kinds in matrices.items()},
        frozenset(gated),
    )


def _matrices(graph: onnx.GraphProto, text: TextSpec) -> Iterator[tuple[str, MatrixKind]]:
    """Name and storage of every product with weights, such as `layers.0.qkv`, or `layers.0.qkv.1` for a part of it."""
    orders = {node.output[0] for node in graph.node if node.name.endswith(".ordered")}
    inputs = {"output": text.num_heads * text.rotary_dim, "down": text.intermediate_size}
    for node in graph.node:
        name = node.name.removesuffix(".matmul")
        known = name in HEADS or (name.startswith("layers.") and name.split(".")[2] in ROLES)
        if node.op_type == "MatMulNBits":
            if not known:
                raise ExportError(
                    f"{DECODER_GRAPH} has a product {node.name!r} that this version does not know; export again."
                )
            facts = {attribute.name: attribute.i for attribute in node.attribute}
            zeros = len(node.input) > 3 and bool(node.input[3])
            yield name, MatrixKind(facts["K"], facts["bits"], facts["block_size"], zeros, node.input[0] in orders)
        elif node.op_type in ("MatMul", "Gemm") and known:
            size = inputs.get(name.split(".")[2] if name not in HEADS else "", text.hidden_size)
            if size % _LEAST_GROUP:
                raise ExportError(
                    f"the kernels need rows of a multiple of {_LEAST_GROUP} inputs, not {size} ({node.name})"
                )
            yield name, MatrixKind.whole(size)


def _embeddings(path: Path, hidden: int) -> MatrixKind:
    with path.open("rb") as file:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    if "embeddings" in entries:
        return MatrixKind(hidden, _WHOLE_BITS[entries["embeddings"]["dtype"]], hidden)
    bits = entries["codes"]["shape"][1] * 8 // hidden
    return MatrixKind(hidden, bits, hidden // entries["scales"]["shape"][1], "zero_points" in entries)
