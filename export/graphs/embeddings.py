"""The embedding table as a file of its own, which the runtime memory-maps and a tied output head reads too.

A tied head that has not all of its rows has a copy of those it has beside the table, whose names begin with "head".
Taking them from the table at load would save their bytes on disk, and cost the memory of the whole table, or a second
form of loading in every decoder.
"""

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


def export_embeddings(
    checkpoint: Checkpoint, folder: Path, precision: str, head_ids: np.ndarray | None = None
) -> StoredMatrix:
    """Writes the table as `embeddings` [vocab, hidden] in safetensors, a block of rows at a time.

    head_ids: int64 [n], of a tied head that has not all rows, which `head` [n, hidden] then has.
    Returns what a tied head reads.
    """
    table = checkpoint.tensor("model.language_model.embed_tokens.weight")
    dtype_name, dtype, torch_dtype = _NAMES[precision]
    parts = {"embeddings": np.arange(len(table))} | ({} if head_ids is None else {"head": head_ids})
    shapes = {name: (len(ids), table.shape[1]) for name, ids in parts.items()}
    sizes = {name: rows * columns * np.dtype(dtype).itemsize for name, (rows, columns) in shapes.items()}
    begin, starts = header({name: (dtype_name, shapes[name], sizes[name]) for name in parts})
    with (folder / FILE_NAME).open("wb") as file:
        file.write(begin)
        for ids in parts.values():
            for start in range(0, len(ids), _ROWS_AT_ONCE):
                rows = table[torch.from_numpy(ids[start : start + _ROWS_AT_ONCE])]
                file.write(rows.to(torch_dtype).contiguous().numpy().data)
    last = list(parts)[-1]
    return StoredMatrix(FILE_NAME, starts[last], shapes[last], np.dtype(dtype))
