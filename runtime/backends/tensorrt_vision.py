"""The vision path's graphs in terms of TensorRT's: frames to patches and places, kept tokens to blocks of patches.

Frames and features go in chunks that fit the plans' profiles. Where the plans run on a GPU, features stay in its memory
on the way from one to the other. The plans are any `Engine`, so this is tested with ONNX Runtime in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..bundle.profiles import Profile, frames_per_call, max_patches, patches_averaged
from ..errors import BackendError
from .buffers import DeviceMemory
from .features import Features, flattened, frames_of
from .onnxruntime import Engine
from .tensorrt_engine import TensorRtEngine


class PatchEncoder:
    """`frames` uint8 [F, H, W, 3] -> `features` float32 [F, h, w, C], with the plan that takes patches."""

    def __init__(self, plan: Engine, profiles: Sequence[Profile], patch_size: int) -> None:
        self._plan = plan
        self._profiles = profiles
        self._patch_size = patch_size

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[Features]:
        """Raises BackendError for frames larger than any profile."""
        frames = inputs["frames"]
        rows, columns = (side // self._patch_size for side in frames.shape[1:3])
        at_once = frames_per_call(self._profiles, rows * columns)
        if at_once == 0:
            raise BackendError(
                f"a frame of {frames.shape[2]}×{frames.shape[1]} pixels has {rows * columns} patches, the plan takes "
                f"{max_patches(self._profiles)} at most: give `vl3edge build` more memory (--memory-mb)."
            )
        positions = np.stack(np.divmod(np.arange(rows * columns, dtype=np.int32), np.int32(columns)), axis=1)
        return [self._features(frames, at_once, positions, (rows, columns))]

    def _features(self, frames: np.ndarray, at_once: int, positions: np.ndarray, grid: tuple[int, int]) -> Features:
        features = [
            self._plan.run({"patches": self._patches(frames[start : start + at_once]), "positions": positions})[0]
            for start in range(0, len(frames), at_once)
        ]
        joined = features[0] if len(features) == 1 else np.concatenate(features)
        return np.asarray(joined.reshape(len(frames), *grid, -1))

    def _patches(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [F, N, patch · patch · 3], a patch reading (row, column, channel)."""
        count, height, width, channels = frames.shape
        size = self._patch_size
        grid = frames.reshape(count, height // size, size, width // size, size * channels).transpose(0, 1, 3, 2, 4)
        return np.ascontiguousarray(grid).reshape(count, -1, size * size * channels)


class ResidentPatchEncoder(PatchEncoder):
    """A `PatchEncoder` whose features stay in the GPU's memory. channels: of a feature."""

    def __init__(
        self,
        plan: TensorRtEngine,
        profiles: Sequence[Profile],
        patch_size: int,
        memory: DeviceMemory,
        channels: int,
    ) -> None:
        super().__init__(plan, profiles, patch_size)
        self._resident = plan
        self._memory = memory
        self._channels = channels

    def _features(self, frames: np.ndarray, at_once: int, positions: np.ndarray, grid: tuple[int, int]) -> Features:
        count, patches = len(frames), len(positions)
        features = self._memory.zeros((count, patches, self._channels), np.float32)
        for start in range(0, count, at_once):
            stop = min(count, start + at_once)
            inputs = {"patches": self._patches(frames[start:stop]), "positions": positions}
            self._resident.run(inputs, into={"features": features.rows(start, stop)})
        return features.reshaped((count, *grid, self._channels))


class BlockProjector:
    """`features` float32 [F, h, w, C], `keep` int64 [K] -> `tokens` float32 [K, D], with the plan that takes blocks.

    merge_size: m; keep indexes the [F, h/m, w/m] grid of merged tokens.
    """

    def __init__(self, plan: Engine, profiles: Sequence[Profile], merge_size: int, hidden_size: int) -> None:
        self._plan = plan
        self._merge_size = merge_size
        self._hidden_size = hidden_size
        block = patches_averaged(merge_size)
        boxes = [profile.inputs for profile in profiles if profile.inputs["blocks"].max[1] == block]
        self._patches = max(box["features"].max[0] for box in boxes)
        self._tokens = max(box["blocks"].max[0] for box in boxes)

    def run(self, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        """Raises BackendError for a frame of more patches than any profile."""
        features, keep = inputs["features"], inputs["keep"]
        tokens = np.empty((len(keep), self._hidden_size), np.float32)
        for start, stop in self._chunks(features.shape):
            part = frames_of(features, start, stop)
            grid = part.shape[1] * part.shape[2] // self._merge_size**2
            chosen = np.flatnonzero((keep >= start * grid) & (keep < stop * grid))
            blocks = self._blocks(keep[chosen] - start * grid, *part.shape[1:3])
            flat = flattened(part)
            for first in range(0, len(chosen), self._tokens):
                piece = slice(first, first + self._tokens)
                tokens[chosen[piece]] = self._plan.run({"features": flat, "blocks": blocks[piece]})[0]
        return [tokens]

    def _chunks(self, shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """Ranges of frames whose patches fit in one call."""
        count, rows, columns, _ = shape
        at_once = self._patches // (rows * columns)
        if at_once == 0:
            raise BackendError(f"a frame of {rows * columns} patches is too large: the plan takes {self._patches}")
        for start in range(0, count, at_once):
            yield start, min(start + at_once, count)

    def _blocks(self, keep: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """int32 [K, B]: of each kept token, the flat indices of the patches it is the mean of."""
        m = self._merge_size
        frame, place = np.divmod(keep, (rows // m) * (columns // m))
        row, column = np.divmod(place, columns // m)
        corner = (frame * rows + row * m) * columns + column * m
        middle = np.arange((m - 1) // 2, m // 2 + 1)
        offsets = (middle[:, None] * columns + middle).ravel()
        return (corner[:, None] + offsets).astype(np.int32)
