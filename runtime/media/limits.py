"""What one clip may cost to read: limits for untrusted media, and the clock that enforces the time limit.

A file of a few hundred bytes can state a billion frames, a picture of 30,000 pixels squared, or times a century apart.
Whatever is beyond a limit is a MediaError that names the limit, before the memory is taken or the time is spent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import TypeVar

from ..errors import ConfigError, MediaError, Vl3EdgeError, unexpected

T = TypeVar("T")
_END = object()


@dataclass(frozen=True)
class MediaLimits:
    """The defaults suit a device of 8 GB; anything recorded by a camera is far below them.

    max_pixels: height × width of an image or a frame before it is resized. Reading one of so many takes
        about 1.2 GB.
    max_source_frames: of a clip, sampled or not.
    max_duration_s: of a clip, as its times say.
    max_read_s: seconds of reading and decoding one clip, opening it included; encoding it does not count.
    max_fetch_bytes: of a picture at an address. max_silence_s: of a server, after which it counts as lost.
    isolate: read media files in a process of their own (`isolated.py`): a crash or a hang inside a codec costs that
        clip alone. max_isolated_bytes: of memory that this process may take.
    num_threads: that decode a clip, at most; 0 is one per CPU that this process may use.
    """

    max_pixels: int = 8192 * 8192
    max_source_frames: int = 1_000_000
    max_duration_s: float = 48 * 3600
    max_read_s: float = 1800
    max_fetch_bytes: int = 256 << 20
    max_silence_s: float = 30
    isolate: bool = False
    max_isolated_bytes: int = 2 << 30
    num_threads: int = 0

    def __post_init__(self) -> None:
        if self.num_threads < 0:
            raise ConfigError(f"num_threads must be 0 (one per CPU) or more, not {self.num_threads}")
        for name in (field.name for field in fields(self) if field.name not in ("isolate", "num_threads")):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a number above 0, not {value}")

    @property
    def silence_s(self) -> float:
        """Seconds a server may be silent, at most the time that reading may take."""
        return min(self.max_silence_s, self.max_read_s)

    def check_pixels(self, name: str, height: int, width: int) -> None:
        """Raises MediaError if a frame of `name` has more than max_pixels."""
        if height * width > self.max_pixels:
            raise MediaError(
                f"{name}: {width}×{height} pixels exceed the limit of {self.max_pixels:,} (max_pixels); make it "
                "smaller first"
            )

    def check_frames(self, name: str, count: int) -> None:
        """Raises MediaError if `name` has more than max_source_frames."""
        if count > self.max_source_frames:
            raise MediaError(
                f"{name}: it has more than {self.max_source_frames:,} frames (max_source_frames); split it"
            )

    def check_duration(self, name: str, seconds: float) -> None:
        """Raises MediaError if `name` is longer than max_duration_s."""
        if not seconds <= self.max_duration_s:
            raise MediaError(
                f"{name}: it lasts {seconds / 3600:,.0f} hours by its own timestamps, above the limit of "
                f"{self.max_duration_s / 3600:,.0f} (max_duration_s); the timestamps are damaged, or it must be split"
            )


DEFAULT_LIMITS = MediaLimits()


class ReadingClock:
    """The time spent on reading one clip: it runs inside `with`, and stands still while others use what was read.

    What libraries raise inside `with`, and no reader has words for, leaves it as a MediaError.
    """

    def __init__(self, name: str, limits: MediaLimits) -> None:
        self._name = name
        self._limit_s = limits.max_read_s
        self._spent_s = 0.0
        self._since: float | None = None

    def __enter__(self) -> ReadingClock:
        self._since = time.monotonic()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._spent_s = self._total_s()
        self._since = None
        if isinstance(error, Exception) and not isinstance(error, Vl3EdgeError | MemoryError):
            raise unexpected(self._name, error) from error

    def check(self) -> None:
        """Raises MediaError if the time is up."""
        if self.left_s() < 0:
            raise MediaError(
                f"{self._name}: reading it takes more than {self._limit_s:g} s (max_read_s, --max-read-seconds); "
                "it is damaged, or too long for one clip"
            )

    def left_s(self) -> float:
        return self._limit_s - self._total_s()

    def timed(self, items: Generator[T]) -> Generator[T]:
        """The items; the clock runs while each is made. Closing it closes `items`."""
        try:
            while True:
                with self:
                    item = next(items, _END)
                if item is _END:
                    return
                yield item  # type: ignore[misc]
        finally:
            items.close()

    def checked(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with a look at the clock before each."""
        for item in items:
            self.check()
            yield item

    def _total_s(self) -> float:
        return self._spent_s + (0.0 if self._since is None else time.monotonic() - self._since)
