"""Videos that are not video files: folders of pictures, animated pictures, and frames already in memory.

All of them have the interface of `video_file.VideoFile`: height, width, a timeline, and the wanted frames, one by one.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import ConfigError, MediaError
from .addresses import Fetched
from .contents import PICTURE_SUFFIXES, first_frame, is_animated, pictures_in
from .frame_sampling import Timeline, regular_timeline
from .image import damage_reported, image_rgb, load_image, open_image
from .limits import DEFAULT_LIMITS, MediaLimits, ReadingClock

Frame = npt.NDArray[np.uint8]

FOLDER_FPS = 3.0
"""Frames per second of a folder of pictures, as in the authors' release."""

MICROSECOND = Fraction(1, 1_000_000)


class PictureList:
    """Pictures as the frames of a video: files of a folder in natural order (2 before 10), or Pillow images.

    num_lost: how many of the pictures wanted of `frames` could not be read; complete when it has ended.
    """

    notes: tuple[str, ...] = ()
    assumed_fps: float | None = None
    """Frames per second that nobody has stated."""

    def __init__(
        self,
        name: str,
        pictures: Sequence[Path | Image.Image],
        timeline: Timeline,
        limits: MediaLimits = DEFAULT_LIMITS,
    ) -> None:
        limits.check_frames(name, len(pictures))
        self.name = name
        self._limits = limits
        self.timeline = timeline
        self.num_lost = 0
        self._pictures = pictures
        with closing(self._timed(range(len(pictures)))) as readable:
            self.height, self.width = next(readable)[1].shape[:2]

    @classmethod
    def from_folder(cls, folder: str | Path, limits: MediaLimits = DEFAULT_LIMITS) -> PictureList:
        """Counted as 3 per second. Raises MediaError if there is no picture in the folder."""
        pictures = pictures_of(folder)
        if not pictures:
            raise MediaError(
                f"{folder}: there are no pictures in this folder (looked for {', '.join(sorted(PICTURE_SUFFIXES))})"
            )
        found = cls(str(folder), pictures, regular_timeline(len(pictures), FOLDER_FPS), limits)
        found.assumed_fps = FOLDER_FPS
        return found

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The pictures with these numbers: uint8 [H, W, 3], each in its own size.

        One that cannot be read is replaced by the readable one before it, or the first readable one there is.
        Raises MediaError if none can be read.
        """
        self.num_lost = 0
        shown = 0  # of the indices, how many have been given out
        last: Frame | None = None
        for position, picture in self._timed(indices):
            stand_in = picture if last is None else last
            self.num_lost += position - shown
            yield from [stand_in] * (position - shown)
            yield picture
            shown, last = position + 1, picture
        if last is not None:
            self.num_lost += len(indices) - shown
            yield from [last] * (len(indices) - shown)

    def _timed(self, indices: Sequence[int]) -> Generator[tuple[int, Frame]]:
        clock = ReadingClock(self.name, self._limits)
        return clock.timed(self._readable(clock.checked(indices)))

    def _readable(self, indices: Iterable[int]) -> Generator[tuple[int, Frame]]:
        """(position among the indices, picture) of those that can be read; MediaError of the last if none can."""
        found, error = False, None
        for position, index in enumerate(indices):
            try:
                picture = load_image(self._pictures[index], self._limits)
            except MediaError as e:
                error = e
                continue
            found = True
            yield position, picture
        if error is not None and not found:
            raise error


class FrameArray:
    """Frames in memory: uint8 [F, H, W, 3]."""

    notes: tuple[str, ...] = ()
    num_lost = 0

    def __init__(self, frames: npt.NDArray[np.uint8], timeline: Timeline, name: str = "the array given") -> None:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise MediaError(f"frames must be uint8 [F, H, W, 3], not {frames.dtype} {list(frames.shape)}")
        self.name = name
        self.timeline = timeline
        self._frames = frames
        self.height, self.width = frames.shape[1:3]

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The frames with these numbers: views of uint8 [H, W, 3]."""
        for i in indices:
            yield self._frames[i]


