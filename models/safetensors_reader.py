"""The safetensors files of a checkpoint, memory-mapped: one file, or shards with an index.

Opening reads only the headers. A tensor's bytes are paged in on use and can be dropped by the system, so a checkpoint
larger than memory can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import CheckpointError
from .typed_json import Section

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_TOLD = 10  # names in one message
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class TensorFiles:
    """Every tensor of the safetensors files in a folder, or of one file, under its stored name.

    Raises CheckpointError if there are none, one is damaged or missing, or there are only pickled weights.
    """

    def __init__(self, folder: Path) -> None:
        self._handles: dict[Path, Any] = {}
        self._file_of: dict[str, Path] = {}
        if folder.is_file():
            self._open(folder)
        elif (folder / INDEX).is_file():
            self._open_index(folder)
        else:
            self._open(_single_file(folder))

    @staticmethod
    def has_model(folder: Path) -> bool:
        """Whether a folder holds weights under the file names of a whole model."""
        return (folder / INDEX).is_file() or (folder / _SINGLE).is_file()

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle(name).get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """As safetensors writes it: "F32", "BF16", "I32", …"""
        return str(self._handle(name).get_slice(name).get_dtype())

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor itself, backed by the mapped file: treat it as read-only."""
        tensor: torch.Tensor = self._handle(name).get_tensor(name)
        return tensor

    def release(self) -> None:
        """Maps the files again, so that pages read so far no longer count as memory in use.

        Tensors still held keep the old mapping and its pages.
        """
        for file in self._handles:
            self._handles[file] = safe_open(file, framework="pt")

    def file(self, name: str) -> Path:
        return self._file_of[name]

    def _handle(self, name: str) -> Any:
        return self._handles[self._file_of[name]]

    def _open_index(self, folder: Path) -> None:
        index = Section.read(folder / INDEX)
        weight_map = index.section("weight_map")
        shards = sorted({weight_map.string(name) for name in weight_map.values})
        if outside := [shard for shard in shards if Path(shard).name != shard]:
            raise CheckpointError(f"{index.file} names files outside its folder: {', '.join(outside)}")
        if absent := [shard for shard in shards if not (folder / shard).is_file()]:
            raise CheckpointError(f"{index.file} names {', '.join(absent)}, which {_are(absent)} missing")
        for shard in shards:
            self._open(folder / shard)
        wrong = [name for name, shard in weight_map.values.items() if self._file_of.get(name) != folder / shard]
        if wrong:
            more = f" and {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
            names = ", ".join(sorted(wrong)[:_TOLD])
            raise CheckpointError(f"{index.file} names tensors that are not in the shard it gives: {names}{more}")

    def _open(self, file: Path) -> None:
        try:
            handle = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as e:
            raise CheckpointError(f"{file} is damaged or not a safetensors file: {e}") from e
        self._handles[file] = handle
        for name in handle.keys():  # noqa: SIM118 (a safetensors handle is not iterable)
            if name in self._file_of:
                raise CheckpointError(f"{name} is both in {self._file_of[name]} and in {file}")
            self._file_of[name] = file


def _single_file(folder: Path) -> Path:
    if (folder / _SINGLE).is_file():
        return folder / _SINGLE
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(f"{folder} holds several safetensors files ({names}) but no {INDEX}")
    pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder} holds pickled weights only ({', '.join(pickled)}), and unpickling can run any code. "
            "Convert them to safetensors first, for example with transformers' save_pretrained"
        )
    raise CheckpointError(f"{folder} holds no weights: neither {_SINGLE} nor {INDEX}")


def _are(items: list[str]) -> str:
    return "is" if len(items) == 1 else "are"
