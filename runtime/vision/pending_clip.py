"""A clip in the making."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..prompt.splice import VisualTokens
from .clip import Clip, EncodeStats, new_uid
from .frame_encoder import EncodedFrames, FrameEncoder
from .opened_media import OpenedMedia


class PendingClip:
    """A clip in the making: its kind and times are known, its frames are encoded on demand.

    uid: of the visual tokens, the same in the clip that `finish` returns.
    """

    def __init__(
        self, media: OpenedMedia, size: tuple[int, int], work: FrameEncoder, parts: Iterator[EncodedFrames]
    ) -> None:
        self.uid = new_uid()
        self.kind = media.kind
        self.name = media.name
        self.timestamps_s = media.timestamps_s
        self._media = media
        self._size = size
        self._work = work
        self._parts = parts
        self._tokens: list[np.ndarray] = []  # of each frame encoded so far, float32 [n, hidden]
        self._starts = [0]  # the number of each frame's first token
        self._clip: Clip | None = None

    @property
    def num_frames(self) -> int:
        return len(self.timestamps_s)

    @property
    def source_size(self) -> tuple[int, int]:
        """Height and width of the upright original, before resizing, in pixels."""
        return self._media.height, self._media.width

    @property
    def height_px(self) -> int:
        return self._size[0]

    @property
    def width_px(self) -> int:
        return self._size[1]

    def frame(self, index: int) -> tuple[int, np.ndarray]:
        """The number of a frame's first token, and its tokens float32 [n, hidden]; encodes up to it if needed.

        Raises MediaError for media that cannot be read to the end.
        """
        while len(self._tokens) <= index:
            part = next(self._parts)
            ends = np.cumsum(part.tokens_per_frame)
            self._tokens += np.split(part.tokens, ends[:-1])
            self._starts += (self._starts[-1] + ends).tolist()
        return self._starts[index], self._tokens[index]

    def finish(self) -> Clip:
        """The whole clip; encodes what is left of it."""
        if self._clip is None:
            self.frame(self.num_frames - 1)
            next(self._parts, None)  # the reader says at its end what of the file was damaged
            self._clip = self._finished()
        return self._clip

    def _finished(self) -> Clip:
        media, work = self._media, self._work
        tokens = np.concatenate(self._tokens)
        tokens.setflags(write=False)
        kept = tuple(len(part) for part in self._tokens)
        per_frame = self._size[0] * self._size[1] // work.block**2
        return Clip(
            kind=media.kind,
            name=media.name,
            start_s=media.start_s,
            end_s=media.end_s,
            timestamps_s=media.timestamps_s,
            height_px=self._size[0],
            width_px=self._size[1],
            source_size=self.source_size,
            tokens_per_frame=kept,
            num_pruned=per_frame * media.num_frames - sum(kept),
            threshold=work.threshold,
            stats=EncodeStats(media.read_s + work.read_s, work.prune_s, work.vision_s, work.projector_s),
            visual=VisualTokens(tokens, kept, self.uid),
        )


AnyClip = Clip | PendingClip
