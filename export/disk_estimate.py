"""Disk space that a bundle will take, estimated before anything is written."""

from __future__ import annotations

import numpy as np

from vl3edge.models.checkpoint import Checkpoint

from .options import ExportOptions
from .tensorrt import tensorrt_bytes

_LARGE_FILE_MARGIN = 64 << 20  # graphs, rotary tables, tokenizer


def estimated_bytes(checkpoint: Checkpoint, options: ExportOptions) -> int:
    """Bytes of the bundle, about: all weights in their precision, TensorRT plans, the prefill graph, and a margin.

    Rows of a tied head that are stored beside the embeddings are counted as if they were all of them.
    """
    width = 2 if options.stored_precision == "fp16" else 4
    text = checkpoint.config.text
    elements = sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.names)
    if options.vocabulary is not None and text.tie_word_embeddings:
        elements += text.vocab_size * text.hidden_size
    plans = tensorrt_bytes(checkpoint, options.targets)
    return elements * width + _LARGE_FILE_MARGIN + plans + _prefill_bytes(checkpoint, options)


def _prefill_bytes(checkpoint: Checkpoint, options: ExportOptions) -> int:
    """Bytes of the prefill graph: one for each weight of the decoder's layers."""
    if options.prefill_bits == 16:
        return 0
    text = checkpoint.config.text
    heads = text.head_dim * (2 * text.num_heads + 2 * text.num_kv_heads)
    return text.num_layers * text.hidden_size * (heads + 3 * text.intermediate_size)
