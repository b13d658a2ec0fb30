"""Sampling a video: from a file, a folder of pictures, an animation or frames in memory to a few resized frames.

`open_video` reads no more than it needs to know which frames it will take and when they are shown, so that sizes and
budgets can be decided; frames then come one by one or in chunks, each resized as soon as it is decoded, so no more than
one frame of full size is in memory. `read_video` collects them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..config import MediaKind, SamplingPlan
from ..errors import MediaError, MediaWarning
from .addresses import Fetched, located
from .contents import format_of
from .frame_sampling import choose_frames, regular_timeline
from .image import load_image
from .image_sequence import FOLDER_FPS, Animation, FrameArray, PictureList, timeline_of
from .isolated import IsolatedSource, ask_worker
from .limits import DEFAULT_LIMITS, MediaLimits
from .one_pass import FrameSource, OnePass
from .resize import BudgetRule, PixelBudget, resize_rgb, target_size
from .video_file import VideoFile

Frame = npt.NDArray[np.uint8]
VideoSource: TypeAlias = "str | Path | Fetched | npt.NDArray[np.uint8] | Sequence[Image.Image]"


@dataclass(frozen=True, eq=False)
class SampledFrame:
    """One sampled frame: its number among the samples, the time it stands for, pixels uint8 [H, W, 3]."""

    index: int
    timestamp_s: float
    pixels: Frame


@dataclass(frozen=True, eq=False)
class FrameChunk:
    """Consecutive samples: the number of the first, their times, frames uint8 [F, H, W, 3]."""

    start: int
    timestamps_s: tuple[float, ...]
    frames: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Video:
    """A sampled video.

    frames: uint8 [F, H, W, 3], resized.
    timestamps_s: the time each frame stands for, in seconds on the clip's clock.
    source_fps, num_source_frames, duration_s: of the clip it was taken from.
    warnings: what was lost or had to be assumed, in words; empty for an intact clip with a clock.
    """

    frames: npt.NDArray[np.uint8]
    timestamps_s: tuple[float, ...]
    source_fps: float
    num_source_frames: int
    duration_s: float
    warnings: tuple[str, ...] = ()


class VideoReader:
    """A video opened for sampling: its samples are chosen, only its first frame has been decoded.

    name: of the source, for messages.
    height, width: of its frames before resizing, upright, in pixels.
    num_frames, timestamps_s: of the samples.
    source_fps, num_source_frames, duration_s: of the clip.
    """

    def __init__(self, source: FrameSource, plan: SamplingPlan) -> None:
        samples = choose_frames(source.timeline, plan, source.name)
        self._source = source
        self._plan = plan
        self._indices = samples.indices
        self.name = source.name
        self.height, self.width = source.height, source.width
        self.timestamps_s = samples.timestamps_s
        self.num_frames = len(samples.timestamps_s)
        self.source_fps = source.timeline.average_fps
        self.num_source_frames = len(source.timeline.ticks)
        self.duration_s = source.timeline.duration_s
        self.warnings: tuple[str, ...] = source.notes

    def frames(self, size: tuple[int, int] | None = None, rule: BudgetRule = "transformers") -> Iterator[SampledFrame]:
        """The samples in order, decoded as they are taken and resized to `size` = (height, width).

        None keeps the size of the clip's first frame. rule: of `resize_rgb`. May be called again; each call decodes
        again. At the end one MediaWarning says what was missing, could not be decoded or had to be assumed, and what
        was used instead.
        """
        size = size or (self.height, self.width)
        wanted, repeats = np.unique(self._indices, return_counts=True)
        number = 0
        for full, count in zip(self._source.frames(wanted.tolist()), repeats.tolist(), strict=True):
            pixels = resize_rgb(full, size, rule)
            for _ in range(count):
                yield SampledFrame(number, self.timestamps_s[number], pixels)
                number += 1
        self.warnings = self._source.notes
        if lost := self._source.num_lost:
            self.warnings += (
                f"{lost} of the {len(wanted)} frames sampled are damaged; each is replaced by the nearest earlier one",
            )
        if self.warnings:
            warnings.warn(f"{self.name}: {'; '.join(self.warnings)}", MediaWarning, stacklevel=2)

    def chunks(
        self, size: tuple[int, int] | None = None, chunk_frames: int = 8, rule: BudgetRule = "transformers"
    ) -> Iterator[FrameChunk]:
        """The samples in chunks of `chunk_frames` (the last may be shorter); see `frames`."""
        held: list[SampledFrame] = []
        for frame in self.frames(size, rule):
            held.append(frame)
            if len(held) == chunk_frames:
                yield _chunk(held)
                held = []
        if held:
            yield _chunk(held)

    def parts(self, spans: Sequence[tuple[float, float]]) -> list[VideoReader]:
        """A reader for each span (start, end) in seconds, sampled as this one; ascending, they are read in one pass.

        Raises MediaError if a span lies outside the clip.
        """
        plans = [replace(self._plan, start_s=start, end_s=end) for start, end in spans]
        indices = [choose_frames(self._source.timeline, plan, self.name).indices for plan in plans]
        source = OnePass(self._source, np.unique(np.concatenate(indices)).tolist() if indices else ())
        return [VideoReader(source, plan) for plan in plans]

    def read(self, size: tuple[int, int] | None = None, rule: BudgetRule = "transformers") -> Video:
        """All samples at once."""
        height, width = size or (self.height, self.width)
        frames = np.empty((self.num_frames, height, width, 3), np.uint8)
        for frame in self.frames((height, width), rule):
            frames[frame.index] = frame.pixels
        return Video(frames, self.timestamps_s, self.source_fps, self.num_source_frames, self.duration_s, self.warnings)


def open_video(
    source: VideoSource,
    plan: SamplingPlan | None = None,
    *,
    source_fps: float | None = None,
    timestamps_s: Sequence[float] | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> VideoReader:
    """Opens a video and chooses its samples; see VideoReader.

    source: a video file or an animated GIF, WebP, AVIF or PNG (path or address), a still picture, which is a video of
        one frame, a folder of pictures (sorted by name, numbers by value), an array uint8 [F, H, W, 3], or a list of
        Pillow images.
    plan: which frames; None is one per second, at most 180, which are also the defaults of fields that are None.
    source_fps: frames per second of the source, overriding the plan's; the default for lists of images is 3, an array
        needs it or timestamps_s.
    timestamps_s: instead of source_fps, the time of each frame of an array or a list.
    limits: on what reading it may cost.

    Raises MediaError if there is nothing to see, or too much; ConfigError if the clock of an array is not given.
    """
    plan = plan or SamplingPlan()
    if source_fps is not None:
        plan = replace(plan, source_fps=source_fps)
    if isinstance(source, str | Path):
        source = located(source, limits)
    return VideoReader(open_source(source, limits, plan.source_fps, timestamps_s=timestamps_s), plan)


def read_video(
    source: VideoSource,
    plan: SamplingPlan | None = None,
    budget: PixelBudget | None = None,
    *,
    source_fps: float | None = None,
    timestamps_s: Sequence[float] | None = None,
) -> Video:
    """Samples a whole video at once, resized within `budget` (None keeps its size); arguments as for `open_video`."""
    reader = open_video(source, plan, source_fps=source_fps, timestamps_s=timestamps_s)
    if budget is None:
        return reader.read()
    return reader.read(target_size(reader.height, reader.width, budget, reader.num_frames), budget.rule)


def open_source(
    source: Any,
    limits: MediaLimits,
    source_fps: float | None = None,
    kind: MediaKind = "video",
    timestamps_s: Sequence[float] | None = None,
) -> FrameSource:
    """The source that a reader samples; arguments as for `open_video`, the source as returned by `located`.

    kind: "image" reads it as `load_image` does, as a video of one frame.
    """
    if limits.isolate and isinstance(source, str | Path | Fetched):
        opened: FrameSource = ask_worker("open", str(source), source, limits, source_fps, kind)
        return opened if kind == "image" else IsolatedSource(opened, limits)  # an image has come with its pixels
    if kind == "image":
        name = str(source) if isinstance(source, str | Path | Fetched) else "the image given"
        return FrameArray(load_image(source, limits)[None], regular_timeline(1, 1.0), name)
    if isinstance(source, np.ndarray):
        frames = FrameArray(source, timeline_of(len(source), source_fps, timestamps_s))
        limits.check_pixels(frames.name, frames.height, frames.width)
        return frames
    if not isinstance(source, str | Path | Fetched):
        if not len(source):
            raise MediaError("the list of images is empty")
        if source_fps is None and timestamps_s is None:
            source_fps = FOLDER_FPS
        return PictureList("the list of images", source, timeline_of(len(source), source_fps, timestamps_s), limits)
    if isinstance(source, Fetched) or (not os.path.isdir(source) and format_of(source) is not None):
        return _at_rate(Animation(source, limits), source_fps, limits)
    if os.path.isdir(source):  # False, not an error, where it may not be looked up: opening it says so
        return _at_rate(PictureList.from_folder(source, limits), source_fps, limits)
    return _at_rate(VideoFile(source, limits), source_fps, limits)


def _at_rate(
    source: VideoFile | PictureList | Animation, source_fps: float | None, limits: MediaLimits
) -> VideoFile | PictureList | Animation:
    """The source with its frames evenly spaced at `source_fps`, if given, and a note if that overrides the source's
    rate or a rate is assumed."""
    count, own, assumed = len(source.timeline.ticks), source.timeline.average_fps, source.assumed_fps
    note = ""
    if source_fps is not None:
        source.timeline = regular_timeline(count, source_fps)
        limits.check_duration(source.name, source.timeline.duration_s)
        if assumed is None and abs(own / source_fps - 1) > 0.01:
            note = f"its timestamps say {own:.4g} frames per second; source_fps ({source_fps:g}) is used instead"
    elif assumed is not None:
        note = f"it has no timestamps: {assumed:g} frames per second are assumed (set the true rate with --source-fps)"
    if note and count > 1:
        source.notes += (note,)
    return source


def _chunk(frames: Sequence[SampledFrame]) -> FrameChunk:
    return FrameChunk(frames[0].index, tuple(f.timestamp_s for f in frames), np.stack([f.pixels for f in frames]))
