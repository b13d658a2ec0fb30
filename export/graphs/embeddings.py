"""The embedding table as a file of its own, which the runtime memory-maps and a tied output head reads too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.safetensors_writer import header

from .decoder import StoredMatrix

FILE_NAME = "embeddings.safetensors"
_NAMES = {"fp32": ("F32", np.float32, torch.float32), "fp16": ("F16", np.float16, torch.float16)}
_ROWS_AT_ONCE = 8192


def export_embeddings(checkpoint: Checkpoint, folder: Path, precision: str) -> StoredMatrix:
    """Writes the table as `embeddings` [vocab, hidden] in safetensors, a block of rows at a time."""
    table = checkpoint.tensor("model.language_model.embed_tokens.weight")
    rows, columns = table.shape
    dtype_name, dtype, torch_dtype = _NAMES[precision]
    num_bytes = rows * columns * np.dtype(dtype).itemsize
    head, starts = header({"embeddings": (dtype_name, (rows, columns), num_bytes)})
    with (folder / FILE_NAME).open("wb") as file:
        file.write(head)
        for start in range(0, rows, _ROWS_AT_ONCE):
            file.write(table[start : start + _ROWS_AT_ONCE].to(torch_dtype).contiguous().numpy().data)
    return StoredMatrix(FILE_NAME, starts["embeddings"], (rows, columns), np.dtype(dtype))
