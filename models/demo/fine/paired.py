"""The paired test behind every claimed difference: two ways answer the same questions, and only disagreements count.

Questions about one clip are correlated, so clips are the sampling unit, not answers:

- p is that of the exact sign-flip test: if both ways were equally good, each clip's difference could equally have the
other sign. With one question a clip it is the sign test (exact McNemar).
- The interval is Bonett and Price's for paired proportions (Psychological Methods 2012, with one disagreement of each
  kind added, so that it is never empty), widened by the root of the design effect: the ratio of the variance between
  clips to that of independent answers, if above 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Z = 1.959963984540054  # of 95 %


@dataclass(frozen=True)
class PairedDifference:
    """Second minus first, as shares of all answers. lost: right in the first alone; gained: in the second alone.
    low, high: the 95 % interval. p: two-sided."""

    count: int
    lost: int
    gained: int
    low: float
    high: float
    p: float

    @property
    def value(self) -> float:
        return (self.gained - self.lost) / self.count


def paired_difference(first: ArrayLike, second: ArrayLike, clips: ArrayLike) -> PairedDifference:
    """Compares two ways. first, second: bool [N], whether each answer is right; clips: [N], which clip it is about.

    Raises ValueError if the lengths differ or are 0.
    """
    a, b, groups = np.asarray(first, bool), np.asarray(second, bool), np.asarray(clips)
    if not (a.ndim == 1 and a.shape == b.shape == groups.shape and a.size):
        raise ValueError(f"need one value each for the same answers, not {a.shape}, {b.shape} and {groups.shape}")
    change = b.astype(np.int64) - a
    count, lost, gained = change.size, int((change < 0).sum()), int((change > 0).sum())
    _, index = np.unique(groups, return_inverse=True)
    sums = np.bincount(index, change).astype(np.int64)
    sizes = np.bincount(index)
    share_lost, share_gained = (lost + 1) / (count + 2), (gained + 1) / (count + 2)
    middle = share_gained - share_lost
    error = sqrt((share_gained + share_lost - middle**2) / (count + 2) * _design_effect(change, sums, sizes))
    return PairedDifference(
        count, lost, gained, max(-1.0, middle - _Z * error), min(1.0, middle + _Z * error), sign_flip(sums)
    )


def _design_effect(change: NDArray[np.int64], sums: NDArray[np.int64], sizes: NDArray[np.int64]) -> float:
    """Variance of the mean over clips by that over independent answers; at least 1."""
    mean, clips, answers = change.mean(), len(sums), change.size
    alone = float(((change - mean) ** 2).sum())
    if clips < 2 or alone == 0:
        return 1.0
    together = float(((sums - mean * sizes) ** 2).sum())
    return max(1.0, together / alone * (clips / (clips - 1)) / (answers / (answers - 1)))


def sign_flip(sums: NDArray[np.int64]) -> float:
    """P(|total| is at least what it is) when each of the integers has its sign by a fair coin; 1 if all are 0."""
    reach = int(np.abs(sums).sum())
    chance = np.zeros(2 * reach + 1)  # of every total from -reach to reach
    chance[reach] = 1.0
    for size in np.abs(sums[sums != 0]).tolist():
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
    totals = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(chance[totals >= abs(int(sums.sum()))].sum()))
