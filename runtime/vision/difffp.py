"""DiffFP, the differential frame pruner: drops video tokens that did not change.

A token covers a block of (patch × merge)² pixels. It is kept when its block differs from the same block of the previous
*sampled* frame (not of the last kept one) by more than a threshold, measured on normalized pixels times 255. The
normalization's mean cancels out, so only sums of differences of 8-bit levels are needed, which are integers, and the
result is exact on every machine. Blocks whose difference is exactly the threshold are dropped; a float32 implementation
may decide such a tie either way.

Source: VideoLLaMA3 (arXiv 2501.13106) and `_get_compression_mask` of transformers' video_llama_3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

Frame = npt.NDArray[np.uint8]

RELEASED_STD = (0.5, 0.5, 0.5)
RELEASED_THRESHOLD = 0.1


class FramePruner:
    """Decides frame by frame, holding one previous frame; a clip may be given whole or in chunks.

    patch_size, merge_size: of the vision encoder; a token is a block of patch_size × merge_size pixels squared.
    std: of the processor's normalization, per channel.
    threshold: a token whose difference is above it is kept; may be set before the first frame.
    """

    def __init__(
        self,
        patch_size: int,
        merge_size: int,
        std: Sequence[float] = RELEASED_STD,
        threshold: float = RELEASED_THRESHOLD,
    ) -> None:
        if len(std) != 3 or min(std) <= 0:
            raise ConfigError(f"std must be three positive numbers, not {tuple(std)}")
        self._block = patch_size * merge_size
        self._std = tuple(std)
        self.threshold = threshold
        self._previous: Frame | None = None

    def push(self, frame: Frame) -> npt.NDArray[np.bool_]:
        """The tokens of `frame`, uint8 [H, W, 3], to keep: bool [H/block · W/block], row by row.

        The first frame is kept whole; a frame in which nothing changed keeps its first token. The frame is held until
        the next one, so the caller must not write to it.
        """
        previous, self._previous = self._previous, frame
        if previous is None:
            height, width = _grid(frame, self._block)
            return np.ones(height * width, dtype=np.bool_)
        keep = _difference(previous, frame, self._block, self._std) > self.threshold
        if not keep.any():
            keep[0] = True
        return keep

    def differences(self, frames: Iterable[Frame]) -> npt.NDArray[np.float64]:
        """What `push` compares with the threshold, for a whole clip: see `token_differences`."""
        rows: list[npt.NDArray[np.float64]] = []
        previous: Frame | None = None
        for frame in frames:
            if previous is None:
                height, width = _grid(frame, self._block)
                rows.append(np.full(height * width, np.inf))
            else:
                rows.append(_difference(previous, frame, self._block, self._std))
            previous = frame
        return np.stack(rows)

    def reset(self) -> None:
        """Forgets the previous frame: the next one is the first of a clip."""
        self._previous = None


def keep_mask(
    frames: npt.NDArray[np.uint8],
    patch_size: int,
    merge_size: int,
    std: Sequence[float] = RELEASED_STD,
    threshold: float = RELEASED_THRESHOLD,
) -> npt.NDArray[np.bool_]:
    """Which tokens of a whole clip are kept: bool [F, h·w] for `frames` uint8 [F, H, W, 3], h = H/(patch·merge)."""
    pruner = FramePruner(patch_size, merge_size, std, threshold)
    return np.stack([pruner.push(frame) for frame in frames])


def token_differences(
    frames: npt.NDArray[np.uint8], patch_size: int, merge_size: int, std: Sequence[float] = RELEASED_STD
) -> npt.NDArray[np.float64]:
    """What `keep_mask` compares with the threshold: float64 [F, h·w]; infinite in the first frame."""
    return FramePruner(patch_size, merge_size, std).differences(frames)


def _grid(frame: Frame, block: int) -> tuple[int, int]:
    height, width = frame.shape[:2]
    if height % block or width % block or frame.ndim != 3 or frame.dtype != np.uint8:
        raise ConfigError(
            f"frames must be uint8 [H, W, 3] with sides that are multiples of {block}, "
            f"not {frame.dtype} {list(frame.shape)}"
        )
    return height // block, width // block


def _difference(a: Frame, b: Frame, block: int, std: Sequence[float]) -> npt.NDArray[np.float64]:
    """Mean over each block of |a − b| / (255 · std), times 255: float64 [h·w]."""
    if a.shape != b.shape:
        raise ConfigError(f"the frames of a clip must have one size, not {list(a.shape)} and {list(b.shape)}")
    height, width = _grid(b, block)
    levels = np.maximum(a, b) - np.minimum(a, b)
    # Rows first, where the memory is contiguous: 255 × block fits 16 bits up to a block of 257 pixels.
    columns = levels.reshape(height, block, -1).sum(axis=1, dtype=np.uint16 if block <= 257 else np.uint32)
    sums = columns.reshape(height * width, block, 3).sum(axis=1, dtype=np.int64)
    return (sums / np.asarray(std)).sum(axis=1) / (3 * block * block)
