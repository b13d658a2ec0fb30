"""Rotation with the cache written, and cached keys turned, against numpy and the runtime's own."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton")

from caches import Cache
from interpreted import launch
from weights import assert_near

from vl3edge.export.graphs.decoder import rotary_tables
from vl3edge.export.kernels.rotary import move_cached, rotate_and_cache
from vl3edge.runtime.decode.rope import Rotary

THETA, BT = 10000.0, 2


def rotated(x: np.ndarray, position: int, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """float32 [..., dim] turned to a position."""
    first, second = np.split(x.astype(np.float32), 2, axis=-1)
    c, s = cos[position], sin[position]
    return np.concatenate([first * c - second * s, second * c + first * s], axis=-1)


def rotate(cache: Cache, qkv: np.ndarray, heads: int, real: int, row: int) -> None:
    """One launch, of a prompt in `row`."""
    _, kv_heads, capacity, dim = cache.buffers[0].shape
    cos, sin = rotary_tables(real, THETA, capacity)
    launch(
        rotate_and_cache, (-(-len(qkv) // BT), heads + 2 * kv_heads),
        qkv, cos, sin, cache.lengths, cache.table, 1, row, len(qkv),
        HEADS=heads, KV_HEADS=kv_heads, HALF=dim // 2, BLOCK=1 << (dim // 2 - 1).bit_length(), BT=BT,
        reach=cache.buffers,
    )  # fmt: skip


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "real"), [(6, 1, 16, 16), (7, 1, 32, 24), (2, 2, 80, 72)])
def test_queries_turn_and_keys_and_values_are_cached(heads: int, kv_heads: int, dim: int, real: int) -> None:
    rng = np.random.default_rng(dim)
    cache = Cache(rng, [4, 9, 0], kv_heads, 12, dim)
    qkv = rng.standard_normal((3, (heads + 2 * kv_heads) * dim)).astype(np.float16)
    given = qkv.copy().reshape(3, -1, dim)
    wanted = cache.copies()
    rotate(cache, qkv, heads, real, 1)
    cos, sin = rotary_tables(real, THETA, 12)
    turned = np.empty((3, heads, dim))
    for token in range(3):
        turned[token] = rotated(given[token, :heads], 9 + token, cos, sin)
        keys, values = given[token, heads : heads + kv_heads], given[token, heads + kv_heads :]
        wanted[2][1, :, 9 + token] = rotated(keys, 9 + token, cos, sin)
        wanted[3][1, :, 9 + token] = values
    assert_near(qkv.reshape(3, -1, dim)[:, :heads], turned, 6e-4)
    for got, expected in zip(cache.buffers, wanted, strict=True):
        assert np.allclose(got.astype(np.float32), expected.astype(np.float32), rtol=0, atol=2e-3, equal_nan=True)


@pytest.mark.parametrize("length", [12, 13, -1, -(1 << 31), (1 << 31) - 1])
def test_what_does_not_fit_into_a_row_is_not_written(length: int) -> None:
    rng = np.random.default_rng(0)
    cache = Cache(rng, [12, 3], 1, 12, 16)
    cache.lengths[0] = length
    before = cache.copies()
    qkv = rng.standard_normal((2, 3 * 16)).astype(np.float16)
    rotate(cache, qkv, 1, 16, 0)
    assert np.isfinite(qkv).all()
    for got, old in zip(cache.buffers, before, strict=True):
        assert np.array_equal(got[0], old[0])
    cache.lengths[1] = 11  # of two tokens one fits
    rotate(cache, qkv, 1, 16, 1)
    assert np.isfinite(cache.layers[1][0][1, :, 11]).all()


@pytest.mark.parametrize(("source", "target", "count"), [(9, 2, 20), (30, 0, 3), (5, 4, 30), (8, 8, 8), (20, 1, 0)])
def test_what_moves_up_is_turned_as_the_runtime_turns_it(source: int, target: int, count: int) -> None:
    rng = np.random.default_rng(source)
    cache = Cache(rng, [40, 35], 2, 40, 16, layers=2)
    before = cache.copies()
    cos, sin = rotary_tables(16, THETA, 40)
    launch(
        move_cached, (2, 2, 2), cos, sin, cache.table, 1, source, target, count,
        KV_HEADS=2, HALF=8, BLOCK=8, BT=4, reach=cache.buffers,
    )  # fmt: skip
    turning = Rotary(THETA, 16, 16)
    for index, (got, old) in enumerate(zip(cache.buffers, before, strict=True)):
        wanted = old.astype(np.float32)
        moved = wanted[1, :, source : source + count]
        wanted[1, :, target : target + count] = turning.rotated(moved, source, target) if index % 2 == 0 else moved
        assert np.allclose(got, wanted, rtol=0, atol=3e-3, equal_nan=True)
        untouched = np.delete(np.arange(40), np.arange(target, target + count))
        assert np.array_equal(got[1, :, untouched], old[1, :, untouched], equal_nan=True)
        assert np.array_equal(got[0], old[0])


def test_moving_beyond_the_capacity_touches_nothing_else() -> None:
    cache = Cache(np.random.default_rng(3), [10, 10], 1, 10, 16, layers=1)
    cos, sin = rotary_tables(16, THETA, 10)
    last = [buffer[1].copy() for buffer in cache.buffers]
    launch(
        move_cached, (1, 1, 2), cos, sin, cache.table, 0, 4, 0, 100,
        KV_HEADS=1, HALF=8, BLOCK=8, BT=8, reach=cache.buffers,
    )  # fmt: skip
    assert all(np.array_equal(buffer[1], old) for buffer, old in zip(cache.buffers, last, strict=True))
