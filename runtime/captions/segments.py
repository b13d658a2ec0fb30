"""Pieces of a long video, each captioned as a clip of its own.

A rest shorter than half a piece joins the last piece, so that no caption has to be made of next to nothing: pieces are
S long, the last between S/2 and 3S/2 (or the whole video, if that is shorter).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError, MediaError

MIN_SEGMENT_S = 0.01  # shorter than a frame lasts; subtitles count in thousandths
MAX_SEGMENTS = 100_000  # a slip of the unit must not make a list of billions


@dataclass(frozen=True)
class Segment:
    """Piece `number` (from 1) of `of` pieces: from start_s to end_s, in seconds on the video's clock."""

    number: int
    of: int
    start_s: float
    end_s: float


def plan_segments(start_s: float, end_s: float, length_s: float) -> tuple[Segment, ...]:
    """Cuts the time from start_s to end_s into pieces of length_s; see the module on the last one.

    Raises ConfigError if length_s is not a number of at least 0.01, MediaError if there would be more than 100,000
    pieces.
    """
    if not (math.isfinite(length_s) and length_s >= MIN_SEGMENT_S):
        raise ConfigError(f"a segment must have a positive number of seconds, at least {MIN_SEGMENT_S}, not {length_s}")
    if (end_s - start_s) / length_s > MAX_SEGMENTS:
        raise MediaError(f"{end_s - start_s:.0f} s are more than {MAX_SEGMENTS:,} segments of {length_s} s")
    count = max(1, math.floor((end_s - start_s) / length_s + 0.5))
    # Rounded to microseconds: 3 · 0.1 is 0.3, in the records as in the file names people make of them.
    starts = [round(start_s + k * length_s, 6) for k in range(count)]
    ends = [*starts[1:], end_s]
    return tuple(
        Segment(number, count, start, end) for number, (start, end) in enumerate(zip(starts, ends, strict=True), 1)
    )
