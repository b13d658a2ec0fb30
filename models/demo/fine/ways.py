"""The ways to answer that an evaluation compares: a model, and which of a clip's tokens it gets.

A way is written MODEL or MODEL:PRUNING. MODEL is "torch" (the checkpoint in float32) or the folder of an exported
bundle. PRUNING is "full" (all tokens, the default), a threshold of DiffFP such as "0.1", or "random": a random half of
each frame, the same half for every model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vl3edge.runtime.prompt.splice import VisualTokens
from vl3edge.runtime.vision.clip import Clip, new_uid

from ..predictors import BundlePredictor, Predictor, TorchPredictor
from .answers import random_keep
from .labels import SIDE

RANDOM_SHARE = 0.5


def make_way(way: str, checkpoint: Path) -> Predictor:
    """The predictor of a way. Raises ValueError for a pruning that is none of those above."""
    model, _, pruning = way.partition(":")
    if pruning == "random":
        return RandomTorch(checkpoint, None) if model == "torch" else RandomBundle(Path(model), None)
    threshold = None
    if pruning not in ("", "full"):
        try:
            threshold = float(pruning)
        except ValueError:
            raise ValueError(f"{way}: pruning must be 'full', 'random' or a threshold, not {pruning!r}") from None
    return TorchPredictor(checkpoint, threshold) if model == "torch" else BundlePredictor(Path(model), threshold)


def drawn_half(media: Path, frames: int) -> NDArray[np.bool_]:
    """The tokens of a clip to keep, bool [F, 5, 5], determined by the number in the file's name."""
    return random_keep((frames, SIDE, SIDE), RANDOM_SHARE, np.random.default_rng([int(media.stem), 16]))


class RandomTorch(TorchPredictor):
    """The checkpoint, given half of the tokens."""

    def _keep(self, media: Path, frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return drawn_half(media, len(frames))


class RandomBundle(BundlePredictor):
    """A bundle, given half of the tokens."""

    def _encode(self, media: Path) -> Clip:
        clip = super()._encode(media)
        keep = drawn_half(media, clip.num_frames)
        counts = tuple(keep.sum(axis=(1, 2)).tolist())
        tokens = clip.visual.tokens[keep.reshape(-1)]
        return replace(
            clip,
            tokens_per_frame=counts,
            num_pruned=clip.num_tokens - sum(counts),
            visual=VisualTokens(tokens, counts, new_uid()),
        )
