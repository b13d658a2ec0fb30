"""Products of a prompt, and of steps of many rows: codes are unpacked in registers and multiplied by `tl.dot`.

Activations are float16 in natural order, normed beforehand by `normalize`; sums are float32 within a group of codes and
over the groups, so scales are never rounded into the weights. Weights: as in `products.py`.

Where tensor cores want both factors in shared memory (`wgmma`, of 9.0), long prompts go through `dequantize` and
`dense_product` instead: unpacking once is cheaper than for every tile. There weights are rounded to float16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .words import after_previous, place, zero_points


@triton.jit
def normalize(
    x_ptr, norm_ptr, y_ptr, K: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr, PDL: tl.constexpr = False
):
    """y = RMSNorm(x), float32 [count, K] -> float16 [count, K].  Grid: (count,).  BLOCK: a power of two from K on."""
    after_previous(PDL)
    token, k = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + token * K + k, mask=k < K, other=0.0)
    factor = tl.rsqrt(tl.sum(x * x, 0) / K + EPS)
    y = x * factor * tl.load(norm_ptr + k, mask=k < K, other=0.0)
    tl.store(y_ptr + token * K + k, y.to(tl.float16), mask=k < K)


@triton.jit
def to_step_order(x_ptr, y_ptr, K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr = False):
    """float32 [count, K] in natural order to the order of a step (`words.py`).  Grid: (count,)."""
    after_previous(PDL)
    token, k = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + token * K + k, mask=k < K, other=0.0)
    tl.store(y_ptr + token * K + place(k, K), x, mask=k < K)


@triton.jit
def _tile(count, N, BM: tl.constexpr, BN: tl.constexpr, TALL: tl.constexpr):
    """The rows int32 [BM] and columns int32 [BN] of this program, the last ones repeated, and what of them is real.

    Programs of TALL tiles below one another are neighbours, so that they share what they read of the weights.
    """
    pid = tl.program_id(0)
    high, wide = tl.cdiv(count, BM), tl.cdiv(N, BN)
    top = pid // (TALL * wide) * TALL
    height = tl.minimum(high - top, TALL)
    rest = pid % (TALL * wide)
    token = (top + rest % height) * BM + tl.arange(0, BM)
    output = rest // height * BN + tl.arange(0, BN)
    written = (token < count)[:, None] & (output < N)[None, :]
    return tl.minimum(token, count - 1), tl.minimum(output, N - 1), written


@triton.jit
def prompt_product(
    x_ptr, order_ptr, codes_ptr, scales_ptr, zeros_ptr, bias_ptr, gate_ptr, y_ptr, count, N, pitch,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, ORDER: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TALL: tl.constexpr,
    PDL: tl.constexpr = False,
):  # fmt: skip
    """y = x · Wᵀ, plus a bias, added to y, or times SiLU(gate).  Grid: (ceil(count / BM) · ceil(N / BN),).

    x: float16 [count, K]. order: int32 [K], the column of x that code k belongs to. bias: float16 [N].
    gate: float16 [count, N], may be y. y: float16 or float32 [count, N]; of both, `pitch` from one row to the next. BK
    divides GROUP. TALL: as in `_tile`.
    """
    PER: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = K // PER
    GROUPS: tl.constexpr = K // GROUP
    after_previous(PDL)
    rows, columns, written = _tile(count, N, BM, BN, TALL)
    k, word, j = tl.arange(0, BK), tl.arange(0, BK // PER), tl.arange(0, PER)
    y = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        at = start + k
        if ORDER:
            at = tl.load(order_ptr + at)
        x = tl.load(x_ptr + rows[:, None] * K + at[None, :])
        words = tl.load(codes_ptr + columns[:, None] * WORDS + (start // PER + word)[None, :])
        codes = words[:, :, None] >> (j * BITS)[None, None, :]
        if BITS == 16:
            weights = tl.reshape(codes.to(tl.int16).to(tl.float16, bitcast=True), (BN, BK))
            y = tl.dot(x, tl.trans(weights), y)
        else:
            # A code in the lowest bits of 1024 is 1024 + code as a float16, up to 8 bits.
            codes = ((codes & ((1 << BITS) - 1)) | 0x6400).to(tl.int16).to(tl.float16, bitcast=True)
            group = start // GROUP
            if ZEROS:
                zeros = zero_points(zeros_ptr, columns, group, GROUPS, BITS, columns >= 0)
                weights = tl.reshape(codes, (BN, BK)) - (zeros + 1024.0).to(tl.float16)[:, None]
            else:
                weights = tl.reshape(codes, (BN, BK)) - (1024.0 + (1 << (BITS - 1)))
            scales = tl.load(scales_ptr + columns * GROUPS + group).to(tl.float32)
            y += tl.dot(x, tl.trans(weights.to(tl.float16))) * scales[None, :]
    _finish(y, rows, columns, written, bias_ptr, gate_ptr, y_ptr, pitch, BIAS, RESIDUAL, GATED)


@triton.jit
def _finish(
    y, rows, columns, written, bias_ptr, gate_ptr, y_ptr, pitch,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Writes a tile of a product, with what follows it."""
    into = rows[:, None] * pitch + columns[None, :]
    if BIAS:
        y += tl.load(bias_ptr + columns).to(tl.float32)[None, :]
    if GATED:
        gate = tl.load(gate_ptr + into, mask=written, other=0.0).to(tl.float32)
        y *= gate / (1.0 + tl.exp(-gate))
    if RESIDUAL:
        y += tl.load(y_ptr + into, mask=written, other=0.0)
    tl.store(y_ptr + into, y.to(y_ptr.dtype.element_ty), mask=written)


