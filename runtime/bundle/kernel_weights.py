"""Where a decoder's kernels find its weights: `kernels/weights.json`, which names places in the bundle's other files.

`export/kernels/weights.py` writes it. Sizes and places are checked before anything is read from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from .manifest import FileEntry
from .specs import TextSpec

WEIGHTS_FORMAT, WEIGHTS_FORMAT_VERSION = "vl3edge-kernel-weights", 1


@dataclass(frozen=True)
class Tensor:
    """Where the numbers of one tensor lie: in a file of the bundle, `offset` bytes from its beginning."""

    file: str
    offset: int
    dtype: Literal["uint8", "int32", "int64", "float16", "float32"]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Matrix:
    """A matrix: its tensors are codes, perhaps scales, zeros and order; 16 or 32 bits are whole weights in `codes`."""

    outputs: int
    inputs: int
    bits: Literal[2, 4, 8, 16, 32]
    group: int
    tensors: dict[str, Tensor]
    transposed: bool = False

    def constants(self, prefix: str = "") -> dict[str, int]:
        """The constants of a kernel that describe how it is stored."""
        facts = {"ZEROS": "zeros" in self.tensors, "ORDER": "order" in self.tensors}
        return {prefix + name: value for name, value in ({"BITS": self.bits, "GROUP": self.group} | facts).items()}


@dataclass(frozen=True)
class Layer:
    """One layer; query, key and value are one product, or several whose outputs stand side by side."""

    input_norm: Tensor
    mlp_norm: Tensor
    bias: Tensor
    qkv: tuple[Matrix, ...]
    output: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(frozen=True)
class Weights:
    """Of a whole decoder; cos and sin: tables float32 [positions, head_dim / 2].

    embeddings: of the tokens that the head can say where both are one, else of the whole vocabulary.
    """

    epsilon: float
    cos: Tensor
    sin: Tensor
    norm: Tensor
    head: Matrix
    embeddings: Matrix
    layers: tuple[Layer, ...]

    @property
    def tied(self) -> bool:
        """Whether head and embeddings are the same bytes: a row of one is a row of the other."""
        head, embeddings = self.head.tensors.get("codes"), self.embeddings.tensors.get("codes")
        if head is None or embeddings is None:
            return False
        return (head.file, head.offset) == (embeddings.file, embeddings.offset)

    def tensors(self) -> Iterator[Tensor]:
        return _tensors(self)


def problems_of(weights: Weights, files: Mapping[str, FileEntry], text: TextSpec) -> list[str]:
    """What of the weights does not lie in the bundle's files, or does not fit its decoder, in words."""
    return [*_misplaced(files, weights), *_misfits(text, weights)]


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors anywhere in one of the dataclasses above."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Matrix):
        yield from value.tensors.values()
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Weights | Layer):
        for part in fields(value):
            yield from _tensors(getattr(value, part.name))


def _misplaced(files: Mapping[str, FileEntry], weights: Weights) -> Iterator[str]:
    for tensor in weights.tensors():
        if tensor.file not in files:
            yield f"{tensor.file!r} is not one of the bundle's files"
        elif min((tensor.offset, *tensor.shape)) < 0 or tensor.offset + tensor.num_bytes > files[tensor.file].bytes:
            yield f"a tensor of {list(tensor.shape)} at {tensor.offset} lies beyond the end of {tensor.file}"


def _misfits(text: TextSpec, weights: Weights) -> Iterator[str]:
    """What differs from the sizes of the decoder, which the kernels take for granted."""
    hidden, heads = text.hidden_size, text.num_heads * text.rotary_dim
    qkv = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    wide = text.intermediate_size
    sizes = {"output": (hidden, heads), "gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}
    if len(weights.layers) != text.num_layers:
        yield f"it has {len(weights.layers)} layers, the decoder {text.num_layers}"
    whole: list[tuple[str, Tensor, tuple[int, ...]]] = [("norm", weights.norm, (hidden,))]
    tables = (text.max_position_embeddings, text.head_dim // 2)
    whole += [("cos", weights.cos, tables), ("sin", weights.sin, tables)]
    products: list[tuple[str, tuple[Matrix, ...], tuple[int, int]]] = [
        ("head", (weights.head,), (text.num_logits, hidden))
    ]
    rows = text.num_logits if weights.tied else text.vocab_size
    products.append(("embeddings", (weights.embeddings,), (rows, hidden)))
    for number, layer in enumerate(weights.layers):
        for name in ("input_norm", "mlp_norm"):
            whole.append((f"layers.{number}.{name}", getattr(layer, name), (hidden,)))
        whole.append((f"layers.{number}.bias", layer.bias, (qkv,)))
        products.append((f"layers.{number}.qkv", layer.qkv, (qkv, hidden)))
        products += [(f"layers.{number}.{role}", (getattr(layer, role),), size) for role, size in sizes.items()]
    for name, tensor, shape in whole:
        if tensor.shape != shape:
            yield f"{name} has the shape {list(tensor.shape)}, not {list(shape)}"
        if tensor.dtype not in (("float16", "float32") if name.endswith("bias") else ("float32",)):
            yield f"{name} is {tensor.dtype}"
    for name, parts, (outputs, inputs) in products:
        if sum(part.outputs for part in parts) != outputs or any(part.inputs != inputs for part in parts):
            yield f"{name} is not of {outputs} outputs and {inputs} inputs"
        for part in parts:
            yield from (f"{name}: {problem}" for problem in _ill_stored(part))


def _ill_stored(matrix: Matrix) -> Iterator[str]:
    """What of a matrix's tensors does not have the size that its settings say."""
    count, group = matrix.outputs * matrix.inputs, matrix.group
    groups = matrix.inputs // group if group > 0 else 0
    if not groups or matrix.inputs % group:
        yield f"a group of {group} does not divide {matrix.inputs} inputs"
        return
    codes = {16: ("float16", "float32"), 32: ("float32",)}.get(matrix.bits, ("uint8",))
    types = {"codes": codes, "scales": ("float16",), "zeros": ("uint8",), "order": ("int64",)}
    for name, tensor in matrix.tensors.items():
        if tensor.dtype not in types.get(name, ()):
            yield f"its {name} are {tensor.dtype}"
    elements = {name: math.prod(tensor.shape) for name, tensor in matrix.tensors.items()}
    if matrix.bits >= 16:
        wanted = {"codes": count}
    else:
        wanted = {"codes": count * matrix.bits // 8, "scales": matrix.outputs * groups}
        optional = {"zeros": matrix.outputs * -(-groups * matrix.bits // 8), "order": matrix.inputs}
        wanted |= {name: size for name, size in optional.items() if name in elements}
    if elements != wanted:
        yield f"its tensors have {elements} elements, not {wanted}"
