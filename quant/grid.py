"""The values a quantized weight may take, and the choice of each group's scale and zero point.

A weight is `scale · (code − zero)`, with a code of 2, 3, 4 or 8 bits and one scale and zero per `group_size`
consecutive input columns of one output row. Scales are rounded to float16 as soon as they are chosen, because
float16 is what every file format stores: an error that is first seen when the file is read back is an error
nothing can compensate.

A symmetric grid fixes the zero at the middle code (8 of 0…15). An asymmetric one places it at 1…max and never
at 0: GPTQ's first file format stores zero − 1, and readers disagree on whether −1 means 0 or 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .errors import QuantError

BITS = (2, 3, 4, 8)
WHOLE_ROW = -1  # the group size that means one group per row, as GPTQ's own files write it

_CHUNK_ELEMENTS = 1 << 21  # of weights looked at together, so that a search's temporaries stay near the cache
_SMALLEST_SCALE = 2.0**-24  # the smallest float16 above zero
_LARGEST_SCALE = 65504.0


@dataclass(frozen=True)
class Grid:
    """bits: 2, 3, 4 or 8. group_size: columns per scale, -1 for whole rows. symmetric: the zero is fixed."""

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise QuantError(f"bits must be one of {', '.join(map(str, BITS))}, not {self.bits}")
        if self.group_size != WHOLE_ROW and self.group_size < 1:
            raise QuantError(f"group_size must be positive, or -1 for whole rows, not {self.group_size}")

    @property
    def max_code(self) -> int:
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid: one more code lies below it than above."""
        return 2 ** (self.bits - 1)

    def columns_per_group(self, in_features: int) -> int:
        """Raises QuantError when the groups do not divide the columns: GPTQ's files have no partial group."""
        size = in_features if self.group_size == WHOLE_ROW else self.group_size
        if in_features % size:
            divisors = [g for g in (16, 32, 64, 128, 256) if in_features % g == 0]
            hint = f"group sizes that do: {', '.join(map(str, [*divisors, WHOLE_ROW]))}"
            raise QuantError(f"group size {size} does not divide {in_features} input columns; {hint}")
        return size


@dataclass(frozen=True)
class Scaling:
    """scales: float, float16 values, [out, groups]. zeros: float, whole numbers, [out, groups]."""

    scales: torch.Tensor
    zeros: torch.Tensor


def min_max(weight: torch.Tensor, grid: Grid) -> Scaling:
    """The plain grid that just spans each group's values of weight [out, in]: round-to-nearest's choice."""
    groups = _grouped(weight, grid)
    scales, zeros = _candidate(_spans(groups, grid), grid, 1.0)
    return Scaling(scales, zeros)


def search(weight: torch.Tensor, grid: Grid, importance: torch.Tensor | None = None) -> Scaling:
    """The grid with the least squared rounding error per group, among shrunken versions of the plain one.

    weight [out, in]. importance [in], not negative: the weight of each column's squared error, such as
    `Factor.importance`; None counts every column alike. A grid narrower than the values clips the largest,
    and gains precision for all others.
    """
    groups = _grouped(weight, grid)
    if importance is not None:
        importance = importance.to(groups.dtype).reshape(groups.shape[1:])
    scales = torch.empty(groups.shape[:2], dtype=groups.dtype, device=groups.device)
    zeros = torch.empty_like(scales)
    rows = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    for start in range(0, groups.shape[0], rows):
        part = slice(start, start + rows)
        scales[part], zeros[part] = _least_error(groups[part], grid, importance)
    return Scaling(scales, zeros)


def nearest(weight: torch.Tensor, scaling: Scaling, grid: Grid) -> torch.Tensor:
    """Codes, uint8 [out, in], of the grid values nearest to weight [out, in]."""
    groups = _grouped(weight, grid)
    return (
        _codes(groups, scaling.scales[..., None], scaling.zeros[..., None], grid).reshape(weight.shape).byte()
    )


def values(codes: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """The weights [out, in] that codes [out, in] stand for, in the scales' dtype."""
    grouped = codes.to(scaling.scales.dtype).reshape(*scaling.scales.shape, -1)
    return ((grouped - scaling.zeros[..., None]) * scaling.scales[..., None]).reshape(codes.shape)


def _grouped(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    return weight.reshape(weight.shape[0], -1, grid.columns_per_group(weight.shape[1]))


def _codes(groups: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, grid: Grid) -> torch.Tensor:
    return torch.round(groups / scales).add_(zeros).clamp_(0, grid.max_code)


def _spans(groups: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and highest value of each group, zero included, since zero must be representable."""
    if grid.symmetric:
        high = groups.abs().amax(dim=-1)
        return -high, high
    return groups.amin(dim=-1).clamp_max(0), groups.amax(dim=-1).clamp_min(0)


def _candidate(
    spans: tuple[torch.Tensor, torch.Tensor], grid: Grid, shrink: float
) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = spans
    scales = ((high - low) * (shrink / grid.max_code)).clamp(_SMALLEST_SCALE, _LARGEST_SCALE)
    scales = scales.half().to(high.dtype)
    if grid.symmetric:
        return scales, torch.full_like(scales, grid.middle)
    return scales, torch.round(-low * shrink / scales).clamp_(1, grid.max_code)


def _shrinks(grid: Grid) -> Iterator[float]:
    """The plain grid, then from one whose last code reaches the largest value to one that clips it hard."""
    yield 1.0
    largest = grid.max_code / (grid.max_code - 1) if grid.symmetric else 1.0
    smallest = {2: 0.3, 3: 0.35, 4: 0.4, 8: 0.85}[grid.bits]
    steps = 40
    for step in range(steps + 1):
        yield largest + (smallest - largest) * step / steps


def _least_error(
    groups: torch.Tensor, grid: Grid, importance: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    spans = _spans(groups, grid)
    best_scales, best_zeros = _candidate(spans, grid, 1.0)
    best_error = torch.full_like(best_scales, torch.inf)
    for shrink in _shrinks(grid):
        scales, zeros = _candidate(spans, grid, shrink)
        error = _codes(groups, scales[..., None], zeros[..., None], grid)
        error.sub_(zeros[..., None]).mul_(scales[..., None]).sub_(groups).square_()
        if importance is not None:
            error.mul_(importance)
        total = error.sum(dim=-1)
        better = total < best_error
        best_error = torch.where(better, total, best_error)
        best_scales = torch.where(better, scales, best_scales)
        best_zeros = torch.where(better, zeros, best_zeros)
    return best_scales, best_zeros
