"""The clock of a stream never goes back and keeps the pace of its source."""

from __future__ import annotations

import math

import pytest

from vl3edge.runtime.errors import ConfigError
from vl3edge.runtime.live.session_clock import SessionClock


def times(*stamps: float) -> list[tuple[float | None, bool]]:
    clock, seen = SessionClock(), []
    for stamp in stamps:
        clock = clock.follow(stamp)
        seen.append((clock.last_s, clock.jumped))
    return seen


def test_times_that_go_on_are_taken_as_they_are() -> None:
    assert times(5.0, 5.5, 5.5, 100.25) == [(5.0, False), (5.5, False), (5.5, False), (100.25, False)]


def test_a_jump_back_is_counted_on_at_the_last_pace() -> None:
    assert times(10.0, 12.0, 3.0, 4.0, 4.5) == [
        (10.0, False),
        (12.0, False),
        (14.0, True),
        (15.0, False),
        (15.5, False),
    ]


def test_jumps_add_up() -> None:
    assert times(1.0, 2.0, 0.0, 1.0, 0.0, 1.0) == [
        (1.0, False),
        (2.0, False),
        (3.0, True),
        (4.0, False),
        (5.0, True),
        (6.0, False),
    ]


def test_times_below_zero_begin_at_zero() -> None:
    assert times(-2.0, -1.0, 0.5) == [(0.0, False), (1.0, False), (2.5, False)]


@pytest.mark.parametrize("stamp", [math.nan, math.inf, -math.inf])
def test_what_is_no_time_is_refused(stamp: float) -> None:
    with pytest.raises(ConfigError, match="number of seconds"):
        SessionClock(3.0, 1.0).follow(stamp)
