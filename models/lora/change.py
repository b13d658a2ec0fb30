"""What an adapter does to one tensor: its definitions, as PEFT merges them, in float32.

LoRA adds B · A · scale (arXiv 2106.09685). DoRA (arXiv 2402.09353) then gives every output a learned length: the sum is
divided by the length it has, that of the checkpoint's own weight with this adapter alone, and multiplied by the learned
one. Changes of several adapters are applied in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ..safetensors_reader import TensorFiles


class Change(Protocol):
    def applied(self, merged: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """The tensor after this change; float32, and `merged` may be written to.

        merged: after the changes before this one. base: as the checkpoint stores it, in float32.
        """
        ...


@dataclass(frozen=True)
class Stored:
    """A tensor of an adapter's file, read when it is needed."""

    files: TensorFiles
    key: str

    def read(self) -> torch.Tensor:
        return self.files.tensor(self.key).float()


@dataclass(frozen=True)
class LowRank:
    """B · A · scale, and with DoRA the lengths of the outputs.

    down: A [r, inputs], of a convolution [r, channels, height, width]. up: B [outputs, r]. embedding: the table is
    [tokens, width], with A [r, tokens] and B [width, r].
    """

    down: Stored
    up: Stored
    scale: float
    magnitude: Stored | None = None
    embedding: bool = False

    def applied(self, merged: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        product = self.up.read().flatten(1) @ self.down.read().flatten(1)
        delta = ((product.T if self.embedding else product) * self.scale).reshape(base.shape)
        merged = merged.add_(delta)
        if self.magnitude is None:
            return merged
        outputs = 1 if self.embedding else 0
        others = [axis for axis in range(base.ndim) if axis != outputs]
        length = torch.linalg.vector_norm(base + delta, dim=others, keepdim=True)
        return merged.mul_(self.magnitude.read().reshape(length.shape) / length)


@dataclass(frozen=True)
class Whole:
    """A tensor that was trained as it is, and replaces the checkpoint's."""

    stored: Stored

    def applied(self, merged: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        return merged.copy_(self.stored.read())


@dataclass(frozen=True)
class Rows:
    """Rows [n, width] of the embeddings that were trained, and replace those of these tokens."""

    stored: Stored
    tokens: tuple[int, ...]

    def applied(self, merged: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        return merged.index_copy_(0, torch.tensor(self.tokens), self.stored.read())


@dataclass(frozen=True)
class Added:
    """A bias of B, added to the layer's."""

    stored: Stored
    scale: float

    def applied(self, merged: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        return merged.add_(self.stored.read() * self.scale)


def same_change(one: Change, other: Change) -> bool:
    """Whether the embeddings' change and the head's are one: a table's A and B are a linear layer's B and A, turned."""
    if isinstance(one, Whole) and isinstance(other, Whole):
        return torch.equal(one.stored.read(), other.stored.read())
    if not isinstance(one, LowRank) or not isinstance(other, LowRank) or one.magnitude or other.magnitude:
        return False
    down, up = other.down.read(), other.up.read()
    if one.embedding != other.embedding:
        down, up = up.T, down.T
    return one.scale == other.scale and torch.equal(one.down.read(), down) and torch.equal(one.up.read(), up)
