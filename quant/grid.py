"""The values a quantized weight may take, and the choice of each group's scale and zero point.

A weight is `scale · (code − zero)`, with a code of 2, 3, 4 or 8 bits and one scale and zero per `group_size`
consecutive input columns of one output row. Scales are rounded to float16 as soon as they are chosen, because float16
is what every file format stores: an error that only shows when the file is read back cannot be compensated.

A symmetric grid fixes the zero at the middle code (8 of 0…15). An asymmetric one places it at 1…max and never at 0:
GPTQ's first file format stores zero − 1, and readers disagree on whether −1 means 0 or 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .errors import QuantError

BITS = (2, 3, 4, 8)
WHOLE_ROW = -1  # the group size that means one group per row, as GPTQ's own files write it

_SHRINK_STEPS = 40
_CHUNK_ELEMENTS = 1 << 17  # weights searched at once, so that temporaries stay in the cache
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
    """The grid that just spans each group's values of weight [out, in], as round-to-nearest uses."""
    scales, zeros = _plain(_grouped(weight, grid), grid)
    return Scaling(_stored(scales), zeros)


def search(weight: torch.Tensor, grid: Grid, importance: torch.Tensor | None = None) -> Scaling:
    """The grid with the least squared rounding error per group, among shrunken versions of the plain one.

    weight [out, in]. importance [in], not negative: the weight of each column's squared error, such as
    `Factor.importance`; None counts every column alike. A grid narrower than the values clips the largest, and gains
    precision for all others.
    """
    groups = _grouped(weight, grid)
    if importance is not None:
        importance = importance.to(groups.dtype).reshape(groups.shape[1:])
    scales = torch.empty(groups.shape[:2], dtype=groups.dtype, device=groups.device)
    zeros = torch.empty_like(scales)
    rows = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    for start in range(0, groups.shape[0], rows):
        part = slice(start, start + rows)
        best = _least_error(groups[part], grid, importance)
        scales[part], zeros[part] = best.scales, best.zeros
    return Scaling(scales, zeros)


def nearest(weight: torch.Tensor, scaling: Scaling, grid: Grid) -> torch.Tensor:
    """Codes, uint8 [out, in], of the grid values nearest to weight [out, in]."""
    groups = _grouped(weight, grid)
    codes = _codes(groups, scaling.scales[..., None], scaling.zeros[..., None], grid)
    return codes.reshape(weight.shape).byte()


def values(codes: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """The weights [out, in] that codes [out, in] stand for, in the scales' dtype."""
    grouped = codes.to(scaling.scales.dtype).reshape(*scaling.scales.shape, -1)
    return ((grouped - scaling.zeros[..., None]) * scaling.scales[..., None]).reshape(codes.shape)


def _grouped(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    return weight.reshape(weight.shape[0], -1, grid.columns_per_group(weight.shape[1]))


def _plain(groups: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales, not rounded yet, and zeros that span each group and the zero between its values."""
    if grid.symmetric:
        scales = groups.abs().amax(dim=-1) * (2 / grid.max_code)
        return scales.clamp_min_(_SMALLEST_SCALE), torch.full_like(scales, grid.middle)
    low = groups.amin(dim=-1).clamp_max_(0)
    scales = ((groups.amax(dim=-1).clamp_min_(0) - low) / grid.max_code).clamp_min_(_SMALLEST_SCALE)
    return scales, torch.round(-low / scales).clamp_(1, grid.max_code)


def _stored(scales: torch.Tensor) -> torch.Tensor:
    return scales.clamp(_SMALLEST_SCALE, _LARGEST_SCALE).half().to(scales.dtype)


def _shrinks(grid: Grid) -> Iterator[float]:
    """From a grid whose last code reaches the largest value to one that clips it hard."""
    largest = grid.max_code / (grid.max_code - 1) if grid.symmetric else 1.0
    smallest = {2: 0.3, 3: 0.35, 4: 0.4, 8: 0.85}[grid.bits]
    for step in range(_SHRINK_STEPS + 1):
        yield largest + (smallest - largest) * step / _SHRINK_STEPS


def _least_error(groups: torch.Tensor, grid: Grid, importance: torch.Tensor | None) -> Scaling:
    """The best of the shrunken grids; scales are rounded to float16 only when the best is known.

    In units of the plain scale, every candidate is a single number for all groups, several times as fast as a scale per
    group. Rounding can make an 8-bit grid worse than the plain one, which is checked at the end.
    """
    base, zeros = _plain(groups, grid)
    units = groups / base[..., None]
    wanted, error = torch.empty_like(units), torch.empty_like(units)
    best_error = torch.full_like(base, torch.inf)
    best_shrink = torch.ones_like(base)
    for shrink in _shrinks(grid):
        torch.add(zeros[..., None], units, alpha=1 / shrink, out=wanted)
        torch.round(wanted, out=error).clamp_(0, grid.max_code).sub_(wanted).square_()
        total = _total(error, importance).mul_(shrink**2)
        better = total < best_error
        best_error = torch.where(better, total, best_error)
        best_shrink.masked_fill_(better, shrink)
    chosen, plain = (Scaling(_stored(scales), zeros) for scales in (base * best_shrink, base))
    worse = _error(groups, chosen, grid, importance) > _error(groups, plain, grid, importance)
    return Scaling(torch.where(worse, plain.scales, chosen.scales), zeros)


def _total(error: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    return (error if importance is None else error.mul_(importance)).sum(dim=-1)


def _error(groups: torch.Tensor, scaling: Scaling, grid: Grid, importance: torch.Tensor | None) -> torch.Tensor:
    scales, zeros = scaling.scales[..., None], scaling.zeros[..., None]
    rounded = _codes(groups, scales, zeros, grid).sub_(zeros).mul_(scales)
    return _total(rounded.sub_(groups).square_(), importance)


def _codes(groups: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, grid: Grid) -> torch.Tensor:
    return torch.round(groups / scales).add_(zeros).clamp_(0, grid.max_code)
