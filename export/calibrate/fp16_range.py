"""Checks in the float32 reference whether float16 can hold the inputs, outputs and weights of a model's products.

ONNX Runtime on a CPU, where exports are measured, keeps many intermediate values in float32 even where the graph says
float16, and would not notice an overflow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vl3edge.models.weight_map import Linear

from ..errors import ExportError

LARGEST_FP16 = 65504.0


class Fp16Range:
    """The largest absolute values of products by name: of their weights, and of observed inputs and outputs."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}

    def watch(self, module: nn.Module, prefix: str = "") -> None:
        """Observes every product of a module from now on."""

        def looking(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
            def look(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
                seen = max(float(value.abs().max()) for value in (*inputs, output))
                self.largest[name] = max(seen, self.largest.get(name, 0.0))

            return look

        for name, part in module.named_modules():
            if isinstance(part, Linear | nn.Linear):
                self.largest[prefix + name] = max(float(weight.abs().max()) for weight in part.parameters())
                part.register_forward_hook(looking(prefix + name))

    def check(self, what: str) -> None:
        """Raises ExportError if a value was too large. what: for the message, the part that computes in float16."""
        over = [f"{name} ({value:.3g})" for name, value in self.largest.items() if not value <= LARGEST_FP16]
        if over:
            raise ExportError(f"{what} in float16, which cannot hold some values: {', '.join(over)}")
