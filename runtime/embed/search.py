"""Finds the moments in a file of embeddings that look like a picture: cosines with every frame, no index.

A moment is the run of frames around the best one whose cosines are nearer to it than to the middle of all (the
median), so that one scene is found once, however many of its frames were sampled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from .rows import EmbeddingBatch


@dataclass(frozen=True)
class Moment:
    """A part of a clip that looks like the picture, or a picture that does.

    start_s, end_s: times of its first and last frame; best_s: of the one most like it, whose cosine this is.
    """

    media: str
    kind: str
    start_s: float
    end_s: float
    best_s: float
    cosine: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Query:
    """What is looked for. vectors: float32 [C] of length 1, by the kind of media they are compared with, as pictures
    and frames of videos are encoded at sizes of their own. model: the encoder's checkpoint."""

    def __init__(self, vectors: dict[str, np.ndarray], model: str) -> None:
        self._vectors = vectors
        self._model = model

    def moments(self, batches: Iterable[EmbeddingBatch], top: int, name: str) -> list[Moment]:
        """The `top` best moments, the best first. name: of the file, for messages.

        Raises ConfigError for maps of tokens, and for embeddings of another encoder.
        """
        clips: list[tuple[str, str]] = []
        numbers, times, cosines = [], [], []
        for batch in batches:
            self._check(batch, name)
            for row in batch.rows:
                if not clips or clips[-1] != (row.media, row.kind) or row.frame == 0:
                    clips.append((row.media, row.kind))
                numbers.append(len(clips) - 1)
                times.append(row.time_s)
            found = {kind: batch.vectors @ vector for kind, vector in self._vectors.items()}
            cosines.append([found[row.kind][index] for index, row in enumerate(batch.rows)])
        return _best(clips, np.array(numbers), times, np.concatenate(cosines), top) if cosines else []

    def _check(self, batch: EmbeddingBatch, name: str) -> None:
        if batch.form.maps:
            raise ConfigError(f"{name} holds maps of tokens; search needs vectors: embed without --tokens")
        width = len(next(iter(self._vectors.values())))
        if (batch.form.model, batch.form.width) != (self._model, width):
            raise ConfigError(
                f"{name} was made with {batch.form.model} ({batch.form.width} values), not {self._model} ({width}): "
                "name its bundle with -m"
            )


def _best(
    clips: list[tuple[str, str]], numbers: np.ndarray, times: list[float], cosines: np.ndarray, top: int
) -> list[Moment]:
    """numbers: of the clip that each frame belongs to, ascending."""
    middle = float(np.median(cosines))
    left = cosines.astype(np.float64)  # −inf where a moment has been found already
    moments: list[Moment] = []
    while len(moments) < top and np.isfinite(left).any():
        best = first = last = int(left.argmax())
        level = (left[best] + middle) / 2
        while first > 0 and numbers[first - 1] == numbers[best] and left[first - 1] >= level:
            first -= 1
        while last + 1 < len(left) and numbers[last + 1] == numbers[best] and left[last + 1] >= level:
            last += 1
        media, kind = clips[numbers[best]]
        moments.append(Moment(media, kind, times[first], times[last], times[best], round(float(left[best]), 4)))
        left[first : last + 1] = -np.inf
    return moments
