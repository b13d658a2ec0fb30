"""The session's clock, and the sampling by it: equal to a file's, whatever order and damage there is in the times."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.live.clock import IntervalSampler, RealtimePacer, StreamClock
from vl3edge.runtime.media.frame_sampling import Timeline, choose_frames

SECOND = Fraction(1)


def test_steady_times_start_at_zero_and_keep_their_distances() -> None:
    clock = StreamClock(10.0)
    own = [Fraction(7, 3) + Fraction(n, 25) for n in range(50)]
    shown = [clock.advance(t, 100.0 + n) for n, t in enumerate(own)]
    assert [t for t, _ in shown] == [t - own[0] for t in own]
    assert {jump for _, jump in shown} == {None}


def test_a_jump_back_goes_on_by_the_time_that_passed() -> None:
    clock = StreamClock(10.0)
    clock.advance(50 * SECOND, 0.0)
    clock.advance(51 * SECOND, 1.0)
    assert clock.advance(3 * SECOND, 1.25) == (Fraction(5, 4), -48.0)
    assert clock.advance(4 * SECOND, 2.25) == (Fraction(9, 4), None)
    assert clock.now_s == 2.25


def test_a_jump_ahead_is_one_only_if_no_such_time_passed() -> None:
    clock = StreamClock(10.0)
    clock.advance(0 * SECOND, 0.0)
    assert clock.advance(3600 * SECOND, 0.5) == (Fraction(1, 2), 3600.0)
    assert clock.advance(3640 * SECOND, 31.5) == (Fraction(81, 2), None)  # a pause of 40 s, in 31 s
    recording = StreamClock()
    recording.advance(0 * SECOND, 0.0)
    assert recording.advance(3600 * SECOND, 0.5) == (3600, None)  # a slide that was shown for an hour


def test_a_new_connection_goes_on_by_the_time_that_passed() -> None:
    clock = StreamClock(10.0)
    clock.advance(5 * SECOND, 0.0)
    clock.restart(10.0)
    assert clock.advance(900 * SECOND, 4.5) == (Fraction(9, 2), None)
    assert clock.advance(901 * SECOND, 5.5) == (Fraction(11, 2), None)


def test_frames_without_times_and_repeated_times() -> None:
    clock = StreamClock(10.0)
    times = [None, 7 * SECOND, 7 * SECOND, None, 8 * SECOND]
    shown = [clock.advance(own, arrival) for own, arrival in zip(times, (0.0, 0.5, 0.5, 1.0, 1.5), strict=True)]
    assert [t for t, _ in shown] == [0, Fraction(1, 2), Fraction(501, 1000), Fraction(1001, 1000), Fraction(1501, 1000)]
    assert {jump for _, jump in shown} == {None}


@given(
    own=st.lists(st.one_of(st.none(), st.fractions(-100, 100_000, max_denominator=90_000)), min_size=1, max_size=30),
    pauses=st.lists(st.floats(0, 20), min_size=30, max_size=30),
)
@settings(deadline=None)
def test_whatever_comes_times_ascend(own: list[Fraction | None], pauses: list[float]) -> None:
    clock = StreamClock(10.0)
    arrivals = np.cumsum(pauses)
    shown = [clock.advance(t, float(arrival)) for t, arrival in zip(own, arrivals, strict=False)]
    stamps = [t for t, _ in shown]
    assert stamps[0] == 0
    assert all(a < b for a, b in pairwise(stamps))


@given(
    gaps=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    fps=st.sampled_from([0.5, 1.0, 2.0, 3.0, 29.97]),
)
@settings(deadline=None)
def test_samples_are_those_of_a_file_but_for_empty_intervals(gaps: list[int], fps: float) -> None:
    base = Fraction(1, 25)
    ticks = np.cumsum([0, *gaps])
    offline = choose_frames(
        Timeline(ticks, int(ticks[-1]) + 1, base, 25.0), SamplingPlan(fps=fps, max_frames=10_000), "clip"
    )
    sampler: IntervalSampler[int] = IntervalSampler(fps)
    samples = [sampler.push(int(tick) * base, index) for index, tick in enumerate(ticks)]
    live = {s.frame: s.timestamp_s for s in [*samples, sampler.flush()] if s is not None}
    # A file repeats the last frame where nothing new was shown, and ends with the last whole interval.
    first_use = dict(zip(reversed(offline.indices.tolist()), reversed(offline.timestamps_s), strict=True))
    whole = {index: t for index, t in live.items() if t in offline.timestamps_s or index in first_use}
    if len(ticks) > 1 or len(offline.indices) > 1:
        assert whole == pytest.approx(first_use)
    assert len(live) - len(whole) <= 1


def test_an_interval_that_was_given_out_is_over() -> None:
    sampler: IntervalSampler[str] = IntervalSampler(1.0)
    assert sampler.push(Fraction(1, 2), "a") is None
    sample = sampler.flush()
    assert sample is not None
    assert (sample.timestamp_s, sample.frame) == (0.0, "a")
    assert sampler.push(Fraction(3, 4), "b") is None
    assert sampler.flush() is None
    assert sampler.push(Fraction(1), "c") is None
    sample = sampler.flush()
    assert sample is not None
    assert (sample.timestamp_s, sample.frame) == (1.0, "c")


def test_pace() -> None:
    stopped = threading.Event()
    pace = RealtimePacer(10.0, stopped)
    begin = time.monotonic()
    for second in range(3):
        pace.wait_for(Fraction(second))
    assert 0.19 < time.monotonic() - begin < 2.0
    stopped.set()
    pace.wait_for(Fraction(1000))
    assert time.monotonic() - begin < 2.0
