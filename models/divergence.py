"""The divergence of two distributions over tokens."""

from __future__ import annotations

import torch


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) of every row in nats, [...], from log probabilities [..., vocab]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)
