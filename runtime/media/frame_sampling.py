"""Which frames of a clip are sampled, from the times at which its frames are shown; no pixels here.

The clip's clock starts where players and the FFmpeg program start it: at the container's start time, so a stream that
begins later than the others has its first frame after 0.

Rule "fps" gives the frames of FFmpeg's filter `fps=fps=R:round=down`: its output n is the last frame with floor(t·R) ≤
n, outputs run from the first frame's floor(t·R) to floor(end·R), where a clip ends one frame duration after its last
frame. As in the authors' release, sample k is labelled with the first frame's time plus k/R. Two deliberate
differences: a clip so short that the filter gives nothing still gives one frame; and a part of a clip (`start_s`,
`end_s`) starts with the frame on screen at `start_s` and ends at `end_s` itself, where the FFmpeg program skips to the
next frame and loses the last sample.

Rule "index" is transformers' port: frame numbers spread evenly, labelled with number / frame rate.

Times are whole ticks of a rational time base, so that no rounding error can shift a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..config import SamplingPlan
from ..errors import MediaError

DEFAULT_FPS = 1.0
DEFAULT_MAX_FRAMES = 180
INDEX_MIN_FRAMES = 4
"""Rule "index" takes at least this many frames, if there are as many (transformers' `min_frames`)."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """When the frames of a clip are shown.

    ticks: int64 [N], ascending: frame i is shown from ticks[i] · time_base seconds on.
    end: tick at which the last frame ends.
    average_fps: frames per second as the container states it, or counted.
    """

    ticks: npt.NDArray[np.int64]
    end: int
    time_base: Fraction
    average_fps: float

    @property
    def duration_s(self) -> float:
        """The time at which the last frame ends, in seconds."""
        return float(self.end * self.time_base)

    @property
    def span_s(self) -> float:
        """How long the clip is, or by how much it starts late if that is more, in seconds."""
        first = int(self.ticks[0])
        return float(max(self.end - first, abs(first)) * self.time_base)


@dataclass(frozen=True, eq=False)
class Samples:
    """The frames chosen: numbers into the timeline, int64 [F] (one may repeat), and the time each stands for."""

    indices: npt.NDArray[np.int64]
    timestamps_s: tuple[float, ...]


def regular_timeline(num_frames: int, fps: float) -> Timeline:
    """`num_frames` frames, evenly spaced from 0 s on."""
    return Timeline(np.arange(num_frames, dtype=np.int64), num_frames, 1 / as_fraction(fps), fps)


def as_fraction(value: float) -> Fraction:
    """`value` as the fraction it was meant to be: 29.97 is 2997/100, 1/3 is 1/3."""
    simple = Fraction(value).limit_denominator(1_000_000)
    return simple if simple else Fraction(value)


def choose_frames(timeline: Timeline, plan: SamplingPlan, name: str) -> Samples:
    """The frames of `timeline` that `plan` asks for, at least one. `name` is of the clip, for error messages.

    Raises MediaError if the part asked for lies outside the clip.
    """
    times, base = timeline.ticks, timeline.time_base
    start = Fraction(0) if plan.start_s is None else as_fraction(plan.start_s)
    clip_end = timeline.end * base
    end = clip_end if plan.end_s is None else min(as_fraction(plan.end_s), clip_end)
    first_time = int(times[0]) * base
    if start >= clip_end or end <= first_time:
        until = "on" if plan.end_s is None else f"to {plan.end_s:g} s"
        raise MediaError(
            f"{name}: no frames from {plan.start_s or 0:g} s {until}: "
            f"the clip runs from {float(first_time):.3f} to {float(clip_end):.3f} s"
        )
    if plan.rule == "index":
        return _by_index(timeline, plan, start, end)
    if plan.start_s is None or start < first_time:
        # The filter's outputs are counted on the clip's clock, the labels from the first frame.
        origin, label = Fraction(0), first_time
    else:
        origin, label = start, start
    return _by_rate(timeline, plan, origin, label, end)


def _by_rate(timeline: Timeline, plan: SamplingPlan, origin: Fraction, label: Fraction, end: Fraction) -> Samples:
    """Rule "fps" on the part of the clip that the origin of counting and the end delimit."""
    rate = as_fraction(DEFAULT_FPS if plan.fps is None else plan.fps)
    base = timeline.time_base
    first = math.floor((label - origin) * rate)
    count = max(1, math.floor((end - origin) * rate) - first)
    steps = _at_most(count, plan.max_frames)
    # floor((t − origin)·R) ≤ n is t < origin + (n + 1)/R.
    limits = [min(origin + (first + int(k) + 1) / rate, end) for k in steps]
    ticks = np.array([math.ceil(limit / base) for limit in limits], dtype=np.int64)
    indices = np.maximum(np.searchsorted(timeline.ticks, ticks, side="left") - 1, 0)
    # The spacing as numpy's arange computes it, which the reference uses: it decides how x.x5 s is printed.
    spacing = (float(label) + float(1 / rate)) - float(label)
    return Samples(indices, tuple(float(label) + int(k) * spacing for k in steps))


def _by_index(timeline: Timeline, plan: SamplingPlan, start: Fraction, end: Fraction) -> Samples:
    base = timeline.time_base
    low = max(int(np.searchsorted(timeline.ticks, math.floor(start / base), side="right")) - 1, 0)
    high = int(np.searchsorted(timeline.ticks, math.ceil(end / base), side="left"))
    total = max(high - low, 1)
    limit = DEFAULT_MAX_FRAMES if plan.max_frames is None else plan.max_frames
    wanted = total / timeline.average_fps * (DEFAULT_FPS if plan.fps is None else plan.fps)
    number = math.floor(min(max(wanted, INDEX_MIN_FRAMES), limit, total))
    step = total / number
    # transformers computes in single precision and so rounds 2.9999999 up before it truncates.
    spread = (np.arange(math.ceil(total / step)) * step).astype(np.float32).astype(np.int64)
    indices = low + spread[spread < total]  # rounding may add one past the end
    return Samples(indices, tuple(int(i) / timeline.average_fps for i in indices))


def _at_most(count: int, max_frames: int | None) -> npt.NDArray[np.int64]:
    limit = DEFAULT_MAX_FRAMES if max_frames is None else max_frames
    if count <= limit:
        return np.arange(count, dtype=np.int64)
    return np.linspace(0, count - 1, limit, dtype=np.int64)
