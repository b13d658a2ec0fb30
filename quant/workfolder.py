"""Where a quantization stores finished layers, so that it resumes after an interruption.

Every file is written under a temporary name and then renamed. A layer's results are written before its hidden states: a
layer whose hidden states are missing is done again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vl3edge.runtime.files import write_whole, written_whole

from .errors import QuantError
from .linear import LayerError, QuantizedLinear

_STATE = "state.json"


def hidden_states_file(folder: Path, finished: int) -> Path:
    """What stands in a work folder once so many layers are finished, until the next one is."""
    return folder / f"hidden-{finished:03d}.safetensors"


class WorkFolder:
    """Files of one quantization.

    identity: what identifies this quantization (plan, checkpoint, data), as JSON values. What a quantization of another
        identity left in the folder is removed.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        state = folder / _STATE
        text = json.dumps(identity, indent=1, sort_keys=True)
        if not state.is_file() or state.read_text(encoding="utf-8") != text:
            for stale in (*folder.glob("*.safetensors"), *folder.glob(".*.part"), *folder.glob("*.json")):
                stale.unlink()
            write_whole(state, [text.encode()])

    def finished_layers(self) -> int:
        """How many layers are finished: their hidden states are stored."""
        numbers = [int(path.stem.removeprefix("hidden-")) for path in self.folder.glob("hidden-*.safetensors")]
        return max(numbers, default=0)

    def has(self, part: str) -> bool:
        return (self.folder / f"{part}.safetensors").is_file()

    def save_part(self, part: str, linears: Mapping[str, QuantizedLinear]) -> None:
        """part: the file's name, such as "layer-003"; linears by their full names."""
        arrays, about = {}, {}
        for name, linear in linears.items():
            for field in ("codes", "scales", "zeros", "order", "bias"):
                value = getattr(linear, field)
                if value is not None:
                    arrays[f"{name}.{field}"] = np.ascontiguousarray(value)
            error = None if linear.error is None else asdict(linear.error)
            about[name] = {"bits": linear.bits, "error": error}
        self._save(self.folder / f"{part}.safetensors", arrays, {"linears": json.dumps(about)})

    def save_hidden(self, finished: int, hidden: Sequence[torch.Tensor]) -> None:
        """hidden: per sequence [S, H], what layer number `finished` reads. Drops those of earlier layers."""
        arrays = {str(index): states.numpy() for index, states in enumerate(hidden)}
        file = hidden_states_file(self.folder, finished)
        self._save(file, arrays, {})
        for path in self.folder.glob("hidden-*.safetensors"):
            if path != file:
                path.unlink()

    def load_hidden(self, finished: int) -> list[torch.Tensor]:
        with safe_open(hidden_states_file(self.folder, finished), framework="pt") as file:
            return [file.get_tensor(str(index)).clone() for index in range(len(file.keys()))]

    def save_note(self, name: str, value: object) -> None:
        write_whole(self.folder / f"{name}.json", [json.dumps(value, indent=1).encode()])

    def load_note(self, name: str) -> Any:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @staticmethod
    def _save(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        try:
            with written_whole(path) as partial:
                save_file(arrays, partial, metadata)
        except (OSError, SafetensorError) as e:
            raise QuantError(f"cannot write {path}: {e}") from e


class StoredLinears:
    """The quantized linear layers of a work folder, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._part: dict[str, Path] = {}
        self._bits: dict[str, int] = {}
        self.errors: dict[str, LayerError] = {}
        for path in sorted((*folder.glob("layer-*.safetensors"), *folder.glob("head.safetensors"))):
            with safe_open(path, framework="np") as file:
                about = json.loads(file.metadata()["linears"])
            for name, facts in about.items():
                self._part[name] = path
                self._bits[name] = facts["bits"]
                if facts["error"] is not None:
                    self.errors[name] = LayerError(**facts["error"])

    def __contains__(self, name: object) -> bool:
        return name in self._part

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._part)

    def linear(self, name: str) -> QuantizedLinear:
        """The layer of this full name, such as "model.language_model.layers.0.mlp.up_proj"; KeyError if it has none."""
        with safe_open(self._part[name], framework="np") as file:
            stored = set(file.keys())

            def read(field: str) -> np.ndarray | None:
                key = f"{name}.{field}"
                return file.get_tensor(key) if key in stored else None

            return QuantizedLinear(
                codes=file.get_tensor(f"{name}.codes"),
                scales=file.get_tensor(f"{name}.scales"),
                zeros=file.get_tensor(f"{name}.zeros"),
                bits=self._bits[name],
                order=read("order"),
                bias=read("bias"),
                error=self.errors.get(name),
            )
