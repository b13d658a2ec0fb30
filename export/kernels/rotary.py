"""Rotation of queries and keys, keys and values into the cache, and cached keys rotated to earlier positions.

The cache is described in device memory, so that a captured step serves every length and every place of the cache:
cache int64 [1 + 2 · layers] holds the capacity, then the addresses of the keys and values of layer 0, of layer 1, …:
float16 [rows, KV_HEADS, capacity, 2 · HALF], aligned to 16 bytes; lengths int32 [rows] holds the tokens in a row.
Tables cos and sin: float32 [positions, HALF], positions at least the capacity; channel i rotates with channel i + HALF.
Source: RoFormer (arXiv 2104.09864), in the convention of Qwen2; the tables are those of `export/graphs/decoder.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .words import after_previous


@triton.jit
def cached(cache_ptr, layer, kind):
    """The float16 keys (kind 0) or values (kind 1) of a layer; aligned, as loads of 16 bytes need to know."""
    address = tl.load(cache_ptr + 1 + 2 * layer + kind)
    return tl.multiple_of(address.to(tl.pointer_type(tl.float16)), 16)


@triton.jit
def rotate_and_cache(
    qkv_ptr, cos_ptr, sin_ptr, lengths_ptr, cache_ptr, layer, row, count,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, BT: tl.constexpr,
    PDL: tl.constexpr = False,
):  # fmt: skip
    """Of a prompt: rotates queries in place; caches rotated keys, and values.  Grid: (ceil(count / BT), HEADS + 2 ·
    KV_HEADS).

    qkv: float16 [count, (HEADS + 2 · KV_HEADS) · 2 · HALF], of tokens that follow what is cached in `row`. What does
    not fit into the row, or where its length is negative, is not written. BLOCK: a power of two from HALF on.
    """
    after_previous(PDL)
    head = tl.program_id(1)
    token, channel = tl.program_id(0) * BT + tl.arange(0, BT), tl.arange(0, BLOCK)
    length = tl.load(lengths_ptr + row)
    position = length + token
    capacity = tl.load(cache_ptr)
    fits = (token < count) & (length >= 0) & (position >= 0) & (position < capacity)
    real = (token < count)[:, None] & (channel < HALF)[None, :]
    fitting = fits[:, None] & (channel < HALF)[None, :]
    here = qkv_ptr + (token * (HEADS + 2 * KV_HEADS) + head)[:, None] * 2 * HALF + channel[None, :]
    first = tl.load(here, mask=real, other=0.0).to(tl.float32)
    second = tl.load(here + HALF, mask=real, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:
        angle = position[:, None] * HALF + channel[None, :]
        cos = tl.load(cos_ptr + angle, mask=fitting, other=0.0)
        sin = tl.load(sin_ptr + angle, mask=fitting, other=0.0)
        first, second = first * cos - second * sin, second * cos + first * sin
    if head < HEADS:
        tl.store(here, first.to(tl.float16), mask=real)
        tl.store(here + HALF, second.to(tl.float16), mask=real)
    else:
        kind = (head >= HEADS + KV_HEADS).to(tl.int32)
        at = (row * KV_HEADS + head - HEADS - kind * KV_HEADS) * capacity + position
        into = cached(cache_ptr, layer, kind) + at[:, None] * 2 * HALF + channel[None, :]
        tl.store(into, first.to(tl.float16), mask=fitting)
        tl.store(into + HALF, second.to(tl.float16), mask=fitting)


@triton.jit
def move_cached(
    cos_ptr, sin_ptr, cache_ptr, row, source, target, count,
    KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, BT: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """Moves `count` cached positions of a row from `source` to `target` <= source.  Grid: (layers, KV_HEADS, 2).

    Keys are rotated by the angle between old and new position, by the addition theorems from the tables. The two
    stretches may overlap: a program goes up through one head, BT positions at a time, all of which are read before one
    is written, and what it writes lies below all that it still has to read.
    """
    after_previous(PDL)
    layer, slot, kind = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    capacity = tl.load(cache_ptr)
    base = cached(cache_ptr, layer, kind) + (row * KV_HEADS + slot) * capacity * 2 * HALF
    channel = tl.arange(0, BLOCK)
    for start in range(0, count, BT):
        step = start + tl.arange(0, BT)
        inside = ((step < count) & (source + step < capacity))[:, None] & (channel < HALF)[None, :]
        old = (source + step)[:, None] * HALF + channel[None, :]
        new = (target + step)[:, None] * HALF + channel[None, :]
        there = base + (source + step)[:, None] * 2 * HALF + channel[None, :]
        first = tl.load(there, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(there + HALF, mask=inside, other=0.0).to(tl.float32)
        if kind == 0:
            cos_old = tl.load(cos_ptr + old, mask=inside, other=0.0)
            sin_old = tl.load(sin_ptr + old, mask=inside, other=0.0)
            cos_new = tl.load(cos_ptr + new, mask=inside, other=0.0)
            sin_new = tl.load(sin_ptr + new, mask=inside, other=0.0)
            cos, sin = cos_new * cos_old + sin_new * sin_old, sin_new * cos_old - cos_new * sin_old
            first, second = first * cos - second * sin, second * cos + first * sin
        tl.debug_barrier()  # every warp has read before one writes
        here = base + (target + step)[:, None] * 2 * HALF + channel[None, :]
        tl.store(here, first.to(tl.float16), mask=inside)
        tl.store(here + HALF, second.to(tl.float16), mask=inside)
        tl.debug_barrier()
