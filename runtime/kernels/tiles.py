"""Which of several variants a launch takes: they compute the same in tiles of other sizes.

What the device was tuned for (`tune.py`) serves; without that, fixed rules, which no device has been asked about. Tiles
are in the bits of a result, as sums are of other parts: by rounding, the answers of two devices differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..bundle.kernel_set import KernelSpec
from ..bundle.tuning import TunedKernel

MANY_ROWS = 4
"""From so many rows on, products of a step are those of a prompt; with fewer, a row has the bits that it has alone."""
_FEW_SPLITS, _MANY_SPLITS = 32, 8  # parts of a context that are attended to side by side
_PREFERRED_WORDS = 256

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


def widest(variants: Sequence[KernelSpec], count: int) -> KernelSpec:
    """Of a step's products: about so many words at once."""
    return min(variants, key=lambda kernel: (abs(kernel.tile["C"] - _PREFERRED_WORDS), kernel.tile["BN"]))


def tallest(variants: Sequence[KernelSpec], count: int) -> KernelSpec:
    """Of a prompt's kernels: the lowest tile that takes `count` tokens at once, or the highest; of those the widest."""

    def rank(kernel: KernelSpec) -> tuple[bool, int, int]:
        height = kernel.tile["BM"]
        return height < count, height if height >= count else -height, -kernel.tile.get("BN", kernel.tile.get("BT", 0))

    return min(variants, key=rank)


def most_split(variants: Sequence[KernelSpec], rows: int) -> KernelSpec:
    """Of a step's attention: more parts where there are few rows to fill the device."""
    wanted = _FEW_SPLITS if rows < MANY_ROWS else _MANY_SPLITS
    return min(variants, key=lambda kernel: abs(kernel.tile["SPLITS"] - wanted))


def _up_to(choice: tuple[int, KernelSpec]) -> int:
    return choice[0]
