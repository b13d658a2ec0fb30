"""A clip's frames to visual tokens: DiffFP first, then the encoder, then the projector.

Pruning (DiffFP) looks at pixels alone, so it runs before the encoder: the projector never sees a dropped token, and a
frame that is identical to its predecessor is not encoded again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..backends.features import Features, frames_of, gathered
from ..config import MediaKind, PruningConfig
from ..errors import BackendError
from .difffp import FramePruner
from .difffp_threshold import choose_threshold
from .engines import VisionEngines
from .uniqueness import unique_tokens


@dataclass(frozen=True)
class EncodedFrames:
    """Consecutive frames: their visual tokens float32 [n, hidden], and how many of them each frame has."""

    tokens: np.ndarray
    tokens_per_frame: tuple[int, ...]


class FrameEncoder:
    """The state of one clip's encoding, fed with chunks of frames. block: side of a token's block, in pixels."""

    def __init__(
        self,
        vision: VisionEngines,
        kind: MediaKind,
        pruner: FramePruner | None,
        merge_size: int,
        patch_size: int,
    ) -> None:
        self.block = merge_size * patch_size
        self.read_s = self.prune_s = self.vision_s = self.projector_s = 0.0
        self._vision = vision
        self._kind = kind
        self._pruner = pruner
        self._last_frame: np.ndarray | None = None
        self._last_features: Features | None = None

    @property
    def threshold(self) -> float | None:
        """Of DiffFP; None if every token is kept."""
        return None if self._pruner is None else self._pruner.threshold

    def choose_threshold(self, clip: Sequence[np.ndarray], pruning: PruningConfig) -> None:
        """Sets the threshold that `pruning` means for a clip: chunks of frames uint8 [F, H, W, 3], none encoded yet."""
        if self._pruner is not None:
            begin = time.perf_counter()
            differences = self._pruner.differences(chain.from_iterable(clip))
            self._pruner.threshold = choose_threshold(differences, pruning)
            self.prune_s += time.perf_counter() - begin

    def encoded(self, frames: np.ndarray) -> EncodedFrames:
        """The tokens of frames uint8 [F, H, W, 3], the next of the clip.

        Raises BackendError for tokens that are no numbers: in the KV cache they would spoil every later answer, too.
        """
        begin = time.perf_counter()
        keep = self._keep(frames)
        pruned = time.perf_counter()
        features = self.features(frames)
        encoded = time.perf_counter()
        tokens = self._vision.tokens(features, self._kind, keep)
        check_finite(tokens, frames.shape[1:3])
        self.projector_s += time.perf_counter() - encoded
        self.vision_s += encoded - pruned
        self.prune_s += pruned - begin
        return EncodedFrames(tokens, tuple(keep.sum(axis=1).tolist()))

    def most_unique(self, parts: Iterator[EncodedFrames], pruning: PruningConfig) -> Iterator[EncodedFrames]:
        """The clip in one part, of whose tokens as many are kept as `pruning` says (`uniqueness.py`)."""
        held = list(parts)
        begin = time.perf_counter()
        tokens = np.concatenate([part.tokens for part in held])
        counts = [count for part in held for count in part.tokens_per_frame]
        keep = unique_tokens(tokens, counts, pruning.tokens_chosen(len(tokens)))
        kept = tuple(int(part.sum()) for part in np.split(keep, np.cumsum(counts)[:-1]))
        self.prune_s += time.perf_counter() - begin
        yield EncodedFrames(tokens[keep], kept)

    def restart(self) -> None:
        """The next frame is the first of a clip: it is encoded, and all its tokens are kept."""
        self._last_frame = self._last_features = None
        if self._pruner is not None:
            self._pruner.reset()

    def _keep(self, frames: np.ndarray) -> np.ndarray:
        if self._pruner is None:
            return np.ones((len(frames), frames.shape[1] * frames.shape[2] // self.block**2), np.bool_)
        return np.stack([self._pruner.push(frame) for frame in frames])

    def features(self, frames: np.ndarray) -> Features:
        """Features of all frames; one that equals its predecessor takes the predecessor's."""
        new: list[np.ndarray] = []
        source: list[int] = []  # per frame, its place among the encoded ones; −1 is the last chunk's last frame
        for frame in frames:
            if self._last_frame is None or not np.array_equal(frame, self._last_frame):
                new.append(frame)
            source.append(len(new) - 1)
            self._last_frame = frame
        encoded = [] if self._last_features is None else [self._last_features]
        offset = len(encoded)
        if new:
            encoded.append(self._vision.features(np.stack(new)))
        features = gathered(encoded, np.array(source) + offset) if len(source) > len(new) else encoded[-1]
        self._last_features = frames_of(features, len(frames) - 1, len(frames))
        return features


def check_finite(values: np.ndarray, size: tuple[int, ...]) -> None:
    """Raises BackendError for an output of the vision path that is no number. size: (height, width) of the frames."""
    if not np.isfinite(values).all():
        raise BackendError(
            f"the vision encoder's output is NaN or infinite for a picture of {size[1]}×{size[0]} pixels: its weights "
            "are damaged, or its precision is too low on this backend; `vl3edge verify` finds the stage"
        )
