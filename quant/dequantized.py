"""A checkpoint with its linear layers dequantized: the float32 model that the codes represent.

A quantized graph is checked against this model; comparing this model with the original gives the cost of quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, cast

import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import ModelConfig
from vl3edge.models.decoder import DecoderLayer, TextDecoder
from vl3edge.models.tensor_names import LM_HEAD

from .linear import LayerError, QuantizedLinear


class Linears(Protocol):
    """Quantized linear layers by canonical name, such as "model.language_model.layers.0.mlp.up_proj".

    errors: as measured during quantization, for the layers quantized here.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def errors(self) -> Mapping[str, LayerError]: ...

    def linear(self, name: str) -> QuantizedLinear: ...


class DequantizedCheckpoint:
    """Reads like a Checkpoint: quantized layers are dequantized from their codes, the rest is the checkpoint's.

    config: the checkpoint's; a quantized head is a matrix of its own, no longer tied to the embeddings.
    """

    def __init__(self, checkpoint: Checkpoint, linears: Linears) -> None:
        self._checkpoint = checkpoint
        self._linears = linears
        self._weights = {f"{name}.weight": name for name in linears.names}
        text = checkpoint.config.text
        tied = text.tie_word_embeddings and LM_HEAD not in self._weights
        self.config: ModelConfig = replace(checkpoint.config, text=replace(text, tie_word_embeddings=tied))

    def __contains__(self, name: str) -> bool:
        return name in self._weights or name in self._checkpoint

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor by its canonical name, float32 if it is dequantized and no dtype is given."""
        if name not in self._weights:
            return self._checkpoint.tensor(name, dtype)
        weight = torch.from_numpy(self._linears.linear(self._weights[name]).dequantized())
        return weight if dtype is None else weight.to(dtype)

    def release(self) -> None:
        self._checkpoint.release()

    def decoder(self) -> TextDecoder:
        return TextDecoder.from_checkpoint(cast(Checkpoint, self))

    def decoder_layer(self, index: int) -> DecoderLayer:
        return DecoderLayer.from_checkpoint(cast(Checkpoint, self), index)
