"""The paired test: against every sign tried by hand, the binomial test, and Bonett and Price's formula."""

from __future__ import annotations

import itertools
from math import comb, sqrt

import numpy as np
import pytest

from vl3edge.runtime.evaluate.paired import paired_difference, sign_flip


@pytest.mark.parametrize("seed", range(4))
def test_sign_flip_equals_trying_every_sign(seed: int) -> None:
    sums = np.random.default_rng(seed).integers(-4, 5, size=9)
    totals = [abs(sum(sign * value for sign, value in zip(signs, sums, strict=True))) for signs in _signs(9)]
    assert sign_flip(sums) == pytest.approx(np.mean([total >= abs(sums.sum()) for total in totals]), abs=1e-12)


def _signs(count: int) -> itertools.product:
    return itertools.product((1, -1), repeat=count)


@pytest.mark.parametrize(("lost", "gained"), [(15, 5), (9, 0), (1, 3), (0, 0), (6, 6)])
def test_one_question_a_clip_is_mcnemars_exact_test(lost: int, gained: int) -> None:
    """p is twice the binomial tail, and the interval is the published one: p12 = (b + 1) / (n + 2) and so on."""
    count = 110
    first = np.array([True] * lost + [False] * gained + [True] * (count - lost - gained))
    second = np.array([False] * lost + [True] * gained + [True] * (count - lost - gained))
    result = paired_difference(first, second, np.arange(count))
    changed, fewer = lost + gained, min(lost, gained)
    tail = sum(comb(changed, k) for k in range(fewer + 1)) / 2**changed
    assert result.p == pytest.approx(min(1.0, 2 * tail))
    assert (result.lost, result.gained, result.count) == (lost, gained, count)
    assert result.value == pytest.approx((gained - lost) / count)
    b, c = (lost + 1) / (count + 2), (gained + 1) / (count + 2)
    error = 1.96 * sqrt((b + c - (b - c) ** 2) / (count + 2))
    assert result.low == pytest.approx(c - b - error, abs=2e-5)
    assert result.high == pytest.approx(c - b + error, abs=2e-5)


def test_a_worked_example() -> None:
    """By hand: 4 clips lose 1, 1, 2 and 0 answers. Of the 8 ways to sign three numbers, two make 4 or -4."""
    first = [1, 1, 1, 1, 1, 1, 1, 1]
    second = [0, 1, 0, 1, 0, 0, 1, 1]
    result = paired_difference(first, second, [0, 0, 1, 1, 2, 2, 3, 3])
    assert result.p == pytest.approx(2 / 8)
    assert result.value == -0.5
    assert result.low < -0.5 < result.high


def test_copies_of_an_answer_tell_nothing_new() -> None:
    """Ten times the same question of each clip: p stays, and so does the interval's width (nearly)."""
    rng = np.random.default_rng(1)
    first, second = rng.random(200) < 0.9, rng.random(200) < 0.8
    once = paired_difference(first, second, np.arange(200))
    copied = paired_difference(np.repeat(first, 10), np.repeat(second, 10), np.repeat(np.arange(200), 10))
    assert copied.p == pytest.approx(once.p)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.02)
    apart = paired_difference(np.repeat(first, 10), np.repeat(second, 10), np.arange(2000))
    assert apart.high - apart.low < 0.4 * (once.high - once.low)


def test_intervals_cover_the_truth() -> None:
    """Of 400 samples with questions that hang together, about 95 % of the intervals hold the true difference."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        hard = np.repeat(rng.random(80), 8)  # of a clip
        clips = np.repeat(np.arange(80), 8)
        result = paired_difference(rng.random(640) < 0.9 - 0.1 * hard, rng.random(640) < 0.9 - 0.3 * hard, clips)
        held += result.low <= -0.1 <= result.high
    assert 370 <= held <= 396, held


def test_no_disagreement_still_has_a_width() -> None:
    result = paired_difference([True] * 100, [True] * 100, range(100))
    assert result.p == 1.0
    assert result.low == pytest.approx(-result.high)
    assert 0.02 < result.high < 0.04


@pytest.mark.parametrize(("first", "second", "clips"), [([], [], []), ([1], [1, 0], [0, 0]), ([1, 0], [1, 0], [0])])
def test_lengths_that_differ_are_refused(first: list[int], second: list[int], clips: list[int]) -> None:
    with pytest.raises(ValueError, match="one value each"):
        paired_difference(first, second, clips)


def test_scores_between_0_and_1_are_compared_too() -> None:
    """By hand: clips change by +0.5, +0.25 and -0.25 (one of two answers); of 8 signings of (50, 25, 25) in hundredths,
    |total| is at least 50 in all but those two in which the 25s stand against the 50."""
    first, second = [0.25, 0.5, 0.75, 1.0], [0.75, 0.75, 0.5, 1.0]
    result = paired_difference(first, second, ["a", "b", "c", "c"])
    totals = [abs(a * 50 + b * 25 + c * 25) for a, b, c in _signs(3)]
    assert result.p == pytest.approx(sum(total >= 50 for total in totals) / 8)
    assert (result.lost, result.gained, result.count) == (1, 2, 4)
    assert result.value == pytest.approx(0.5 / 4)
    middle, spread = 0.5 / 6, (0.25 + 0.0625 + 0.0625 + 2) / 6
    assert (result.low + result.high) / 2 == pytest.approx(middle)
    assert (result.high - result.low) / 2 >= 1.9599 * sqrt((spread - middle**2) / 6)


def test_scores_that_are_whole_are_the_same_test() -> None:
    first, second = [1, 0, 1, 1, 0], [0, 0, 1, 0, 1]
    as_scores = paired_difference(np.array(first, float), np.array(second, float), range(5))
    assert as_scores == paired_difference(np.array(first, bool), np.array(second, bool), range(5))


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_what_is_no_score_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        paired_difference([score], [0.0], [0])
