"""A clip: what `encode` returns, an immutable value that can be asked about any number of times."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ..config import MediaKind
from ..prompt.boxes import Size, region
from ..prompt.splice import VisualTokens

_uids = itertools.count()


@dataclass(frozen=True)
class EncodeStats:
    """Where the time of one `encode` went, in seconds.

    read_s: opening, and waiting for frames to be decoded and resized, which a thread of its own does ahead.
    """

    read_s: float
    prune_s: float
    vision_s: float
    projector_s: float

    @property
    def seconds(self) -> float:
        return self.read_s + self.prune_s + self.vision_s + self.projector_s


@dataclass(frozen=True)
class Clip:
    """The visual tokens of a video or an image, ready for the decoder.

    name: the file's name, or a description of where the frames came from.
    start_s, end_s: the part of the video that was sampled; None for an image.
    timestamps_s: of the sampled frames, from the start of the stream; (0.0,) for an image.
    height_px, width_px: of the frames as the model saw them.
    source_size: height and width of the upright original, before resizing, in pixels; what boxes are told in.
    tokens_per_frame: visual tokens kept, frame by frame. num_pruned: those that were dropped.
    threshold: of DiffFP, the one used; None if the clip was not pruned by it.
    """

    kind: MediaKind
    name: str
    start_s: float | None
    end_s: float | None
    timestamps_s: tuple[float, ...]
    height_px: int
    width_px: int
    source_size: Size
    tokens_per_frame: tuple[int, ...]
    num_pruned: int
    threshold: float | None
    stats: EncodeStats
    visual: VisualTokens

    @property
    def num_frames(self) -> int:
        return len(self.timestamps_s)

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens_per_frame)

    def region(self, x0: float, y0: float, x1: float, y1: float) -> str:
        """The text by which a question means a part of the picture: `f"What is in {clip.region(10, 20, 90, 60)}?"`.

        The edges are in pixels of the upright original. Raises ConfigError for a box that is not within it.
        """
        return region((x0, y0, x1, y1), self.source_size, self.name)


def new_uid() -> int:
    """An identity for the visual tokens of one clip, unique in this process."""
    return next(_uids)
