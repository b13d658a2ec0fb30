"""Quantizes one decoder layer: each group of linear layers sees the output of everything quantized before it.

This holds within the layer too: the output projection's Hessian comes from quantized queries, keys and values, the down
projection's from quantized gates. So each group can compensate for the errors of those before it, at the price of
running the layer in four steps instead of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from vl3edge.models.config import TextConfig
from vl3edge.models.decoder import DecoderLayer, rotary

from . import solver
from .grid import Grid
from .hessian import InputMoments
from .linear import QuantizedLinear
from .plan import DOWN, GATE_UP, OUT, QKV, QuantizationPlan


class LayerQuantizer:
    """Quantizes decoder layers one after the other, carrying the hidden states along.

    hidden: per calibration sequence, float32 [S, H] in CPU memory, what the next layer reads; changed in place.
    weights: per sequence [S] or None, how much each position counts.
    """

    def __init__(
        self,
        config: TextConfig,
        plan: QuantizationPlan,
        hidden: list[torch.Tensor],
        weights: Sequence[torch.Tensor | None],
        device: torch.device,
    ) -> None:
        self.hidden = hidden
        self._weights = [None if w is None else w.to(device) for w in weights]
        self._plan = plan
        self._device = device
        cos, sin = rotary(config, 0, max(len(states) for states in hidden))
        self._turn = cos.to(device), sin.to(device)

    @torch.inference_mode()
    def layer(self, layer: DecoderLayer, grids: Mapping[str, Grid], label: str) -> dict[str, QuantizedLinear]:
        """Quantized linear layers by their name within the layer; `hidden` then holds the quantized layer's outputs.

        layer: on the device; its linear weights are replaced by the quantized ones.
        grids: by a linear's name within the layer. label: of the layer, for messages, such as "layers.3.".
        """
        with torch.device(self._device):
            return self._layer(layer, grids, label)

    def _layer(self, layer: DecoderLayer, grids: Mapping[str, Grid], label: str) -> dict[str, QuantizedLinear]:
        attention, mlp = layer.self_attn, layer.mlp
        done: dict[str, QuantizedLinear] = {}

        def solve(names: Sequence[str], inputs: Iterable[torch.Tensor]) -> None:
            done.update(self._solve(layer, names, inputs, grids, label))

        solve(QKV, (layer.input_layernorm(states) for states in self._on_device()))
        with _skipped(attention, "o_proj"):
            contexts = [self._attend(layer, states) for states in self._on_device()]
        solve(OUT, (context.to(self._device) for context in contexts))
        self._add(attention.o_proj, contexts)
        del contexts
        solve(GATE_UP, (layer.post_attention_layernorm(states) for states in self._on_device()))
        with _skipped(mlp, "down_proj"):
            gated = [mlp(layer.post_attention_layernorm(states)).cpu() for states in self._on_device()]
        solve(DOWN, (values.to(self._device) for values in gated))
        self._add(mlp.down_proj, gated)
        return done

    def moments(self, inputs: Iterable[torch.Tensor]) -> torch.Tensor:
        """The Hessian of inputs [S, features], one per sequence."""
        moments: InputMoments | None = None
        for x, weights in zip(inputs, self._weights, strict=True):
            moments = moments or InputMoments(x.shape[-1])
            moments.add(x, weights)
        if moments is None:
            raise ValueError("there are no calibration sequences")
        return moments.mean()

    def _solve(
        self,
        layer: nn.Module,
        names: Sequence[str],
        inputs: Iterable[torch.Tensor],
        grids: Mapping[str, Grid],
        label: str,
    ) -> dict[str, QuantizedLinear]:
        hessian = self.moments(inputs)
        linears = {name: layer.get_submodule(name) for name in names}
        results = quantize_group(
            {label + name: _weight(linear) for name, linear in linears.items()},
            hessian,
            {label + name: grids[name] for name in names},
            self._plan,
        )
        done = {}
        for name, linear in linears.items():
            result = results[label + name]
            linear.weight = nn.Parameter(torch.from_numpy(result.dequantized()).to(self._device), requires_grad=False)
            bias = linear.bias
            done[name] = result if bias is None else replace(result, bias=_weight(linear, "bias").cpu().numpy())
        return done

    def _on_device(self) -> Iterator[torch.Tensor]:
        return (states.to(self._device) for states in self.hidden)

    def _attend(self, layer: DecoderLayer, states: torch.Tensor) -> torch.Tensor:
        cos, sin = self._turn
        cos_sin = cos[: len(states)], sin[: len(states)]
        output, _ = layer.self_attn(layer.input_layernorm(states)[None], cos_sin, None)
        context: torch.Tensor = output[0].cpu()
        return context

    def _add(self, linear: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        for states, x in zip(self.hidden, inputs, strict=True):
            states += linear(x.to(self._device)).cpu()


def quantize_group(
    weights: dict[str, torch.Tensor], hessian: torch.Tensor, grids: dict[str, Grid], plan: QuantizationPlan
) -> dict[str, QuantizedLinear]:
    """Quantizes weights that read one input by the plan's method, factoring their Hessian once."""
    if plan.method == "rtn":
        return {n: solver.round_to_nearest(w, grids[n], hessian, name=n) for n, w in weights.items()}
    factor = solver.factorize(hessian, act_order=plan.act_order, damp=plan.damp)
    return {n: solver.quantize(w, hessian, grids[n], factor, name=n) for n, w in weights.items()}


def _weight(linear: nn.Module, name: str = "weight") -> torch.Tensor:
    return linear.get_parameter(name).detach()


@contextmanager
def _skipped(owner: nn.Module, name: str) -> Iterator[None]:
    """Makes a layer's last linear return its input, from which its Hessian is computed."""
    linear = owner.get_submodule(name)
    setattr(owner, name, nn.Identity())
    try:
        yield
    finally:
        setattr(owner, name, linear)
