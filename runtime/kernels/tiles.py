"""Which of several variants a launch takes: they compute the same in tiles of other sizes.

What the device was tuned for (`tune.py`) serves; without that, fixed rules, good ones on an H200. Tiles
are in the bits of a result, as sums are of other parts: by rounding, the answers of two devices differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..bundle.kernel_set import KernelSpec
from ..bundle.kernel_weights import Matrix
from ..bundle.tuning import TunedKernel

MANY_ROWS = 4
"""From so many rows on, products of a step are those of a prompt; with fewer, a row has the bits that it has alone."""
_FEW_SPLITS, _MANY_SPLITS = 64, 8  # parts of a context that are attended to side by side
_FEW_WORDS, _MOST_WORDS, _ROWS = 64, 256, 4  # of a tile of one vector's products
_MANY_OUTPUTS = 1 << 15
_PROGRAMS, _LARGE_PROGRAMS = 512, 128

Rule = Callable[[Sequence[KernelSpec], int], KernelSpec]


class Tiles:
    """The choice among variants, by what was tuned, else by a rule."""

    def __init__(self, tuned: Iterable[TunedKernel] = ()) -> None:
        self._tuned: dict[str, list[int]] = {}
        for choice in tuned:
            self._tuned.setdefault(choice.kernel, []).append(choice.up_to)

    def of(self, variants: Sequence[KernelSpec], count: int, rule: Rule) -> KernelSpec:
        """The variant for `count` tokens, or rows of a step."""
        tuned = [(up_to, variant) for variant in variants for up_to in self._tuned.get(variant.name, ())]
        if not tuned:
            return rule(variants, count)
        fitting = [choice for choice in tuned if choice[0] >= count]
        return min(fitting, key=_up_to)[1] if fitting else max(tuned, key=_up_to)[1]


def widest(matrix: Matrix) -> Rule:
    """Of a step's products: a row of weights in as few rounds as it takes; if outputs fill the device anyway, small
    tiles, of which the fewest threads have nothing to do."""
    words = matrix.inputs * matrix.bits // 32
    wanted = _FEW_WORDS if matrix.outputs >= _MANY_OUTPUTS else min(1 << (words - 1).bit_length(), _MOST_WORDS)

    def rank(kernel: KernelSpec) -> tuple[int, int]:
        return abs(kernel.tile["C"] - wanted), abs(kernel.tile["BN"] - _ROWS)

    return lambda variants, count: min(variants, key=rank)


def shared_out(outputs: int) -> Rule:
    """Of a few vectors' products: as many programs as fill a device, each with as many rows of weights as there can."""

    def rank(kernel: KernelSpec) -> tuple[int, int]:
        programs = -(-outputs // kernel.tile["BN"]) * kernel.tile["PARTS"]
        return abs(programs - _PROGRAMS), -kernel.tile["BN"]

    return lambda variants, count: min(variants, key=rank)


def largest(outputs: int) -> Rule:
    """Of a prompt's products: the largest tile of which there are enough to fill a device, or the smallest."""

    def rank(kernel: KernelSpec, count: int) -> tuple[bool, int]:
        height, width = kernel.tile["BM"], kernel.tile["BN"]
        fills = -(-count // height) * -(-outputs // width) >= _LARGE_PROGRAMS
        return not fills, -height * width if fills else height * width

    return lambda variants, count: min(variants, key=lambda kernel: rank(kernel, count))


def squarest(variants: Sequence[KernelSpec], count: int) -> KernelSpec:
    """Of a prompt's attention: as many tokens as positions at once, which leaves most registers."""
    return min(variants, key=lambda kernel: (abs(kernel.tile["BM"] - kernel.tile["BT"]), kernel.tile["BM"]))


def most_split(variants: Sequence[KernelSpec], rows: int) -> KernelSpec:
    """Of a step's attention: more parts where there are few rows to fill the device."""
    wanted = _FEW_SPLITS if rows < MANY_ROWS else _MANY_SPLITS
    return min(variants, key=lambda kernel: abs(kernel.tile["SPLITS"] - wanted))


def _up_to(choice: tuple[int, KernelSpec]) -> int:
    return choice[0]
