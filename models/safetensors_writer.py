"""Writes safetensors files one tensor at a time, so that a model larger than the memory can be written.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the tensors' bytes).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from .safetensors_reader import INDEX
from .tensor_names import Shape

_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_tensors(
    folder: Path,
    shapes: Mapping[str, Shape],
    make: Callable[[str, Shape], torch.Tensor],
    dtype: torch.dtype,
    shards: int = 1,
) -> None:
    """Writes model.safetensors, or `shards` files of about equal size and their index.

    make: called once per name, in order; returns the tensor, which is converted to `dtype` and then dropped.

    Raises ValueError if shards or dtype is not possible.
    """
    if not 1 <= shards <= len(shapes):
        raise ValueError(f"shards must be between 1 and the number of tensors ({len(shapes)}), not {shards}")
    if dtype not in _TYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _TYPES))}, not {dtype}")
    parts = _split(shapes, shards)
    if shards == 1:
        files = ["model.safetensors"]
    else:
        files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    for file, names in zip(files, parts, strict=True):
        _write_file(folder / file, {name: shapes[name] for name in names}, make, dtype)
    if shards > 1:
        weight_map = {name: file for file, names in zip(files, parts, strict=True) for name in names}
        total = sum(_num_bytes(shape, dtype) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def header(
    tensors: Mapping[str, tuple[str, Sequence[int], int]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """The header of a file, padded to a multiple of 64 bytes, and where each tensor starts.

    tensors: dtype by the format's name, shape and size in bytes of each, in file order.
    """
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    starts, end = {}, 0
    for name, (dtype, shape, num_bytes) in tensors.items():
        starts[name], end = end, end + num_bytes
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [starts[name], end]}
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % 64)
    head = struct.pack("<Q", len(text)) + text
    return head, {name: len(head) + start for name, start in starts.items()}


def _split(shapes: Mapping[str, Shape], shards: int) -> list[Sequence[str]]:
    """Names in order, split where the running size passes an equal share; no part is empty."""
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    names, total = list(shapes), sum(sizes)
    parts: list[Sequence[str]] = []
    start = done = 0
    for i, size in enumerate(sizes):
        done += size
        left = shards - len(parts) - 1  # parts after this one
        if left and (done * shards >= total * (len(parts) + 1) or len(names) - i - 1 == left):
            parts.append(names[start : i + 1])
            start = i + 1
    return [*parts, names[start:]]


def _write_file(
    path: Path, shapes: Mapping[str, Shape], make: Callable[[str, Shape], torch.Tensor], dtype: torch.dtype
) -> None:
    tensors = {name: (_TYPES[dtype], shape, _num_bytes(shape, dtype)) for name, shape in shapes.items()}
    with path.open("wb") as f:
        f.write(header(tensors, {"format": "pt"})[0])
        for name, shape in shapes.items():
            tensor = make(name, shape).to(dtype).contiguous()
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(shape)}")
            f.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _num_bytes(shape: Shape, dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
