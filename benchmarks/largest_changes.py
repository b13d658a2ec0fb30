"""DiffFP by budget: the smallest threshold that keeps at most so many of a clip's tokens, those that changed most.

It was what `--max-visual-tokens` meant, until the fine model told that the most unique tokens serve better
(docs/pruning.md); the benchmarks still draw its curves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fewest_tokens(num_frames: int, tokens_per_frame: int) -> int:
    """The tokens that the highest threshold keeps: all of the first frame, one of every other."""
    return tokens_per_frame + num_frames - 1


def budget_threshold(differences: NDArray[np.float64], max_tokens: int) -> float:
    """The smallest threshold with which a clip keeps at most `max_tokens`; differences: float64 [F, n].

    Tokens go one by one in the order of their differences; ties go together, so fewer than `max_tokens` may be kept.
    Raises ValueError if `max_tokens` is below `fewest_tokens`.
    """
    spare = max_tokens - fewest_tokens(*differences.shape)
    if spare < 0:
        raise ValueError(f"{max_tokens} tokens are fewer than the {max_tokens - spare} that no threshold prunes")
    # Whatever the threshold, a frame keeps one token: its most changed, or its first. Only the others cost extra.
    others = np.sort(differences[1:], axis=1)[:, :-1].ravel()
    if spare >= others.size:
        return 0.0
    return float(np.partition(others, -1 - spare)[-1 - spare])
