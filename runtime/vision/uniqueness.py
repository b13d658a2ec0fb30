"""Which visual tokens of a clip say what the others do not: a choice after the projector, on top of DiffFP.

DiffFP asks pixels what changed since the frame before. A noisy or moving picture changes everywhere; what a question is
about may still be a few tokens among many alike. A token is the more unique the less it resembles the mean of its frame
and the mean of the clip (cosine similarity), and a frame that differs more from the clip may keep more of its tokens.
The choice depends on the tokens alone and is deterministic.

Source: VidCom² (arXiv 2505.14454): these two means, and a frame's share by a softmax over the frames' mean uniqueness.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import MediaError

Tokens = npt.NDArray[np.float32]

_TEMPERATURE = 0.01  # of the softmax over frames
_TINY = 1e-12


def unique_tokens(tokens: Tokens, tokens_per_frame: Sequence[int], count: int) -> npt.NDArray[np.bool_]:
    """The most unique tokens of a clip: bool [N], `count` of them, or more to keep one of every frame.

    tokens: float32 [N, hidden], frame by frame. tokens_per_frame: their number in each, 1 or more. Of equal tokens the
    first are kept.
    """
    bounds = np.cumsum(tokens_per_frame)[:-1]
    units = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), _TINY)
    in_clip = np.split(_uniqueness(units), bounds)
    in_frame = [_uniqueness(frame) for frame in np.split(units, bounds)]
    weights = _frame_weights(np.array([scores.mean() for scores in in_clip]))
    counts = _seats(weights * tokens_per_frame, tokens_per_frame, max(count, len(in_frame)))
    return np.concatenate([_largest(a + b, kept) for a, b, kept in zip(in_frame, in_clip, counts, strict=True)])


def check_budget(name: str, num_frames: int, max_tokens: int) -> None:
    """Raises MediaError for a video, called `name`, of which every frame must keep a token and `max_tokens` may."""
    if max_tokens < num_frames:
        raise MediaError(
            f"{name}: pruning leaves at least {num_frames:,} visual tokens, one of each frame, but {max_tokens:,} are "
            "allowed: allow more or sample fewer frames"
        )


def _uniqueness(units: Tokens) -> npt.NDArray[np.float64]:
    """How little each of the unit vectors [n, hidden] resembles their mean: −1 (equal) to 1."""
    mean = units.mean(axis=0, dtype=np.float64)
    return -(units @ (mean / max(float(np.linalg.norm(mean)), _TINY)))


def _frame_weights(uniqueness: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What a frame may keep of its tokens, relative to the others: 0 to 2, 1 on average."""
    weights = np.exp((uniqueness - uniqueness.max()) / _TEMPERATURE)
    return 1 + weights / weights.sum() - 1 / len(weights)


def _seats(weights: npt.NDArray[np.float64], limits: Sequence[int], total: int) -> list[int]:
    """`total` seats shared in proportion to `weights` by highest averages (Sainte-Laguë): 1 to its limit for each."""
    claims = [weight / (np.arange(limit) + 0.5) for weight, limit in zip(weights, limits, strict=True)]
    for claim in claims:
        claim[0] = np.inf
    given = _largest(np.concatenate(claims), total)
    return [int(part.sum()) for part in np.split(given, np.cumsum(limits)[:-1])]


def _largest(scores: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.bool_]:
    """bool [n]: the `count` largest; of equal ones the first."""
    keep = np.zeros(len(scores), np.bool_)
    keep[np.argsort(-scores, kind="stable")[:count]] = True
    return keep
