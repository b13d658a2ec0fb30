"""Logits to the next token: greedy or sampled, in the order and with the meaning of transformers' processors."""

from __future__ import annotations

import numpy as np

from ..bundle.specs import GREEDY, GenerationSpec
from ..config import GenerationConfig
from ..errors import BackendError


class Sampler:
    """Chooses tokens for one answer; settings that its config leaves open are the model's.

    needs_logits: False when the decoder's own greedy choice is the answer and no logits have to be read.
    """

    def __init__(self, config: GenerationConfig, model: GenerationSpec = GREEDY) -> None:
        self._config = config.filled(model)
        self._random = np.random.default_rng(config.seed)
        self.needs_logits = bool(self._config.temperature) or self._config.repetition_penalty != 1.0

    def sample(self, logits: np.ndarray, history: np.ndarray) -> int:
        """The next token's id, from logits float32 [vocab] and the ids int64 [n] that the penalty counts.

        Raises BackendError as `check_logits` does.
        """
        check_logits(logits)
        scores = penalize_repetition(logits, history, self._config.repetition_penalty)
        if not self._config.temperature:
            return int(scores.argmax())
        probabilities = filtered_probabilities(scores, self._config)
        cumulative = np.cumsum(probabilities)
        return int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))


def check_logits(logits: np.ndarray) -> None:
    """Raises BackendError for logits of which the best is NaN or infinite: no token can be taken from them."""
    if not np.isfinite(logits.max()):
        raise BackendError(
            "the decoder's logits are NaN or infinite: its weights are damaged, or its precision is too low on this "
            "backend; `vl3edge verify` finds the stage"
        )


def log_probability(logits: np.ndarray, token: int) -> float:
    """Natural logarithm of what the softmax of logits float32 [vocab] gives a token."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    return float(scores[token] - np.log(np.exp(scores).sum()))


def penalize_repetition(logits: np.ndarray, history: np.ndarray, penalty: float | None) -> np.ndarray:
    """Logits with those of ids that occurred divided by penalty if positive, multiplied if negative; None is 1.0."""
    if penalty in (None, 1.0):
        return logits
    scores = logits.copy()
    seen = np.unique(history)
    scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def filtered_probabilities(scores: np.ndarray, config: GenerationConfig) -> np.ndarray:
    """Probabilities float64 [vocab] after temperature, top-k and top-p, in this order.

    temperature must be above 0; None of either is off.

    top-k keeps the k best and whatever ties with the k-th; top-p keeps the smallest set of best tokens whose
    probabilities reach top_p, at least one.
    """
    scaled = scores.astype(np.float64)
    with np.errstate(over="ignore"):  # all but the best become −inf at a temperature close to 0
        scaled = (scaled - scaled.max()) / (config.temperature or 1.0)
    top_k, top_p = config.top_k or 0, 1.0 if config.top_p is None else config.top_p
    if 0 < top_k < len(scaled):
        kth = np.partition(scaled, -top_k)[-top_k]
        scaled = np.where(scaled < kth, -np.inf, scaled)
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    if top_p < 1.0:
        order = np.argsort(probabilities, kind="stable")
        # From the least likely up: drop while what is dropped stays within 1 − top_p.
        dropped = order[:-1][np.cumsum(probabilities[order])[:-1] <= 1.0 - top_p]
        probabilities[dropped] = 0.0
        probabilities /= probabilities.sum()
    return probabilities
