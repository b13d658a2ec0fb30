"""Decoders of random codes: their graphs alone, with no export around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from quantized import random_linear

from vl3edge.export.graphs.decoder import PREFIX, DecoderBuilder, export_decoder, text_spec
from vl3edge.export.graphs.decoder_fp16 import write_fp16_decoder
from vl3edge.export.graphs.decoder_int4 import HEAD, QuantizedDecoderBuilder, write_quantized_embeddings
from vl3edge.export.graphs.embeddings import export_embeddings
from vl3edge.export.tensor_source import Float32Source
from vl3edge.export.vocabulary.head_vocabulary import HeadVocabulary
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.quant.linear import LayerError, QuantizedLinear
from vl3edge.runtime.bundle.specs import TextSpec


@dataclass(frozen=True)
class Quantized:
    """How a decoder is quantized; layer after layer has the next of `bits`. head_bits: None leaves the head whole."""

    bits: tuple[int, ...] = (4,)
    head_bits: int | None = 8
    symmetric: bool = True
    permuted: bool = False
    group: int = 32


class RandomLinears:
    """Quantized layers of random codes in the place of a model's, made when they are asked for."""

    errors: Mapping[str, LayerError] = {}

    def __init__(self, checkpoint: Checkpoint, kind: Quantized) -> None:
        self._checkpoint = checkpoint
        self._kind = kind
        parts = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
        layers = range(checkpoint.config.text.num_layers)
        self.names = tuple(f"{PREFIX}layers.{layer}.{part}" for layer in layers for part in parts)
        self.names += (HEAD,) if kind.head_bits else ()

    def linear(self, name: str) -> QuantizedLinear:
        number = self.names.index(name)
        kind = self._kind
        bits = (kind.head_bits or 0) if name == HEAD else kind.bits[number % len(kind.bits)]
        out, columns = self._checkpoint.shape(f"{name}.weight")
        order = {"permuted": kind.permuted and name != HEAD, "symmetric": kind.symmetric}
        layer = random_linear(bits, kind.group, **order, out=out, columns=columns, seed=number)
        return replace(layer, scales=(layer.scales * 2.0 ** (4 - bits)).astype(np.float16))


KINDS: dict[str, Quantized | str] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int4": Quantized(),
    "zero points, 4-bit head": Quantized(head_bits=4, symmetric=False),
    "mixed bits, whole head": Quantized(bits=(4, 8, 4), head_bits=None),
    "activation order": Quantized(permuted=True),
}
"""A string is the precision of a decoder that is not quantized."""


def write_decoder(
    checkpoint: Checkpoint, kind: Quantized | str, folder: Path, head_ids: np.ndarray | None = None
) -> TextSpec:
    """Writes the decoder's graphs, for CPUs and for GPUs, and its embeddings. head_ids: the head's rows, if not all."""
    config, source = checkpoint.config.text, Float32Source(checkpoint)
    precision = kind if isinstance(kind, str) else "fp16"
    HeadVocabulary(head_ids).write(folder)
    table = export_embeddings(checkpoint, folder, precision, head_ids if config.tie_word_embeddings else None)
    tied = table if config.tie_word_embeddings else None
    if isinstance(kind, str):
        export_decoder(lambda graph: DecoderBuilder(graph, config, source, precision, head_ids), folder, tied)
    else:
        linears = RandomLinears(checkpoint, kind)
        shared = write_quantized_embeddings(linears.linear(HEAD), folder, head_ids) if tied and kind.head_bits else None
        more = (linears, shared, 0, head_ids)
        export_decoder(lambda graph: QuantizedDecoderBuilder(graph, config, source, precision, *more), folder, tied)
    write_fp16_decoder(folder)
    return text_spec(config, head_ids)
