"""The paired test behind every claimed difference: two ways answer the same questions, and only disagreements count.

Questions about one clip are correlated, so clips are the sampling unit, not answers:

- p is that of the exact sign-flip test: if both ways were equally good, each clip's difference could equally have the
  other sign. With one question a clip it is the sign test (exact McNemar). Scores between 0 and 1 are counted in
  hundredths, rounded for each clip.
- The interval is Bonett and Price's for paired proportions (Psychological Methods 2012, with one disagreement of each
  kind added, so that it is never empty), widened by the root of the design effect: the ratio of the variance between
  clips to that of independent answers, if above 1. Its formula takes squares of differences, so it serves scores, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Z = 1.959963984540054  # of 95 %
_STEPS = 100  # of a score, in the sign-flip test


@dataclass(frozen=True)
class PairedDifference:
    """Second minus first, as shares of all answers. value: the mean. lost, gained: answers that the first alone has
    right, and the second alone; of scores, those that are lower and higher. low, high: the 95 % interval. p: two-sided.
    """

    count: int
    value: float
    lost: int
    gained: int
    low: float
    high: float
    p: float


def paired_difference(first: ArrayLike, second: ArrayLike, clips: ArrayLike) -> PairedDifference:
    """Compares two ways. first, second: [N], whether each answer is right, or its score from 0 to 1; clips: [N], which
    clip it is about.

    Raises ValueError if the lengths differ or are 0, or a score is not from 0 to 1.
    """
    a, b, groups = np.asarray(first, np.float64), np.asarray(second, np.float64), np.asarray(clips)
    if not (a.ndim == 1 and a.shape == b.shape == groups.shape and a.size):
        raise ValueError(f"need one value each for the same answers, not {a.shape}, {b.shape} and {groups.shape}")
    if not (np.minimum(a, b).min() >= 0 and np.maximum(a, b).max() <= 1):
        raise ValueError("scores are from 0 to 1")
    change = b - a
    count, lost, gained = change.size, int((change < 0).sum()), int((change > 0).sum())
    _, index = np.unique(groups, return_inverse=True)
    sums = np.bincount(index, change).astype(np.float64)
    sizes = np.bincount(index).astype(np.int64)
    middle = float(change.sum()) / (count + 2)
    spread = (float((change**2).sum()) + 2) / (count + 2) - middle**2
    error = sqrt(spread / (count + 2) * _design_effect(change, sums, sizes))
    steps = 1 if (change == np.rint(change)).all() else _STEPS
    p = sign_flip(np.rint(sums * steps).astype(np.int64))
    low, high = max(-1.0, middle - _Z * error), min(1.0, middle + _Z * error)
    return PairedDifference(count, float(change.mean()), lost, gained, low, high, p)


def _design_effect(change: NDArray[np.float64], sums: NDArray[np.float64], sizes: NDArray[np.int64]) -> float:
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
