"""Quantized layers of random codes."""

from __future__ import annotations

import numpy as np

from vl3edge.quant.linear import QuantizedLinear
from vl3edge.quant.sequences import CalibrationSequence


def random_linear(bits, group_size, *, symmetric, permuted=False, out=64, columns=256, seed=0):
    rng = np.random.default_rng(seed)
    groups = columns // (group_size if group_size > 0 else columns)
    zeros = np.full((out, groups), 2 ** (bits - 1), dtype=np.uint8)
    if not symmetric:
        zeros = rng.integers(1, 2**bits, (out, groups), dtype=np.uint8)
    return QuantizedLinear(
        codes=rng.integers(0, 2**bits, (out, columns), dtype=np.uint8),
        scales=(rng.random((out, groups)) * 0.02 + 0.001).astype(np.float16),
        zeros=zeros,
        bits=bits,
        order=rng.permutation(columns) if permuted else None,
    )


def random_sequences(width, lengths=(70, 33, 90), seed=0):
    """Calibration sequences of correlated noise; the second one has positions that do not count."""
    rng = np.random.default_rng(seed)
    made = []
    for length in lengths:
        values = rng.standard_normal((length, width)) * np.exp(rng.standard_normal(width) * 0.5)
        weights = (rng.random(length) < 0.8).astype(np.float32) if len(made) == 1 else None
        made.append(CalibrationSequence(values.astype(np.float32), weights))
    return made
