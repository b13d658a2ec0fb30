"""Attention of steps and of prompts against numpy: ratios of heads, lengths, splits, and a cache full of NaN beyond."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton")

from caches import Cache, attended
from interpreted import launch
from test_rotary import THETA, rotated
from weights import assert_near, strands

from vl3edge.export.graphs.decoder import rotary_tables
from vl3edge.export.kernels.attention import attend, attend_prompt, combine

LAYER = 1


def real_channels(dim: int, real: int) -> np.ndarray:
    """The channels of a cached head that the model has: the first of either half."""
    return np.concatenate([np.arange(real // 2), dim // 2 + np.arange(real // 2)])


def step(
    cache: Cache, qkv: np.ndarray, heads: int, real: int, splits: int = 4, in_step_order: bool = True
) -> np.ndarray:
    """What every row attends to, float16 [rows, heads · real]."""
    rows, kv_heads, _, dim = cache.buffers[0].shape
    block = 1 << (dim - 1).bit_length()
    sums = np.full((rows, heads, splits, dim), np.nan, np.float32)
    peaks = np.full((rows, heads, splits, 2), np.nan, np.float32)
    y = np.full((rows, heads * real), np.nan, np.float16)
    cos, sin = rotary_tables(real, THETA, cache.capacity)
    launch(
        attend, (rows, kv_heads, splits),
        qkv, cos, sin, cache.lengths, cache.table, LAYER, sums, peaks, reach=cache.buffers,
        HEADS=heads, KV_HEADS=kv_heads, DIM=dim, SCALE=real**-0.5, BLOCK_D=block, BLOCK_H=16, SPLITS=splits, BT=16,
    )  # fmt: skip
    launch(
        combine, (rows, heads), sums, peaks, y,
        HEADS=heads, DIM=dim, REAL=real, BLOCK_D=block, SPLITS=splits, STRANDS=in_step_order,
    )  # fmt: skip
    return y


def wanted_step(cache: Cache, qkv: np.ndarray, heads: int, real: int) -> np.ndarray:
    rows, kv_heads, capacity, dim = cache.buffers[0].shape
    given = qkv.reshape(rows, -1, dim)
    cos, sin = rotary_tables(real, THETA, capacity)
    result = np.zeros((rows, heads, dim))
    for row, length in enumerate(cache.lengths):
        if length < 0:
            continue
        turned = rotated(given[row], min(length, capacity - 1), cos, sin)
        own = turned[heads : heads + kv_heads], given[row, heads + kv_heads :]
        for head in range(heads):
            slot = head * kv_heads // heads
            seen = [buffer[row, slot, :length].astype(np.float32) for buffer in cache.layers[LAYER]]
            if length < capacity:
                seen = [np.concatenate([cached, new[slot][None]]) for cached, new in zip(seen, own, strict=True)]
            result[row, head] = attended(turned[head], *seen, real**-0.5)
    return result[..., real_channels(dim, real)].reshape(rows, -1)


# heads, kv_heads, dim, real: the ratios of the 2B and 7B models, one head each, more than 16 to one, padded heads
SHAPES = [(12, 2, 16, 16), (7, 1, 32, 32), (2, 2, 32, 24), (4, 2, 80, 72), (4, 1, 128, 128)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_attends_to_what_is_cached_and_to_its_own_token(shape: tuple[int, int, int, int]) -> None:
    heads, kv_heads, dim, real = shape
    rng = np.random.default_rng(dim)
    cache = Cache(rng, [33, 1, 89, 90], kv_heads, 90, dim)  # the last row is full
    before = cache.copies()
    qkv = rng.standard_normal((4, (heads + 2 * kv_heads) * dim)).astype(np.float16)
    wanted = wanted_step(cache, qkv, heads, real)
    y = step(cache, qkv, heads, real)
    assert_near(y, strands(wanted), 1.5e-3)
    cos, sin = rotary_tables(real, THETA, 90)
    for row, length in enumerate(cache.lengths[:3]):
        given = qkv[row].reshape(-1, dim)[heads:]
        before[2][row, :, length] = rotated(given[:kv_heads], length, cos, sin)
        before[3][row, :, length] = given[kv_heads:]
    for got, expected in zip(cache.buffers, before, strict=True):
        assert np.allclose(got.astype(np.float32), expected.astype(np.float32), rtol=0, atol=2e-3, equal_nan=True)
    assert (step(cache, qkv, heads, real, in_step_order=False) == strands_back(y)).all()


def strands_back(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), 8, -1).swapaxes(1, 2).reshape(x.shape)


@pytest.mark.parametrize("splits", [1, 2, 16])
@pytest.mark.parametrize("length", [0, 15, 16, 17, 63])
def test_splits_combine_whatever_part_of_them_is_empty(splits: int, length: int) -> None:
    rng = np.random.default_rng(length)
    cache = Cache(rng, [length], 1, 64, 16)
    qkv = rng.standard_normal((1, 5 * 16)).astype(np.float16)
    wanted = wanted_step(cache, qkv, 3, 16)
    assert_near(step(cache, qkv, 3, 16, splits), strands(wanted), 1.5e-3)


def test_rows_that_are_full_or_switched_off_give_finite_numbers() -> None:
    rng = np.random.default_rng(0)
    cache = Cache(rng, [8, 8, 8], 1, 8, 16)
    cache.lengths[:] = -1, 8, 1 << 30
    before = cache.copies()
    y = step(cache, rng.standard_normal((3, 4 * 16)).astype(np.float16), 2, 16)
    assert (y[0] == 0).all()
    assert np.isfinite(y).all()
    assert all(np.array_equal(got, old, equal_nan=True) for got, old in zip(cache.buffers, before, strict=True))


def test_one_large_score_in_one_split_does_not_overflow() -> None:
    rng = np.random.default_rng(1)
    cache = Cache(rng, [39], 1, 64, 16)
    qkv = (200 * rng.standard_normal((1, 4 * 16))).astype(np.float16)
    wanted = wanted_step(cache, qkv, 2, 16)
    assert_near(step(cache, qkv, 2, 16), strands(wanted), 1.5e-3)


def test_a_nan_among_the_queries_shows() -> None:
    rng = np.random.default_rng(2)
    cache = Cache(rng, [6, 6], 1, 8, 16)
    cache.lengths -= 1
    qkv = rng.standard_normal((2, 3 * 16)).astype(np.float16)
    qkv[1, 3] = np.nan
    y = step(cache, qkv, 1, 16)
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


@pytest.mark.parametrize(
    ("shape", "cached", "count"), [*zip(SHAPES, [0, 5, 31, 0, 18], [17, 33, 1, 40, 20], strict=True)], ids=str
)
def test_a_prompt_sees_the_cached_prefix_and_what_comes_before(
    shape: tuple[int, int, int, int], cached: int, count: int
) -> None:
    heads, kv_heads, dim, real = shape
    rng = np.random.default_rng(dim + 1)
    cache = Cache(rng, [3, cached + count], kv_heads, 64, dim)
    cache.lengths[1] = cached
    qkv = rng.standard_normal((count, (heads + 2 * kv_heads) * dim)).astype(np.float16)
    y = np.full((count, heads * real), np.nan, np.float16)
    before = cache.copies()
    launch(
        attend_prompt, (-(-count // 16), heads), qkv, cache.lengths, cache.table, LAYER, 1, y, count,
        reach=cache.buffers,
        HEADS=heads, KV_HEADS=kv_heads, DIM=dim, REAL=real, SCALE=real**-0.5, BLOCK_D=1 << (dim - 1).bit_length(),
        BM=16, BT=16,
    )  # fmt: skip
    keys, values = cache.layers[LAYER]
    wanted = np.empty((count, heads, dim))
    for token in range(count):
        for head in range(heads):
            slot, end = head * kv_heads // heads, cached + token + 1
            query = qkv.reshape(count, -1, dim)[token, head]
            wanted[token, head] = attended(query, keys[1, slot, :end], values[1, slot, :end], real**-0.5)
    assert_near(y, wanted[..., real_channels(dim, real)].reshape(count, -1), 1.5e-3)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, cache.buffers, strict=True))
