"""Codes as bit strings, in the two forms they are stored in: GPTQ checkpoints and ONNX Runtime's MatMulNBits.

Both are little-endian bit strings, code after code, the first in the lowest bits; at 3 bits a code of a GPTQ file
straddles two words. GPTQ runs along the inputs of one output (zeros: along the outputs) in 32-bit words, MatMulNBits
along the inputs of one block in bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from .errors import QuantError
from .linear import QuantizedLinear

ZeroFormat = Literal["v1", "v2"]  # of qzeros: v1 holds zero − 1, v2 the zero itself

_MATMUL_BITS = (2, 4, 8)
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 256


@dataclass(frozen=True, eq=False)
class GptqTensors:
    """One layer of a GPTQ checkpoint, under the names and in the shapes of its files.

    qweight: int32 [in·bits/32, out]. qzeros: int32 [groups, out·bits/32]. scales: float16 [groups, out].
    g_idx: int32 [in], the group of each input column.
    """

    qweight: npt.NDArray[np.int32]
    qzeros: npt.NDArray[np.int32]
    scales: npt.NDArray[np.float16]
    g_idx: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class MatMulNBitsTensors:
    """One layer as com.microsoft.MatMulNBits takes it (K inputs, N outputs, blocks of b inputs).

    packed: uint8 [N, K/b, b·bits/8]. scales: float16 [N, K/b]; cast them to the activations' type.
    zero_points: uint8 [N, ceil(K/b·bits/8)], or None where all are the middle code, the operator's default.
    order: int64 [K] or None: Gather the input's columns with it first. Never give the operator a g_idx: with packed
        zero points ONNX Runtime's CPU kernel is silently wrong.
    """

    packed: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float16]
    zero_points: npt.NDArray[np.uint8] | None
    bits: int
    block_size: int
    order: npt.NDArray[np.int64] | None

    @property
    def num_bytes(self) -> int:
        parts = (self.packed, self.scales, self.zero_points, self.order)
        return sum(part.nbytes for part in parts if part is not None)


def to_gptq(linear: QuantizedLinear, zero_format: ZeroFormat = "v1") -> GptqTensors:
    """Packs a layer for a GPTQ checkpoint.

    Raises QuantError when inputs or outputs do not fill whole words, and for a zero point that v1 cannot hold.
    """
    if zero_format == "v1" and not linear.zeros.all():
        raise QuantError("a zero point of 0 has no agreed form in GPTQ's v1 format; write v2")
    group_of_column = np.arange(linear.in_features, dtype=np.int32) // linear.group_size
    codes, g_idx = linear.codes, group_of_column
    if linear.order is not None:
        codes, g_idx = np.empty_like(codes), np.empty_like(group_of_column)
        codes[:, linear.order], g_idx[linear.order] = linear.codes, group_of_column
    stored_zeros = linear.zeros.T - np.uint8(zero_format == "v1")
    return GptqTensors(
        qweight=_pack_words(codes.T, linear.bits),
        qzeros=np.ascontiguousarray(_pack_words(stored_zeros.T, linear.bits).T),
        scales=np.ascontiguousarray(linear.scales.T),
        g_idx=g_idx,
    )


def from_gptq(tensors: GptqTensors, bits: int, zero_format: ZeroFormat) -> QuantizedLinear:
    """Unpacks a layer of a GPTQ checkpoint. A g_idx that is not sorted becomes the layer's `order`.

    A v1 zero of −1 is read as 0, which is what its writer meant.
    Raises QuantError when shapes disagree or the groups are of unequal size.
    """
    groups, outputs = tensors.scales.shape
    inputs = len(tensors.g_idx)
    if inputs * bits % 32 or outputs * bits % 32:
        raise QuantError(f"{inputs} inputs and {outputs} outputs of {bits} bits do not fill words of 32 bits")
    expected = {"qweight": (inputs * bits // 32, outputs), "qzeros": (groups, outputs * bits // 32)}
    for name, shape in expected.items():
        if getattr(tensors, name).shape != shape:
            raise QuantError(f"{name} has shape {getattr(tensors, name).shape}, not {shape} at {bits} bits")
    sizes = np.bincount(tensors.g_idx, minlength=groups) if tensors.g_idx.min(initial=0) >= 0 else np.zeros(0)
    if len(sizes) != groups or inputs % groups or not (sizes == inputs // groups).all():
        raise QuantError(f"g_idx does not split {inputs} columns into {groups} groups of one size")
    codes = np.ascontiguousarray(unpack_words(tensors.qweight, bits).T)
    order = np.argsort(tensors.g_idx, kind="stable")
    identity = bool((order == np.arange(inputs)).all())
    stored_zeros = unpack_words(tensors.qzeros.T, bits)
    return QuantizedLinear(
        codes=codes if identity else codes[:, order],
        scales=np.ascontiguousarray(tensors.scales.T.astype(np.float16)),
        zeros=(stored_zeros + np.uint8(zero_format == "v1")) & np.uint8(2**bits - 1),
        bits=bits,
        order=None if identity else order,
    )


def to_matmul_nbits(linear: QuantizedLinear, largest_block: int = 128) -> MatMulNBitsTensors:
    """Packs a layer for MatMulNBits.

    The operator supports 2, 4 and 8 bits and blocks that are powers of two from 16 on: 3-bit codes are stored as 4-bit
    ones, and a group of another size is split into several blocks of the same scale.
    Raises QuantError for groups that cannot be cut so.
    """
    if linear.bits not in _MATMUL_BITS:
        linear = widened(linear, next(bits for bits in _MATMUL_BITS if bits > linear.bits))
    block = min(linear.group_size & -linear.group_size, largest_block, _LARGEST_BLOCK)
    if block < _SMALLEST_BLOCK:
        raise QuantError(f"MatMulNBits has no blocks for groups of {linear.group_size}: use a multiple of 16")
    repeats = linear.group_size // block
    zeros = linear.zeros.repeat(repeats, axis=1)
    packed = _pack_bytes(linear.codes, linear.bits)
    return MatMulNBitsTensors(
        packed=packed.reshape(linear.out_features, -1, block * linear.bits // 8),
        scales=linear.scales.repeat(repeats, axis=1),
        zero_points=None if linear.symmetric else _pack_bytes(zeros, linear.bits),
        bits=linear.bits,
        block_size=block,
        order=linear.order,
    )


def from_matmul_nbits(tensors: MatMulNBitsTensors) -> QuantizedLinear:
    """Unpacks what `to_matmul_nbits` packed, or any other weight of that operator; the blocks are its groups."""
    outputs, blocks = tensors.scales.shape
    codes = _unpack_bytes(tensors.packed.reshape(outputs, -1), tensors.bits)
    if tensors.zero_points is None:
        zeros = np.full((outputs, blocks), 2 ** (tensors.bits - 1), np.uint8)
    else:
        zeros = _unpack_bytes(tensors.zero_points.reshape(outputs, -1), tensors.bits)[:, :blocks]
    return QuantizedLinear(codes, tensors.scales, zeros, tensors.bits, tensors.order)


def widened(linear: QuantizedLinear, bits: int) -> QuantizedLinear:
    """The same weights in wider codes, middle code on middle code: a symmetric layer stays symmetric."""
    shift = np.uint8(2 ** (bits - 1) - 2 ** (linear.bits - 1))
    return replace(linear, codes=linear.codes + shift, zeros=linear.zeros + shift, bits=bits)


def _pack_words(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    """uint8 [n, m] -> int32 [n·bits/32, m], packed along the first axis."""
    per_cycle = 32 // math.gcd(32, bits)  # after so many codes, a word and a code end together
    words_per_cycle = per_cycle * bits // 32
    if codes.shape[0] % per_cycle:
        raise QuantError(
            f"GPTQ files pack {per_cycle} codes of {bits} bits together, which do not divide {codes.shape[0]}"
        )
    cycles = codes.reshape(-1, per_cycle, codes.shape[1])
    words = np.zeros((cycles.shape[0], words_per_cycle, codes.shape[1]), dtype=np.uint32)
    for index in range(per_cycle):
        word, shift = divmod(index * bits, 32)
        column = cycles[:, index].astype(np.uint32)
        words[:, word] |= column << np.uint32(shift)
        if shift + bits > 32:
            words[:, word + 1] |= column >> np.uint32(32 - shift)
    return words.reshape(-1, codes.shape[1]).view(np.int32)


def unpack_words(words: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    """int32 [n·bits/32, m] -> uint8 [n, m]."""
    per_cycle = 32 // math.gcd(32, bits)
    words_per_cycle = per_cycle * bits // 32
    if words.shape[0] % words_per_cycle:
        raise QuantError(f"{words.shape[0]} words do not hold whole codes of {bits} bits")
    cycles = np.ascontiguousarray(words).view(np.uint32).reshape(-1, words_per_cycle, words.shape[1])
    codes = np.empty((cycles.shape[0], per_cycle, words.shape[1]), dtype=np.uint8)
    for index in range(per_cycle):
        word, shift = divmod(index * bits, 32)
        column = cycles[:, word] >> np.uint32(shift)
        if shift + bits > 32:
            column |= cycles[:, word + 1] << np.uint32(32 - shift)
        codes[:, index] = column & np.uint32(2**bits - 1)
    return codes.reshape(-1, words.shape[1])


def _pack_bytes(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """uint8 [n, m] -> uint8 [n, ceil(m·bits/8)], packed along the last axis, the missing codes as 0."""
    per_byte = 8 // bits
    missing = -codes.shape[1] % per_byte
    padded = np.pad(codes, ((0, 0), (0, missing))) if missing else codes
    packed = padded[:, ::per_byte].copy()
    for index in range(1, per_byte):
        packed |= padded[:, index::per_byte] << np.uint8(index * bits)
    return packed


def _unpack_bytes(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """uint8 [n, m] -> uint8 [n, m·8/bits], the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (packed[..., None] >> shifts & np.uint8(2**bits - 1)).reshape(len(packed), -1)
