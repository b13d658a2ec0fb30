"""Frequencies of rotary embeddings, for torch: `runtime/decode/rope.py` has them for numpy."""

from __future__ import annotations

import torch


def rotary_frequencies(theta: float, dim: int, device: str | None = None) -> torch.Tensor:
    """Radians per position, float32 [dim / 2]; the inverse first, as large positions magnify the last bit."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    frequencies: torch.Tensor = 1.0 / theta**exponents
    return frequencies
