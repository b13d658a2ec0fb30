"""The second moments of a layer's inputs, all that GPTQ needs from the calibration data."""

from __future__ import annotations

import torch

_BLOCK_COLUMNS = 1024


class InputMoments:
    """Accumulates H = Σ w·x·xᵀ / Σ w over tokens x, in float32, on the device of the first one.

    Only blocks on and above the diagonal are computed, which for the widest layer is little more than half the work.
    """

    def __init__(self, features: int) -> None:
        self._features = features
        self._sum: torch.Tensor | None = None
        self._weight = 0.0

    def add(self, x: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """x: float32 [tokens, features]. weights: [tokens], not negative, how much each counts; None is 1 each."""
        if self._sum is None:
            self._sum = torch.zeros(self._features, self._features, device=x.device)
        self._weight += x.shape[0] if weights is None else float(weights.sum())
        left = (x if weights is None else x * weights[:, None]).t()
        for start in range(0, self._features, _BLOCK_COLUMNS):
            rows = slice(start, start + _BLOCK_COLUMNS)
            self._sum[rows, start:].addmm_(left[rows], x[:, start:])

    def mean(self) -> torch.Tensor:
        """H, float32 [features, features]; all zero if no token of positive weight was added. Ends the accumulation."""
        total = torch.zeros(self._features, self._features) if self._sum is None else self._sum
        self._sum = None
        for start in range(0, self._features, _BLOCK_COLUMNS):
            stop = start + _BLOCK_COLUMNS
            total[stop:, start:stop] = total[start:stop, stop:].t()
            # A matrix product need not be symmetric to the last bit within a diagonal block.
            block = total[start:stop, start:stop]
            block.copy_((block + block.t()) / 2)
        return total.div_(self._weight) if self._weight > 0 else total
