"""Weights by name, as graph writers read them, and heads padded to the sizes that ONNX Runtime accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.quant.dequantized import DequantizedCheckpoint


class TensorSource(Protocol):
    """Weights by canonical name, as float32 arrays."""

    def array(self, name: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Float32Source:
    """A checkpoint's tensors as float32 arrays, one at a time."""

    checkpoint: Checkpoint | DequantizedCheckpoint

    def array(self, name: str) -> np.ndarray:
        return self.checkpoint.tensor(name, torch.float32).numpy()


def padded_head_dim(head_dim: int) -> int:
    """The head size inside the graph and the KV cache: head_dim rounded up to a multiple of 16."""
    return -(-head_dim // 16) * 16


def pad_heads(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """[heads * head_dim, ...] -> [heads * padded, ...]: zeros after each half of every head."""
    halves = rows.reshape(-1, head_dim // 2, *rows.shape[1:])
    width = [(0, 0), (0, (padded_head_dim(head_dim) - head_dim) // 2)] + [(0, 0)] * (rows.ndim - 1)
    return np.pad(halves, width).reshape(-1, *rows.shape[1:])
