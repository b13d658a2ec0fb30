"""Random weights for the kernels' tests, packed as a bundle has them, and the float32 matrices they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vl3edge.quant.linear import QuantizedLinear
from vl3edge.quant.packing import from_matmul_nbits, to_matmul_nbits


def strands(x: np.ndarray) -> np.ndarray:
    """[..., n] in a step's order: element k at (k mod 8) · n / 8 + k div 8."""
    return x.reshape(*x.shape[:-1], -1, 8).swapaxes(-1, -2).reshape(x.shape).copy()


@dataclass(frozen=True, eq=False)
class Weights:
    """One matrix [N, K] as the kernels take it. dense: float32, its columns in the order of the vectors."""

    shape: tuple[int, int]
    codes: np.ndarray
    scales: np.ndarray | None
    zeros: np.ndarray | None
    order: np.ndarray | None
    bits: int
    group: int
    dense: np.ndarray

    @property
    def tensors(self) -> tuple[np.ndarray | None, ...]:
        return self.codes, self.scales, self.zeros

    @property
    def places(self) -> np.ndarray | None:
        """`order` for a step's vectors."""
        if self.order is None:
            return None
        size = self.shape[1]
        return (self.order % 8 * (size // 8) + self.order // 8).astype(np.int32)

    def settings(self, prefix: str = "") -> dict[str, Any]:
        """The kernel's constants that describe it."""
        return {
            f"{prefix}BITS": self.bits,
            f"{prefix}GROUP": self.group,
            f"{prefix}ZEROS": self.zeros is not None,
            f"{prefix}ORDER": self.order is not None,
        }


def quantized(layer: QuantizedLinear) -> Weights:
    """A layer as a bundle stores it."""
    packed = to_matmul_nbits(layer)
    read = from_matmul_nbits(packed)
    group = packed.block_size
    values = (read.codes.astype(np.float32) - read.zeros.repeat(group, 1)) * read.scales.astype(np.float32).repeat(
        group, 1
    )
    dense = values
    if packed.order is not None:
        dense = np.empty_like(values)
        dense[:, packed.order] = values
    words = np.ascontiguousarray(packed.packed.reshape(len(values), -1)).view(np.int32)
    order = None if packed.order is None else packed.order.astype(np.int32)
    return Weights(values.shape, words, packed.scales, packed.zero_points, order, packed.bits, group, dense)


def random_weights(
    rng: np.random.Generator, outputs: int, inputs: int, bits: int, group: int, zeros: bool = False, order: bool = False
) -> Weights:
    """Codes over their whole range; bits 16 are float16 weights."""
    if bits == 16:
        values = (rng.standard_normal((outputs, inputs)) / 8).astype(np.float16)
        return Weights(values.shape, values.view(np.int32), None, None, None, 16, group, values.astype(np.float32))
    groups, top = inputs // group, 2**bits
    middle = np.full((outputs, groups), top // 2, np.uint8)
    layer = QuantizedLinear(
        codes=rng.integers(0, top, (outputs, inputs), np.uint8),
        scales=(rng.random((outputs, groups)) / top).astype(np.float16),
        zeros=rng.integers(0, top, (outputs, groups), np.uint8) if zeros else middle,
        bits=bits,
        order=rng.permutation(inputs) if order else None,
    )
    return quantized(layer)


def assert_near(got: np.ndarray, wanted: np.ndarray, bound: float) -> None:
    """The largest difference, as a share of the largest wanted value."""
    scale = np.abs(wanted).max()
    worst = np.abs(got.astype(np.float64) - wanted).max() / scale
    assert worst <= bound, f"largest difference {worst:.2e} of {scale:.3g}, allowed {bound:.0e}"
