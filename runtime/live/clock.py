"""A live source's clock: seconds since the first frame, ascending whatever its own time stamps do; which frames are
sampled by it, and the pace of a recording.

Streams restart, jump back (a file in a loop), or jump far ahead (a camera that has learned the time of day). Then the
clock goes on by the time that has really passed, and counts on from there. Times are exact fractions, so that no
rounding error moves a frame into another interval.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

from ..media.frame_sampling import as_fraction

LEAST_STEP = Fraction(1, 1000)
"""Between two frames after a jump, in seconds: what comes later is shown later."""
REPORTED_JUMP_S = 0.5
"""Smaller steps back are repeated or jittering time stamps, which is nothing to tell a user about."""

T = TypeVar("T")


class StreamClock:
    """Session times of frames. longest_gap_s: steps ahead by more than what has passed and this are jumps."""

    def __init__(self, longest_gap_s: float = math.inf) -> None:
        self._longest_gap_s = longest_gap_s
        self._last: Fraction | None = None
        self._last_own: Fraction | None = None
        self._last_arrival_s = 0.0
        self._offset = Fraction(0)

    @property
    def now_s(self) -> float:
        """The time of the last frame."""
        return float(self._last or 0)

    def restart(self, longest_gap_s: float) -> None:
        """The next frame is of a new connection, whose clock has nothing to do with the last one's."""
        self._last_own = None
        self._longest_gap_s = longest_gap_s

    def advance(self, own: Fraction | None, arrival_s: float) -> tuple[Fraction, float | None]:
        """The session time of the next frame, and by how many seconds the stream's clock jumped, if it did.

        own: its time by the stream's clock, None if it has none. arrival_s: by this machine's clock.
        """
        passed_s = arrival_s - self._last_arrival_s
        ahead = None if own is None or self._last_own is None else own - self._last_own
        steady = ahead is not None and 0 < ahead <= passed_s + self._longest_gap_s
        if self._last is None:
            shown = Fraction(0)
        elif own is not None and steady:
            # Never before a frame without a time, which was placed by the clock of this machine.
            shown = max(own + self._offset, self._last + LEAST_STEP)
        else:
            shown = self._last + max(LEAST_STEP, Fraction(round(passed_s * 1e6), 1_000_000))
        if own is not None:
            self._last_own = own
            if not steady:
                self._offset = shown - own
        self._last, self._last_arrival_s = shown, arrival_s
        jumped = ahead is not None and not steady and not -REPORTED_JUMP_S < ahead <= 0
        return shown, float(ahead) if ahead is not None and jumped else None


@dataclass(frozen=True)
class Sample(Generic[T]):
    """One sampled frame, and the time it stands for: the beginning of its interval."""

    timestamp_s: float
    frame: T


class IntervalSampler(Generic[T]):
    """The last frame of every interval of 1/fps seconds that has one; holds one frame.

    These are the frames and times that a file is sampled to (`media/frame_sampling.py`, rule "fps"), but for intervals
    without a frame: nothing was seen in them, so nothing stands for them. An interval's frame is known when the next
    one begins.
    """

    def __init__(self, fps: float) -> None:
        self._rate = as_fraction(fps)
        self._number = self._finished = -1
        self._held: T | None = None

    def push(self, shown: Fraction, frame: T) -> Sample[T] | None:
        """Takes the next frame, shown at that time; gives the sample of the interval before, if that is over."""
        number = math.floor(shown * self._rate)
        done = self.flush() if number != self._number else None
        if number > self._finished:
            self._number, self._held = number, frame
        return done

    def flush(self) -> Sample[T] | None:
        """The sample of an interval that is over, or of which nothing more is wanted."""
        held, self._held = self._held, None
        self._finished = self._number
        return None if held is None else Sample(float(self._number / self._rate), held)


class RealtimePacer:
    """Holds a recording back so that it plays in real time, or `speed` times as fast."""

    def __init__(self, speed: float, stopped: threading.Event) -> None:
        self._speed = speed
        self._stopped = stopped
        self._begin_s: float | None = None

    def wait_for(self, shown: Fraction) -> None:
        """Returns when the frame at `shown` seconds is due, or the reader is to stop."""
        at_s = float(shown) / self._speed
        if self._begin_s is None:
            self._begin_s = time.monotonic() - at_s
        if (ahead_s := self._begin_s + at_s - time.monotonic()) > 0:
            self._stopped.wait(ahead_s)
