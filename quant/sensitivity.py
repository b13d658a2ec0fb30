"""Mixed precision: finds the weights that suffer most at 4 bits and gives them 8 within a budget.

Each group of linear layers with a common input is rounded to 4 and to 8 bits on its own, and the layer's output is
compared with the float32 one: per token, the squared change relative to the hidden state it is added to. Later layers
see just that, since each begins by normalizing. The groups that reduce the error most per added byte win.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.decoder import DecoderLayer, rotary

from . import grid as grids
from .plan import GROUPS, QuantizationPlan
from .sequences import CalibrationSequence

_LOW, _HIGH = 4, 8
_TOKENS = 512  # enough tokens to rank groups; more would only cost time


@dataclass(frozen=True)
class Sensitivity:
    """One group of one decoder layer. low, high: relative squared change of the layer's output at 4 and 8 bits."""

    layer: int
    group: tuple[str, ...]
    weights: int
    low: float
    high: float

    @property
    def gain_per_weight(self) -> float:
        return (self.low - self.high) / self.weights


@torch.inference_mode()
def measure(
    checkpoint: Checkpoint, sequences: Sequence[CalibrationSequence], plan: QuantizationPlan, device: torch.device
) -> list[Sensitivity]:
    """Every group of every decoder layer, on the first tokens of the sequences."""
    hidden = _first_tokens(sequences)
    cos, sin = (table.to(device) for table in rotary(checkpoint.config.text, 0, max(map(len, hidden))))
    found = []
    with torch.device(device):
        hidden = [states.to(device) for states in hidden]

        def outputs(layer: DecoderLayer) -> list[torch.Tensor]:
            return [layer(x[None], (cos[: len(x)], sin[: len(x)]))[0][0] for x in hidden]

        for index in range(checkpoint.config.text.num_layers):
            layer = DecoderLayer.from_checkpoint(checkpoint, index).to(device)
            reference = outputs(layer)
            for group in GROUPS:
                originals = {name: layer.get_submodule(name).get_parameter("weight") for name in group}
                changes = []
                for bits in (_LOW, _HIGH):
                    for name, weight in originals.items():
                        layer.get_submodule(name).weight = _rounded(weight, plan, bits)
                    changes.append(_relative_change(outputs(layer), reference))
                for name, weight in originals.items():
                    layer.get_submodule(name).weight = weight
                weights = sum(weight.numel() for weight in originals.values())
                found.append(Sensitivity(index, group, weights, *changes))
            hidden = reference
    return found


def choose_bits(sensitivities: Sequence[Sensitivity], average_bits: float) -> list[dict[str, int]]:
    """Bits of every linear, per layer by name: 8 where it gains most while the average stays in the budget."""
    layers = 1 + max(sensitivity.layer for sensitivity in sensitivities)
    bits = [{name: _LOW for group in GROUPS for name in group} for _ in range(layers)]
    total = sum(sensitivity.weights for sensitivity in sensitivities)
    budget = round(total * (average_bits - _LOW) / (_HIGH - _LOW))
    for sensitivity in sorted(sensitivities, key=lambda s: s.gain_per_weight, reverse=True):
        if sensitivity.weights <= budget:
            budget -= sensitivity.weights
            bits[sensitivity.layer].update(dict.fromkeys(sensitivity.group, _HIGH))
    return bits


def _first_tokens(sequences: Sequence[CalibrationSequence]) -> list[torch.Tensor]:
    left, taken = _TOKENS, []
    for sequence in sequences:
        taken.append(torch.from_numpy(sequence.embeddings[:left]))
        left -= len(taken[-1])
        if left == 0:
            break
    return taken


def _rounded(weight: torch.Tensor, plan: QuantizationPlan, bits: int) -> nn.Parameter:
    grid = plan.grid(bits)
    scaling = grids.min_max(weight, grid)
    return nn.Parameter(grids.values(grids.nearest(weight, scaling, grid), scaling), requires_grad=False)


def _relative_change(outputs: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Mean over tokens, so that the few with huge hidden states do not dominate."""
    changes = [
        (x - y).square().sum(-1) / y.square().sum(-1).clamp_min(1e-12) for x, y in zip(outputs, reference, strict=True)
    ]
    return float(torch.cat(changes).double().mean())