@triton.jit
def dequantize(
    order_ptr, codes_ptr, scales_ptr, zeros_ptr, dense_ptr, N,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, ORDER: tl.constexpr,
    BN: tl.constexpr, C: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """Weights as float16 [N, K], their columns in natural order, rounded.  Grid: (ceil(N / BN), ceil(words / C)).

    order: int32 [K], the column that code k belongs to.
    """
    PER: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = K // PER
    GROUPS: tl.constexpr = K // GROUP
    output = tl.program_id(0) * BN + tl.arange(0, BN)
    word = tl.program_id(1) * C + tl.arange(0, C)
    inside = (output < N)[:, None] & (word < WORDS)[None, :]
    group = (word // (GROUP // PER))[None, :]
    words = tl.load(codes_ptr + output[:, None] * WORDS + word[None, :], mask=inside, other=0)
    scales = tl.load(scales_ptr + output[:, None] * GROUPS + group, mask=inside, other=0.0).to(tl.float32)
    zeros = tl.full((BN, C), 1 << (BITS - 1), tl.float32)
    if ZEROS:
        zeros = zero_points(zeros_ptr, output[:, None], group, GROUPS, BITS, inside)
    j = tl.arange(0, PER)[None, None, :]
    codes = ((words[:, :, None] >> (j * BITS)) & ((1 << BITS) - 1)).to(tl.float32)
    values = ((codes - zeros[:, :, None]) * scales[:, :, None]).to(tl.float16)
    column = word[None, :, None] * PER + j
    if ORDER:
        column = tl.load(order_ptr + column, mask=(word < WORDS)[None, :, None], other=0)
    after_previous(PDL)  # a product may read the memory yet
    tl.store(dense_ptr + output[:, None, None] * K + column, values, mask=inside[:, :, None])


@triton.jit
def dense_product(
    x_ptr, dense_ptr, bias_ptr, gate_ptr, y_ptr, count, N, pitch,
    K: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TALL: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """`prompt_product` with weights float16 [N, K]: what tensor cores that read shared memory are fastest with."""
    after_previous(PDL)
    rows, columns, written = _tile(count, N, BM, BN, TALL)
    k = tl.arange(0, BK)
    y = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        inside = start + k < K
        x = tl.load(x_ptr + rows[:, None] * K + (start + k)[None, :], mask=inside[None, :], other=0.0)
        w = tl.load(dense_ptr + columns[:, None] * K + (start + k)[None, :], mask=inside[None, :], other=0.0)
        y = tl.dot(x, tl.trans(w), y)
    _finish(y, rows, columns, written, bias_ptr, gate_ptr, y_ptr, pitch, BIAS, RESIDUAL, GATED)
