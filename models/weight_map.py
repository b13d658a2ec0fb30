"""Where each parameter of the torch modules comes from in a checkpoint, read lazily.

A module lists its parameters as `WeightSource`s: the canonical tensor and how it is transformed. Loading fills a module
with them; export streams them into a file one at a time, so that the whole model never needs to be in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from .checkpoint import Checkpoint


class WeightTransform(Protocol):
    def __call__(self, stored: torch.Tensor) -> torch.Tensor: ...


def as_stored(stored: torch.Tensor) -> torch.Tensor:
    return stored


def transposed(stored: torch.Tensor) -> torch.Tensor:
    return stored.T


@dataclass(frozen=True)
class WeightSource:
    """One parameter: the canonical name of the stored tensor, and how its axes are transformed."""

    name: str
    transform: WeightTransform = as_stored

    def read(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The parameter, contiguous, in its own memory."""
        transformed = self.transform(checkpoint.tensor(self.name)).to(dtype)
        return transformed.clone(memory_format=torch.contiguous_format)


class Linear(nn.Module):
    """x @ weight + bias, the weight [in, out] as in ONNX's MatMul, so that a traced graph transposes nothing."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


def linear_weights(module: nn.Module) -> set[str]:
    """Names of the parameters of `module` that are the [in, out] weights of `Linear` layers."""
    return {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, Linear)}


def load(module: nn.Module, sources: Mapping[str, WeightSource], checkpoint: Checkpoint) -> None:
    """Gives every parameter of `module` (which may be on the meta device) its float32 value from the checkpoint."""
    for name, _ in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        value = nn.Parameter(sources[name].read(checkpoint), requires_grad=False)
        setattr(module.get_submodule(owner), leaf, value)
    module.eval()
