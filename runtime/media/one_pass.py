"""Several parts of one clip, read in a single pass over its file when they are asked for in order.

Each part alone would read the file from its beginning again (see video_file.py on why there is no seeking): for sixty
minutes cut into sixty parts, thirty times the file.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .frame_sampling import Timeline

Frame = npt.NDArray[np.uint8]


class FrameSource(Protocol):
    """Frames by their number on a timeline; see video_file.py and image_sequence.py."""

    name: str
    height: int
    width: int
    timeline: Timeline
    num_lost: int

    @property
    def notes(self) -> tuple[str, ...]: ...

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]: ...


class OnePass:
    """A source that continues where the last call of `frames` ended; asking for earlier frames starts over.

    wanted: the numbers of all frames that will be asked for, ascending.
    """

    def __init__(self, source: FrameSource, wanted: Sequence[int]) -> None:
        self.name = source.name
        self.height, self.width = source.height, source.width
        self.timeline = source.timeline
        self.num_lost = 0
        self._source = source
        self._wanted = list(wanted)
        self._coming: deque[int] = deque()
        self._running: Iterator[Frame] | None = None
        self._held: tuple[int, Frame, int] | None = None  # the last frame read, which two parts may share
        self._lock = threading.Lock()  # a part given up half-way may still be reading ahead

    @property
    def notes(self) -> tuple[str, ...]:
        return self._source.notes

    def frames(self, indices: Sequence[int]) -> Generator[Frame]:
        """The frames with these numbers, ascending, none twice: uint8 [H, W, 3] each. Raises MediaError."""
        self.num_lost = 0
        for index in indices:
            with self._lock:
                frame, lost = self._take(index)
            self.num_lost += lost
            yield frame

    def _take(self, index: int) -> tuple[Frame, int]:
        """A frame, and 1 if another had to stand in for it."""
        while self._held is None or self._held[0] != index:
            if self._running is None or not self._coming or self._coming[0] > index:
                self._coming = deque(self._wanted[bisect.bisect_left(self._wanted, index) :])
                self._running = self._source.frames(tuple(self._coming))
            lost = self._source.num_lost
            try:
                frame = next(self._running)
            except Exception:
                self._running = None
                raise
            self._held = self._coming.popleft(), frame, self._source.num_lost - lost
        return self._held[1:]
