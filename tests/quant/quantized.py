"""Quantized layers of random codes."""

from __future__ import annotations

import numpy as np

from vl3edge.quant.linear import QuantizedLinear


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
