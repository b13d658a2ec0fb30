"""DiffFP by budget, which benchmarks compare with: a budget is met with the smallest threshold."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
from largest_changes import budget_threshold, fewest_tokens

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 7))
# Few different values, so that ties are common.
DIFFERENCES = SHAPES.flatmap(lambda shape: arrays(np.float64, shape, elements=st.sampled_from([0, 0.05, 0.1, 1, 2, 9])))


def kept(differences: np.ndarray, threshold: float) -> int:
    """Tokens kept of a clip, by DiffFP's rule written out."""
    first, *others = differences.tolist()
    return len(first) + sum(max(1, sum(value > threshold for value in frame)) for frame in others)


@settings(max_examples=300, deadline=None)
@given(DIFFERENCES, st.integers(0, 40))
def test_budget_is_met_by_the_smallest_threshold(differences: np.ndarray, spare: int) -> None:
    differences[0] = np.inf
    budget = fewest_tokens(*differences.shape) + spare
    threshold = budget_threshold(differences, budget)
    assert threshold >= 0
    assert kept(differences, threshold) <= budget
    if threshold > 0:
        assert kept(differences, np.nextafter(threshold, 0)) > budget
    highest = kept(differences, np.inf)
    assert fewest_tokens(*differences.shape) == highest
    with pytest.raises(ValueError, match=f"fewer than the {highest}"):
        budget_threshold(differences, highest - 1)


def test_without_ties_every_budget_is_used_up() -> None:
    differences = np.random.default_rng(0).random((5, 8))
    differences[0] = np.inf
    for budget in range(12, 41):
        assert kept(differences, budget_threshold(differences, budget)) == budget
