"""How far a distribution over tokens is from another."""

from __future__ import annotations

import torch


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) of every row in nats, [...] of the logarithms [..., vocab] of both."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)
