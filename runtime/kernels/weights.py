"""A decoder's weights in the memory of a GPU: read from the bundle's files where they lie, uploaded once.

What two kernels read is there once: an output head that is tied to the embeddings has their bytes. Kept in another form
than on disk are norms, in the order of a step too; float32 weights, as float16; and the order of reordered inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..backends.buffers import Buffer, Memory
from ..bundle.kernel_set import KernelSet
from ..bundle.kernel_weights import Layer, Matrix, Tensor
from ..errors import BundleError

_ALIGNMENT = 256  # bytes: kernels are compiled for arrays aligned to 16


@dataclass(frozen=True)
class _Form:
    """In which form a tensor is kept. dtype: None is that on disk."""

    convert: Callable[[np.ndarray], np.ndarray]
    dtype: type | None = None


def strands(values: np.ndarray) -> np.ndarray:
    """[..., n] in a step's order: element k stands at (k mod 8) · n / 8 + k div 8."""
    return values.reshape(*values.shape[:-1], -1, 8).swapaxes(-1, -2).reshape(values.shape)


_STORED, _STRANDS = _Form(lambda values: values), _Form(strands)
_HALF, _HALF_OF_COLUMNS = _Form(lambda values: values, np.float16), _Form(np.transpose, np.float16)


def _order(values: np.ndarray) -> np.ndarray:
    if len(values) and not 0 <= values.min() <= values.max() < len(values):  # a kernel would read elsewhere
        raise BundleError("the order of a matrix's inputs names inputs that it does not have. Export the bundle again.")
    return values


_ORDER = _Form(_order, np.int32)
_PLACES = _Form(lambda values: _order(values) % 8 * (values.size // 8) + values // 8, np.int32)


@dataclass(frozen=True)
class DeviceMatrix:
    """A matrix on the device, by addresses; 0 for what it does not have. places: `order` for a step's vectors."""

    spec: Matrix
    codes: int
    scales: int
    zeros: int
    order: int
    places: int


@dataclass(frozen=True)
class StoredNorm:
    """float32 weights of an RMSNorm, in natural order and in a step's."""

    natural: int
    strands: int


@dataclass(frozen=True)
class StoredLayer:
    """One layer on the device."""

    input_norm: StoredNorm
    mlp_norm: StoredNorm
    bias: int
    qkv: tuple[DeviceMatrix, ...]
    output: DeviceMatrix
    gate: DeviceMatrix
    up: DeviceMatrix
    down: DeviceMatrix


class DeviceWeights:
    """All of one decoder, in one buffer. embeddings: None where the head does not have their bytes there anyway."""

    def __init__(self, kernels: KernelSet, memory: Memory) -> None:
        weights = kernels.weights
        arena = _Arena(kernels.folder)
        for place in (True, False):  # first what there is, then where it is
            self.head = arena.matrix(weights.head)
            shared = weights.tied and weights.embeddings.bits <= 16  # in a form that both can be read from
            self.embeddings = arena.matrix(weights.embeddings) if shared else None
            self.norm = arena.norm(weights.norm)
            self.cos, self.sin = arena.tensor(weights.cos), arena.tensor(weights.sin)
            self.layers = tuple(arena.layer(layer) for layer in weights.layers)
            if place:
                self.buffer = arena.upload(memory)
        self.epsilon = weights.epsilon

    @property
    def num_bytes(self) -> int:
        return self.buffer.shape[0]


class _Arena:
    """Collects tensors, then has their addresses in one buffer that `upload` makes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[tuple[Tensor, _Form], int] = {}
        self._size = 0
        self._base = 0

    def layer(self, layer: Layer) -> StoredLayer:
        return StoredLayer(
            self.norm(layer.input_norm),
            self.norm(layer.mlp_norm),
            self.tensor(layer.bias, _HALF),
            tuple(self.matrix(part) for part in layer.qkv),
            *(self.matrix(matrix) for matrix in (layer.output, layer.gate, layer.up, layer.down)),
        )

    def norm(self, tensor: Tensor) -> StoredNorm:
        return StoredNorm(self.tensor(tensor), self.tensor(tensor, _STRANDS))

    def matrix(self, matrix: Matrix) -> DeviceMatrix:
        codes = _STORED
        if matrix.bits == 16:
            codes = _HALF_OF_COLUMNS if matrix.transposed else _HALF
        kept = {"codes": ("codes", codes), "scales": ("scales", _HALF), "zeros": ("zeros", _STORED)}
        kept |= {"order": ("order", _ORDER), "places": ("order", _PLACES)}
        addresses = {
            name: self.tensor(matrix.tensors[stored], form) if stored in matrix.tensors else 0
            for name, (stored, form) in kept.items()
        }
        return DeviceMatrix(matrix, **addresses)

    def tensor(self, tensor: Tensor, form: _Form = _STORED) -> int:
        """The address of a tensor in a form; before `upload` it only asks for it."""
        key = (replace(tensor, shape=(math.prod(tensor.shape),)) if form is not _HALF_OF_COLUMNS else tensor, form)
        if key not in self._offsets:
            self._offsets[key] = self._size
            size = math.prod(tensor.shape) * np.dtype(form.dtype or tensor.dtype).itemsize
            self._size += -(-size // _ALIGNMENT) * _ALIGNMENT
        return self._base + self._offsets[key]

    def upload(self, memory: Memory) -> Buffer:
        buffer = memory.zeros((self._size,), np.uint8)
        self._base = buffer.address
        for (tensor, form), offset in self._offsets.items():
            stored = self._read(tensor)
            kept = np.ascontiguousarray(form.convert(stored), form.dtype or stored.dtype)
            content = kept.reshape(-1).view(np.uint8)
            buffer.rows(offset, offset + len(content)).write(content)
        return buffer

    def _read(self, tensor: Tensor) -> np.ndarray:
        """The tensor as it lies in its file, mapped."""
        content = np.memmap(self._folder / tensor.file, np.uint8, "r", tensor.offset, (tensor.num_bytes,))
        return content.view(tensor.dtype).reshape(tensor.shape)
