"""Attention over the cache: of a step, split over positions and combined, and of a prompt.

The query heads that share a key and value head are one matrix in a step, so the cache is read once, whatever their
ratio. Only positions that are filled are read: what lies beyond, NaN or not, has no influence. Scores and sums are
float32; shares are float16 where they multiply the values, which are. Cache, lengths: as in `rotary.py`. DIM: channels
of a head in the cache; REAL: those of the model, of either half of DIM the first REAL / 2, which alone are written out.
SCALE: of the scores. BLOCK_D: a power of two from DIM on.
Sources: FlashAttention-2 (arXiv 2307.08691), Flash-Decoding (pytorch.org/blog/flash-decoding).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rotary import cached
from .words import after_previous, place

_NEVER = tl.constexpr(-1e30)  # of a score that does not count; not infinity, as infinity − infinity is NaN


@triton.jit
def _rotated(vector, cos_ptr, sin_ptr, position, channel, inside, known, HALF: tl.constexpr):
    """Heads of qkv (pointers [H, 1]) rotated to a position, as `rotary.py` does it: float16 [H, channels].

    A channel without a partner in `channel` reads it from where it lies.
    """
    in_half, other = channel % HALF, (channel + HALF) % (2 * HALF)
    if HALF % 8 == 0:  # the compiler does not see it, and would load one number at a time
        in_half = tl.max_contiguous(tl.multiple_of(in_half, 8), 8)
        other = tl.max_contiguous(tl.multiple_of(other, 8), 8)
    angle = position * HALF + in_half
    cos = tl.load(cos_ptr + angle, mask=known & (channel < 2 * HALF), other=0.0)[None, :]
    sin = tl.load(sin_ptr + angle, mask=known & (channel < 2 * HALF), other=0.0)[None, :]
    own = tl.load(vector + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    partner = tl.load(vector + other[None, :], mask=inside, other=0.0).to(tl.float32)
    is_first = (channel < HALF)[None, :]
    return tl.where(is_first, own * cos - partner * sin, own * cos + partner * sin).to(tl.float16)


@triton.jit
def attend(
    qkv_ptr, cos_ptr, sin_ptr, lengths_ptr, cache_ptr, layer, sums_ptr, peaks_ptr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, SCALE: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr, SPLITS: tl.constexpr, BT: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """One of SPLITS parts of the positions of one row and key head.  Grid: (rows, KV_HEADS, SPLITS).

    qkv: float16 [rows, (HEADS + 2 · KV_HEADS) · DIM], not rotated yet. A row sees what is cached and its own token,
    whose key and value the program of its position caches; a row that is full sees what is cached, one of negative
    length nothing, and neither is written to. Tables: as in `rotary.py`.
    sums: float32 [rows, HEADS, SPLITS, DIM], values times exp(score − peak). peaks: float32 [rows, HEADS, SPLITS, 2],
    the peak and the sum of exp(score − peak). BLOCK_H: a power of two from 16 and HEADS / KV_HEADS on.
    """
    row, slot, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    SHARING: tl.constexpr = HEADS // KV_HEADS
    HALF: tl.constexpr = DIM // 2
    after_previous(PDL)
    capacity = tl.load(cache_ptr).to(tl.int32)
    length = tl.minimum(tl.load(lengths_ptr + row), capacity)
    fits = (length >= 0) & (length < capacity)
    share = tl.cdiv(tl.cdiv(length + 1, SPLITS), BT) * BT
    member, channel = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    head = slot * SHARING + member
    real = (channel < DIM)[None, :]
    asked = (member < SHARING)[:, None] & real
    mine = qkv_ptr + row * (HEADS + 2 * KV_HEADS) * DIM
    known = length >= 0
    position = tl.minimum(length, capacity - 1)
    q = _rotated(mine + head[:, None] * DIM, cos_ptr, sin_ptr, position, channel, asked, known, HALF)
    start = (row * KV_HEADS + slot) * capacity.to(tl.int64)
    keys, values = cached(cache_ptr, layer, 0), cached(cache_ptr, layer, 1)
    peak = tl.full((BLOCK_H,), _NEVER, tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    sums = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    if fits & (length // tl.maximum(share, 1) == split):
        one = tl.zeros((1,), tl.int32)
        key = mine + (HEADS + slot + one)[:, None] * DIM
        k = _rotated(key, cos_ptr, sin_ptr, position, channel, real, known, HALF)
        v = tl.load(key + KV_HEADS * DIM + channel[None, :], mask=real, other=0.0)
        at = (start + length) * DIM + channel[None, :]
        tl.store(keys + at, k, mask=real)
        tl.store(values + at, v, mask=real)
        peak = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1) * SCALE
        total += 1.0
        sums += v.to(tl.float32)
    for first in range(split * share, tl.minimum(split * share + share, length), BT):
        place_in_row = first + tl.arange(0, BT)
        seen = place_in_row < length
        at = (start + place_in_row)[:, None] * DIM + channel[None, :]
        inside = seen[:, None] & real
        scores = tl.dot(q, tl.trans(tl.load(keys + at, mask=inside, other=0.0))) * SCALE
        scores = tl.where(seen[None, :], scores, _NEVER)
        higher = tl.maximum(peak, tl.max(scores, 1))
        shares, fading = tl.exp(scores - higher[:, None]), tl.exp(peak - higher)
        v = tl.load(values + at, mask=inside, other=0.0)
        sums = tl.dot(shares.to(tl.float16), v, sums * fading[:, None])
        total = total * fading + tl.sum(shares, 1)
        peak = higher
    part = (row * HEADS + head) * SPLITS + split
    tl.store(sums_ptr + part[:, None] * DIM + channel[None, :], sums, mask=asked)
    tl.store(peaks_ptr + part * 2, peak, mask=member < SHARING)
    tl.store(peaks_ptr + part * 2 + 1, total, mask=member < SHARING)


@triton.jit
def combine(
    sums_ptr, peaks_ptr, y_ptr,
    HEADS: tl.constexpr, DIM: tl.constexpr, REAL: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr,
    STRANDS: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """What one head attends to, from its parts.  Grid: (rows, HEADS).

    y: float16 [rows, HEADS · REAL], in a step's order where STRANDS says so. A row that sees nothing gets zeros.
    """
    after_previous(PDL)
    row, head = tl.program_id(0), tl.program_id(1)
    split, channel = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    part = (row * HEADS + head) * SPLITS + split
    peak, total = tl.load(peaks_ptr + part * 2), tl.load(peaks_ptr + part * 2 + 1)
    weight = tl.exp(peak - tl.max(peak, 0))
    inside = (channel < DIM)[None, :]
    sums = tl.load(sums_ptr + part[:, None] * DIM + channel[None, :], mask=inside, other=0.0)
    total = tl.sum(total * weight, 0)
    y = tl.sum(sums * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    at = head * REAL + channel // (DIM // 2) * (REAL // 2) + channel % (DIM // 2)
    if STRANDS:
        at = place(at, HEADS * REAL)
    tl.store(
        y_ptr + row * HEADS * REAL + at, y.to(tl.float16), mask=(channel < DIM) & (channel % (DIM // 2) < REAL // 2)
    )


@triton.jit
def attend_prompt(
    qkv_ptr, lengths_ptr, cache_ptr, layer, row, y_ptr, count,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, REAL: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_D: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """What BM tokens of a prompt attend to in one head.  Grid: (ceil(count / BM), HEADS).

    The prompt's tokens stand in `row` from its length on, their keys and values in the cache already; each sees all
    before itself and itself. qkv: float16 [count, (HEADS + 2 · KV_HEADS) · DIM], queries rotated.
    y: float16 [count, HEADS · REAL] in natural order.
    """
    after_previous(PDL)
    block, head = tl.program_id(0), tl.program_id(1)
    capacity = tl.load(cache_ptr)
    cached_before = tl.load(lengths_ptr + row)
    end = tl.minimum(cached_before + count, capacity.to(tl.int32))
    token, channel = block * BM + tl.arange(0, BM), tl.arange(0, BLOCK_D)
    asked = (token < count)[:, None] & (channel < DIM)[None, :]
    query = qkv_ptr + (token * (HEADS + 2 * KV_HEADS) + head)[:, None] * DIM + channel[None, :]
    q = tl.load(query, mask=asked, other=0.0)
    start = (row * KV_HEADS + head // (HEADS // KV_HEADS)) * capacity
    keys, values = cached(cache_ptr, layer, 0), cached(cache_ptr, layer, 1)
    peak = tl.full((BM,), _NEVER, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    sums = tl.zeros((BM, BLOCK_D), tl.float32)
    for first in range(0, tl.minimum(cached_before + (block + 1) * BM, end), BT):
        position = first + tl.arange(0, BT)
        at = (start + position)[:, None] * DIM + channel[None, :]
        inside = (position < end)[:, None] & (channel < DIM)[None, :]
        scores = tl.dot(q, tl.trans(tl.load(keys + at, mask=inside, other=0.0))) * SCALE
        seen = position[None, :] <= (cached_before + token)[:, None]
        scores = tl.where(seen & (position < end)[None, :], scores, _NEVER)
        higher = tl.maximum(peak, tl.max(scores, 1))
        shares, fading = tl.exp(scores - higher[:, None]), tl.exp(peak - higher)
        v = tl.load(values + at, mask=inside, other=0.0)
        sums = tl.dot(shares.to(tl.float16), v, sums * fading[:, None])
        total = total * fading + tl.sum(shares, 1)
        peak = higher
    y = sums / total[:, None]
    column = head * REAL + channel // (DIM // 2) * (REAL // 2) + channel % (DIM // 2)
    into = y_ptr + token[:, None] * HEADS * REAL + column[None, :]
    tl.store(into, y.to(tl.float16), mask=asked & (channel % (DIM // 2) < REAL // 2)[None, :])
