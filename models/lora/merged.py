"""A checkpoint with adapters merged into it, a tensor at a time as it is read.

Adapters are merged in the order given. A weight multiplies what an adapter adds, as PEFT's `set_scale` does before its
`merge_and_unload`; so several LoRA adapters are the sum of their weighted changes (`add_weighted_adapter` with "cat"),
and several DoRA adapters come one after another. What an adapter stores whole is taken as it is.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vl3edge.runtime.errors import ConfigError

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..tensor_names import EMBEDDINGS, LM_HEAD
from .adapter import LoraAdapter
from .change import Added, Change, LowRank


@dataclass(frozen=True)
class AdapterRequest:
    """An adapter to merge: a folder or a hub id, and how much of it."""

    path: str | Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> AdapterRequest:
        """ "PATH" or "PATH:WEIGHT"; what exists under the whole text is a path. ConfigError for infinite weights."""
        path, _, number = text.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            return cls(text)
        if not path or Path(text).exists():
            return cls(text)
        if not math.isfinite(weight):
            raise ConfigError(f"--lora {text}: the weight must be a finite number, such as 0.5, not {number}")
        return cls(path, weight)


class MergedCheckpoint(Checkpoint):
    """Reads like the checkpoint that a merge would write. Changed tensors are float32, in memory of their own."""

    def __init__(self, base: Checkpoint, adapters: Sequence[LoraAdapter]) -> None:
        super().__init__(base.folder, base.config, base.files, base.commit)
        self.adapters = tuple(adapter.spec for adapter in adapters)
        self._changes: dict[str, list[Change]] = defaultdict(list)
        for adapter in adapters:
            for name, changes in adapter.changes(base).items():
                self._check_order(name, changes, adapter)
                self._changes[name] += changes
        text = self.config.text
        if text.tie_word_embeddings and self._changes.get(EMBEDDINGS) != self._changes.get(LM_HEAD):
            shared = self._stored[self._resolve(EMBEDDINGS)]
            self._stored |= {EMBEDDINGS: shared, LM_HEAD: shared}
            warnings.warn(
                f"{base.folder} ties its embeddings and its head, and the adapter changes them apart: they are two "
                "matrices from now on, as in its training",
                stacklevel=3,
            )
            self.config = replace(self.config, text=replace(text, tie_word_embeddings=False))

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        changes = self._changes.get(name)
        if not changes:
            return super().tensor(name, dtype)
        base = super().tensor(name).float()
        merged = base.clone()
        for change in changes:
            merged = change.applied(merged, base)
        return merged if dtype is None else merged.to(dtype)

    def _check_order(self, name: str, changes: Sequence[Change], adapter: LoraAdapter) -> None:
        """Changes of several adapters have to add up: what one stores whole, another may not change."""
        if self._changes[name] and not all(isinstance(c, LowRank | Added) for c in (*self._changes[name], *changes)):
            raise CheckpointError(
                f"{adapter.settings.file.parent} and an adapter before it both change {name}, and one of them stores "
                "it whole: these cannot be merged into one model"
            )


def merge_adapters(checkpoint: Checkpoint, adapters: Sequence[LoraAdapter]) -> Checkpoint:
    """The checkpoint with these adapters merged into it in turn; itself if there are none.

    Raises CheckpointError unless every tensor of every adapter fits.
    """
    return MergedCheckpoint(checkpoint, adapters) if adapters else checkpoint
