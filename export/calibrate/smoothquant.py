"""SmoothQuant (arXiv 2211.10438) for the inputs of 8-bit products: the encoder's here, the decoder's in `prefill.py`.

An outlier channel, much larger than the others, uses up the 8-bit range. Its values are divided by a factor at their
source, and the weights that read them are multiplied by it, so the result does not change. The gain and shift of a
LayerNorm absorb the factors of the products that read it; the rows of the value projection absorb those of the output
projection, since attention is linear in its values. The output of GELU cannot be scaled in advance; there the scale per
patch must do.

Factors are powers of two, so that in float32 the encoder does not change by a single bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from vl3edge.models.tensor_names import VISION
from vl3edge.models.vision import VisionEncoder
from vl3edge.models.weight_map import WeightSource, WeightTransform

from ..tensor_source import TensorSource

_ACTIVATION_SHARE = 0.5  # the paper's α: how much of the difference in scale moves into the weights
_LARGEST_EXPONENT = 12  # keeps float16 weights of norms far from its limits


@dataclass(frozen=True, eq=False)
class Smoothing:
    """Factors float32 [C] by the name of a tensor: `VisionEncoder`'s own, or a canonical one of the decoder.

    made: divisors of a tensor's output channels. read: multipliers of a weight's inputs.
    """

    made: Mapping[str, np.ndarray]
    read: Mapping[str, np.ndarray]

    def sources(self, sources: Mapping[str, WeightSource]) -> dict[str, WeightSource]:
        """`VisionEncoder.sources()`, scaled: there weights are [in, out]."""
        return {
            name: replace(source, transform=self._transform(name, source.transform)) for name, source in sources.items()
        }

    def stored(self, name: str, value: np.ndarray) -> np.ndarray:
        """A tensor as stored in checkpoints, weights [out, in], scaled. name: canonical."""
        name = name.removeprefix(VISION).removeprefix("encoder.")
        if name in self.made:
            value = value / self.made[name].reshape(-1, *[1] * (value.ndim - 1))
        return value * self.read[name] if name in self.read else value

    def inputs(self, largest: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The largest absolute inputs of each product after smoothing, by its name, float32 [in]."""
        return {name: value / self.read.get(f"{name}.weight", np.float32(1)) for name, value in largest.items()}

    def _transform(self, name: str, before: WeightTransform) -> WeightTransform:
        made, read = self.made.get(name), self.read.get(name)
        if made is None and read is None:
            return before

        def transform(stored: torch.Tensor) -> torch.Tensor:
            value = before(stored).float()
            if made is not None:
                value = value / torch.from_numpy(made)
            return value if read is None else value * torch.from_numpy(read)[:, None]

        return transform


@dataclass(frozen=True)
class SmoothedSource:
    """A source's tensors with smoothed channels."""

    source: TensorSource
    smoothing: Smoothing

    def array(self, name: str) -> np.ndarray:
        return self.smoothing.stored(name, self.source.array(name))


def watch_inputs(
    modules: Iterable[tuple[str, nn.Module]], largest: dict[str, np.ndarray]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Fills `largest`, by module name, with each channel's largest absolute input while they run, float32 [in]."""

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found = inputs[0].abs().flatten(0, -2).amax(dim=0).numpy()
            largest[name] = np.maximum(largest[name], found) if name in largest else found

        return look

    return [module.register_forward_pre_hook(watch(name)) for name, module in modules]


def find_smoothquant(
    encoder: VisionEncoder, largest: Mapping[str, np.ndarray], share: float = _ACTIVATION_SHARE
) -> Smoothing:
    """Factors for an encoder with weights. largest: absolute input of each product, by its name, float32 [in]."""
    made: dict[str, np.ndarray] = {}
    read: dict[str, np.ndarray] = {}
    for layer in range(len(encoder.layers)):
        attention, mlp = f"layers.{layer}.self_attn", f"layers.{layer}.mlp"
        for maker, readers in (
            (f"layers.{layer}.layer_norm1", [f"{attention}.{part}_proj" for part in "qkv"]),
            (f"layers.{layer}.layer_norm2", [f"{mlp}.fc1"]),
            (f"{attention}.v_proj", [f"{attention}.out_proj"]),
        ):
            weights = [encoder.get_parameter(f"{name}.weight").abs().amax(dim=1).numpy() for name in readers]
            found = factors(largest[readers[0]], np.max(weights, axis=0), share)
            made |= {f"{maker}.{leaf}": found for leaf in ("weight", "bias")}
            read |= {f"{name}.weight": found for name in readers}
    return Smoothing(made, read)


def factors(values: np.ndarray, weights: np.ndarray, share: float = _ACTIVATION_SHARE) -> np.ndarray:
    """Divisors of channels: powers of two, float32 [C], around 1, near values^share / weights^(1 − share).

    values, weights: the largest absolute ones of each channel, float32 [C]; where either is 0 the factor is 1.
    """
    alive = (values > 0) & (weights > 0)
    if not alive.any():
        return np.ones_like(values)
    exponents = share * np.log2(np.where(alive, values, 1)) - (1 - share) * np.log2(np.where(alive, weights, 1))
    exponents = np.where(alive, exponents - np.median(exponents[alive]), 0)
    return np.exp2(np.clip(np.rint(exponents), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)).astype(np.float32)
