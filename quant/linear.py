"""A quantized linear layer in numpy, independent of the file format it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .grid import Grid


@dataclass(frozen=True)
class LayerError:
    """The output error of a quantized layer on its calibration inputs x, with H = Σ w·x·xᵀ / Σ w.

    gptq, rtn: tr((W − Q) H (W − Q)ᵀ), of the codes kept and of plain round-to-nearest on a min-max grid.
    signal: tr(W H Wᵀ), so that gptq / signal is a relative squared error.
    damp: the share of H's median diagonal that had to be added to it before its Cholesky factorization succeeded.
    """

    gptq: float
    rtn: float
    signal: float
    damp: float = 0.0


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """A weight [out, in] as codes on a grid: W[n, k] = scales[n, g] · (codes[n, k] − zeros[n, g]), g = k // group.

    codes: uint8 [out, in]. scales: float16 [out, groups]. zeros: uint8 [out, groups].
    bits: of a code; every code and zero is below 2**bits.
    order: int64 [in], or None for the identity. Column k of codes multiplies input x[order[k]]. Only checkpoints
        quantized elsewhere with activation order have one: gather x with it, then multiply.
    bias: float32 [out] or None.
    error: figures of the solver, None for a layer read from a file.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float16]
    zeros: npt.NDArray[np.uint8]
    bits: int
    order: npt.NDArray[np.int64] | None = None
    bias: npt.NDArray[np.float32] | None = None
    error: LayerError | None = None

    @property
    def out_features(self) -> int:
        return int(self.codes.shape[0])

    @property
    def in_features(self) -> int:
        return int(self.codes.shape[1])

    @property
    def group_size(self) -> int:
        return self.in_features // int(self.scales.shape[1])

    @property
    def symmetric(self) -> bool:
        """Whether every zero is the middle code, so that formats may omit the zeros."""
        return bool((self.zeros == 2 ** (self.bits - 1)).all())

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.group_size, self.symmetric)

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The weight, float32 [out, in], with its columns in the order of the layer's own input."""
        groups = self.codes.reshape(*self.scales.shape, -1).astype(np.float32)
        groups -= self.zeros[..., None]
        groups *= self.scales[..., None].astype(np.float32)
        weight = groups.reshape(self.codes.shape)
        if self.order is None:
            return weight
        original = np.empty_like(weight)
        original[:, self.order] = weight
        return original

    def rows(self, start: int, stop: int) -> QuantizedLinear:
        """The layer's output rows start…stop−1, without error figures, which were for all rows."""
        return self.chosen(slice(start, stop))

    def chosen(self, rows: slice | npt.NDArray[np.int64]) -> QuantizedLinear:
        """The layer with these output rows alone, without error figures, which were for all rows."""
        return replace(
            self,
            codes=self.codes[rows],
            scales=self.scales[rows],
            zeros=self.zeros[rows],
            bias=None if self.bias is None else self.bias[rows],
            error=None,
        )


def concatenated(parts: Sequence[QuantizedLinear]) -> QuantizedLinear:
    """Layers that read one input as one layer, output rows one below the other; their errors add up.

    Raises ValueError when they differ in bits, groups, input order, or in having a bias.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    shared = [(part.bits, part.scales.shape[1], part.bias is None) for part in parts]
    if any(facts != shared[0] for facts in shared) or not all(_same_order(p.order, first.order) for p in parts):
        raise ValueError("layers of different bits, groups, input order or bias cannot be one product")
    errors = [part.error for part in parts if part.error is not None]
    return replace(
        first,
        codes=np.concatenate([part.codes for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        zeros=np.concatenate([part.zeros for part in parts]),
        bias=None if first.bias is None else np.concatenate([part.bias for part in parts if part.bias is not None]),
        error=_sum(errors) if len(errors) == len(parts) else None,
    )


def _same_order(a: npt.NDArray[np.int64] | None, b: npt.NDArray[np.int64] | None) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.array_equal(a, b))


def _sum(errors: Sequence[LayerError]) -> LayerError:
    return LayerError(
        gptq=sum(error.gptq for error in errors),
        rtn=sum(error.rtn for error in errors),
        signal=sum(error.signal for error in errors),
        damp=max(error.damp for error in errors),
    )