class Animation:
    """An animated GIF, WebP, AVIF or PNG with its own clock; a still picture is a video of one frame."""

    num_lost = 0
    assumed_fps = None
    STILL_MS = 1000
    HASTY_MS, USUAL_MS = 20, 100
    """Browsers and FFmpeg take a delay below 20 ms for a mistake and show the frame for 100 ms."""

    def __init__(self, source: str | Path | Fetched, limits: MediaLimits = DEFAULT_LIMITS) -> None:
        self.name = str(source)
        self.notes: tuple[str, ...] = ()
        self._source = source
        self._limits = limits
        with open_image(source, limits) as image:
            self._first = first_frame(image) if is_animated(image) else 0
            durations = self._durations(image)
        with closing(self.frames([0])) as frames:
            self.height, self.width = next(frames).shape[:2]
        starts = np.cumsum([0, *durations]).astype(np.int64)
        end = int(starts[-1])
        self.timeline = Timeline(starts[:-1], end, Fraction(1, 1000), len(durations) / (end / 1000))
        limits.check_duration(self.name, self.timeline.span_s)

    def _durations(self, image: Image.Image) -> list[int]:
        """How long each frame is shown, in milliseconds, of those that can be read; at least one."""
        stated: int | None = 1
        if image.format == "GIF":  # states no number of frames: Pillow would count them without a limit
            stated = None
        elif is_animated(image):
            stated = getattr(image, "n_frames", 1) - self._first
        self._limits.check_frames(self.name, stated or 1)
        durations: list[int] = []
        with ReadingClock(self.name, self._limits) as clock:
            while len(durations) != stated:
                clock.check()
                self._limits.check_frames(self.name, len(durations))
                try:
                    with damage_reported(f"{self.name}: the picture is damaged or cut short"):
                        self._load(image, len(durations))
                except MediaError as e:
                    if not durations or e.__cause__ is None:  # a limit
                        raise
                    if not (stated is None and isinstance(e.__cause__, EOFError)):
                        self.notes = (f"the file is damaged or cut short after {len(durations)} frames",)
                    break
                ms = round(image.info.get("duration", 0))
                durations.append(ms if ms >= self.HASTY_MS else self.USUAL_MS)
        return durations if len(durations) > 1 or (stated or 1) > 1 else [self.STILL_MS]

    def frames(self, indices: Sequence[int]) -> Generator[Frame]:
        """The frames with these numbers, ascending: uint8 [H, W, 3] each."""
        return ReadingClock(self.name, self._limits).timed(self._frames(indices))

    def _frames(self, indices: Sequence[int]) -> Generator[Frame]:
        with open_image(self._source, self._limits) as image:
            for i in indices:
                with damage_reported(f"{self.name}: frame {i} is damaged"):
                    self._load(image, i)
                    frame = image_rgb(image)
                yield frame

    def _load(self, image: Image.Image, index: int) -> None:
        if index + self._first != image.tell():  # what shows one picture may not be able to seek
            image.seek(index + self._first)
        self._limits.check_pixels(self.name, image.height, image.width)  # a frame may enlarge the picture
        image.load()


def pictures_of(folder: str | Path) -> list[Path]:
    """The pictures of a folder in natural order, hidden ones left out. Raises MediaError if it may not be read."""
    try:
        files = [path for path in Path(folder).iterdir() if not path.name.startswith(".")]
    except PermissionError as e:
        raise MediaError(f"{folder}: no permission to read it") from e
    return sorted(pictures_in(files), key=natural_key)


def timeline_of(num_frames: int, source_fps: float | None, timestamps_s: Sequence[float] | None) -> Timeline:
    """The timeline of frames in memory, from their rate or their times. Raises ConfigError unless one is given."""
    if (source_fps is None) == (timestamps_s is None):
        raise ConfigError("frames in memory have no timestamps of their own: give either source_fps or timestamps_s")
    if source_fps is not None:
        if not source_fps > 0:
            raise ConfigError(f"source_fps must be above 0, not {source_fps}")
        return regular_timeline(num_frames, source_fps)
    assert timestamps_s is not None
    if len(timestamps_s) != num_frames:
        raise ConfigError(f"there are {num_frames} frames but {len(timestamps_s)} timestamps")
    ticks = np.array([round(t / MICROSECOND) for t in timestamps_s], dtype=np.int64)
    if (np.diff(ticks) <= 0).any() or ticks[0] < 0:
        raise ConfigError("timestamps_s must start at 0 or later, and each must be after the one before")
    # The last frame lasts as long as the others do on average.
    span = int(ticks[-1] - ticks[0])
    step = max(1, round(span / (num_frames - 1))) if num_frames > 1 else 1_000_000
    return Timeline(ticks, int(ticks[-1]) + step, MICROSECOND, 1_000_000 / step)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorts digits by their value: frame2 before frame10."""
    parts = re.findall(r"\d+|\D+", path.name.lower())
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]
