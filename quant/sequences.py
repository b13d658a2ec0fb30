"""Calibration sequences: embeddings as the decoder reads them when it watches a video."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import QuantError


@dataclass(frozen=True, eq=False)
class CalibrationSequence:
    """One prompt with its visual tokens spliced in.

    embeddings: float32 [S, H], the decoder's inputs_embeds.
    weights: float32 [S], not negative, how much each position counts in the Hessians, or None for 1 each. A position
        of weight 0 is still attended to.
    """

    embeddings: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32] | None = None


def check_sequences(sequences: Sequence[CalibrationSequence], hidden_size: int) -> None:
    """Raises QuantError for sequences of the wrong width, without tokens, or with values that are not finite."""
    if not sequences:
        raise QuantError("calibration needs at least one sequence")
    for index, sequence in enumerate(sequences):
        shape = sequence.embeddings.shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] != hidden_size:
            raise QuantError(f"calibration sequence {index} has shape {shape}, not [tokens, {hidden_size}]")
        if not np.isfinite(sequence.embeddings).all():
            raise QuantError(f"calibration sequence {index} holds NaN or infinity")
        weights = sequence.weights
        if weights is not None and (weights.shape != shape[:1] or not (weights >= 0).all()):
            raise QuantError(f"calibration sequence {index}: weights must be {shape[0]} numbers, 0 or more")


def fingerprint(sequences: Sequence[CalibrationSequence]) -> str:
    """A hash of every value, so that an interrupted run resumes only on the same data."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(repr(sequence.embeddings.shape).encode())
        digest.update(np.ascontiguousarray(sequence.embeddings).data)
        if sequence.weights is not None:
            digest.update(np.ascontiguousarray(sequence.weights).data)
    return digest.hexdigest()
