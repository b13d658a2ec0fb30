"""Rows of a file of embeddings: which frame of which clip one is, and how much of the array belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, get_args

import numpy as np

from ..config import MediaKind
from ..vision.frame_features import FrameFeatures

_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (float, int)}


@dataclass(frozen=True)
class EmbeddedFrame:
    """A frame that has an embedding; in files that say it as JSON, an object with these keys.

    media: the clip's name as it was given. kind: "image" or "video". frame, frames: its number among those sampled,
        from 0, and how many they are. time_s: from the start of the stream.
    width, height: in pixels, as the encoder saw it.
    rows, columns: of its map of tokens; 0 where it has one vector instead.
    model: the encoder's checkpoint; only vectors of the same one compare.
    """

    media: str
    kind: str
    frame: int
    frames: int
    time_s: float
    width: int
    height: int
    rows: int
    columns: int
    model: str

    @property
    def size(self) -> int:
        """How many rows of the array belong to it, one after the other: of a map row by row."""
        return self.rows * self.columns or 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EmbeddedFrame:
        """What `to_json` gave such values of. Raises KeyError, TypeError or ValueError for others."""
        read = {field.name: values[field.name] for field in fields(cls)}
        for field in fields(cls):
            if not isinstance(read[field.name], _TYPES[str(field.type)]):
                raise TypeError(f"{field.name} is {read[field.name]!r}")
        if read["kind"] not in get_args(MediaKind) or min(read["rows"], read["columns"]) < 0:
            raise ValueError(f"no frame is of kind {read['kind']!r} with {read['rows']}×{read['columns']} tokens")
        return cls(**read)


class Form(NamedTuple):
    """What all rows of a file have in common. width: of a vector. maps: whether frames have maps of tokens."""

    model: str
    width: int
    maps: bool


@dataclass(frozen=True, eq=False)
class EmbeddingBatch:
    """Some consecutive rows, one at least, and their part of the array, float32 [sum of their sizes, C]."""

    rows: list[EmbeddedFrame]
    vectors: np.ndarray

    @property
    def form(self) -> Form:
        """Of the first row."""
        return Form(self.rows[0].model, self.vectors.shape[1], self.rows[0].rows > 0)


def batch_of(features: FrameFeatures, media: str, first: int, frames: int, model: str) -> EmbeddingBatch:
    """The rows of a part of a clip of `frames` frames, which begins with number `first`."""
    tokens = features.tokens
    rows, columns = (0, 0) if tokens is None else tokens.shape[1:3]
    width, height = features.width_px, features.height_px
    made = [
        EmbeddedFrame(media, features.kind, number, frames, time_s, width, height, rows, columns, model)
        for number, time_s in enumerate(features.timestamps_s, first)
    ]
    return EmbeddingBatch(made, features.vectors if tokens is None else tokens.reshape(-1, tokens.shape[-1]))
