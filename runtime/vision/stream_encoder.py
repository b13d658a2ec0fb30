"""Encodes a stream's frames: each is resized, pruned against the previous one, encoded and projected on arrival."""

from __future__ import annotations

import numpy as np

from ..bundle.specs import MediaSpec
from ..media.resize import BudgetRule, resize_rgb
from .frame_encoder import FrameEncoder


class StreamFrames:
    """Encodes the frames of one stream, all at one size.

    size: (height, width) in pixels that every frame is resized to. rule: of `resize_rgb`.
    """

    def __init__(self, encoder: FrameEncoder, size: tuple[int, int], rule: BudgetRule) -> None:
        self.size = size
        self._encoder = encoder
        self._rule = rule

    @property
    def max_tokens(self) -> int:
        """Visual tokens of an unpruned frame."""
        return self.size[0] * self.size[1] // self._encoder.block**2

    def tokens(self, frame: np.ndarray) -> np.ndarray:
        """The visual tokens kept of a frame uint8 [H, W, 3], float32 [n, hidden]."""
        resized = resize_rgb(frame, self.size, self._rule)
        if resized is frame:
            resized = frame.copy()  # it is held until the next one, and the caller may reuse the memory
        return self._encoder.encoded(resized[None]).tokens

    def restart(self) -> None:
        """The next frame is kept whole."""
        self._encoder.restart()


def frames_sharing_budget(spec: MediaSpec, max_frames: int) -> int:
    """Among how many frames a stream divides the pixel budget of a video: at most max_frames, those that a clip has.

    Fewer where that would leave a frame less than the minimum.
    """
    return max(1, min(max_frames, spec.max_pixels // spec.min_pixels))
