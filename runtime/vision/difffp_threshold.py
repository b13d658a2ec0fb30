"""The threshold of DiffFP that suits one clip: just above its noise floor.

The released threshold of 0.1 asks whether a block changed by a twentieth of an 8-bit level: a sensor's noise of one
level, or what H.264 makes of it, changes every block by more. The choice needs the differences of the whole clip
(`token_differences`), a few numbers a frame; which tokens are kept is then `FramePruner`'s decision as for any other
threshold.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..config import PruningConfig
from .difffp import RELEASED_THRESHOLD

Differences = npt.NDArray[np.float64]

NOISE_LIMIT = 16.0
"""Nothing above it counts as noise. Uncompressed sensor noise of σ = 5 levels is below; slow motion may be above."""

_DEVIATIONS = 3.0  # the threshold lies so far above the mean of the noise
_SEED_SHARE = 0.25  # of the differences; the smallest ones, taken for noise to begin with


def choose_threshold(differences: Differences, pruning: PruningConfig) -> float:
    """The threshold that `pruning` means for a clip; differences: float64 [F, n] of `token_differences`."""
    return noise_threshold(differences) if pruning.threshold == "auto" else float(pruning.threshold)


def noise_threshold(differences: Differences) -> float:
    """A threshold just above the noise floor of a clip, from 0.1 to 16; differences: float64 [F, n].

    Blocks in which nothing moves differ by noise and compression alone and form a cluster of small differences; blocks
    that move spread far above it. The cluster is grown from below: the smallest quarter of the differences seeds it,
    and it takes in all that lie within three standard deviations above its mean, until none is added. Square roots are
    compared, because noise spreads the more the stronger it is; and the spread counts as no smaller than makes the
    threshold 0.1 for a clip that does not change at all.

    Where most of the picture moves, as from a moving camera, differences have no such cluster: it grows until it is
    beyond 16, and the released threshold is taken. Noise stronger than that is not recognized. Something that changes
    all blocks alike and slowly, such as fading light, cannot be told from noise.
    """
    ordered = np.sort(differences[1:], axis=None)
    if not ordered.size:
        return RELEASED_THRESHOLD
    counts = np.arange(1, ordered.size + 1)
    means = np.sqrt(ordered).cumsum() / counts
    deviations = np.sqrt(np.maximum(ordered.cumsum() / counts - means**2, RELEASED_THRESHOLD / _DEVIATIONS**2))
    edges = (means + _DEVIATIONS * deviations) ** 2  # of the clusters of 1, 2, … smallest differences
    # A cluster stands if the next difference lies beyond its edge. The largest always does.
    stands = np.append(ordered[1:] > edges[:-1], True)
    seed = math.ceil(_SEED_SHARE * ordered.size) - 1
    threshold = float(edges[seed + int(stands[seed:].argmax())])
    return max(threshold, RELEASED_THRESHOLD) if threshold <= NOISE_LIMIT else RELEASED_THRESHOLD
