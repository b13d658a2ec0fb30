"""Media whose samples are known, with nothing encoded yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import MediaKind
from ..errors import ConfigError
from ..media.video import VideoReader


@dataclass(frozen=True)
class OpenedMedia:
    """A video whose samples are chosen, or an image, which is a video of one frame; nothing is encoded yet.

    start_s, end_s: the part of the video that is sampled; None for an image. timestamps_s: of the samples.
    reader: of the frames. read_s: what opening took, in seconds.
    """

    kind: MediaKind
    reader: VideoReader
    start_s: float | None
    end_s: float | None
    timestamps_s: tuple[float, ...]
    read_s: float

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def height(self) -> int:
        """Of a frame before resizing, in pixels."""
        return self.reader.height

    @property
    def width(self) -> int:
        """Of a frame before resizing, in pixels."""
        return self.reader.width

    @property
    def num_frames(self) -> int:
        return len(self.timestamps_s)

    def parts(self, spans: Sequence[tuple[float, float]]) -> list[OpenedMedia]:
        """Each span (start, end) of the video, in seconds, as media of its own; in order they are read in one pass.

        Raises MediaError if a span lies outside the video, ConfigError for an image.
        """
        if self.kind == "image":
            raise ConfigError(f"{self.name}: an image cannot be split into segments")
        return [
            OpenedMedia("video", reader, start, end, reader.timestamps_s, read_s=0.0)
            for (start, end), reader in zip(spans, self.reader.parts(spans), strict=True)
        ]
