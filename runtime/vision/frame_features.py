"""What the vision encoder says of frames, before the projector: a map of tokens, or one vector a frame.

The map is the output of transformers' `VideoLlama3VisionModel` with the merge size of the kind of media: 1 for images,
2 × 2 patches in one for videos. A frame's vector is the mean of its map, made one long, so that the dot product of two
is their cosine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..config import MediaKind


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """Features of consecutive frames of one clip, or of an image, which is a clip of one frame.

    vectors: float32 [F, C], each of length 1.
    tokens: float32 [F, h, w, C] as the encoder gives them, h × w tokens of a frame; None unless they were asked for.
    timestamps_s: of the frames, from the start of the stream; (0.0,) for an image.
    height_px, width_px: of the frames as the encoder saw them.
    """

    kind: MediaKind
    name: str
    timestamps_s: tuple[float, ...]
    height_px: int
    width_px: int
    vectors: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.float32] | None = None

    @property
    def num_frames(self) -> int:
        return len(self.timestamps_s)


def merged(features: np.ndarray, merge_size: int) -> npt.NDArray[np.float32]:
    """Features of patches [F, h, w, C] to those of tokens, float32 [F, h / m, w / m, C].

    As bilinear interpolation to exactly 1 / m does it: the middle patch of an odd block, the mean of the middle four
    of an even one.
    """
    count, rows, columns, width = features.shape
    m = merge_size
    low, high = (m - 1) // 2, m // 2 + 1
    blocks = features.reshape(count, rows // m, m, columns // m, m, width)[:, :, low:high, :, low:high]
    tokens: npt.NDArray[np.float32] = blocks.mean(axis=(2, 4), dtype=np.float32)
    return tokens


def vectors_of(tokens: np.ndarray) -> npt.NDArray[np.float32]:
    """Maps [F, h, w, C] to vectors float32 [F, C] of length 1; where the mean is 0, so is the vector."""
    means = tokens.mean(axis=(1, 2), dtype=np.float64)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return (means / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def joined(parts: Iterable[FrameFeatures]) -> FrameFeatures:
    """The features of a whole clip, from those of its parts in order; there is one at least."""
    held = list(parts)
    maps = [part.tokens for part in held if part.tokens is not None]
    return replace(
        held[0],
        timestamps_s=tuple(time for part in held for time in part.timestamps_s),
        vectors=np.concatenate([part.vectors for part in held]),
        tokens=np.concatenate(maps) if maps else None,
    )
