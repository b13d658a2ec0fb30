"""Products of a step of several rows: a few vectors at once, so that weights are read once for all of them.

A tile of words goes through registers code by code: the codes at place j of C words that follow one another are a
matrix of their own, and meet C activations that follow one another, because vectors are in a step's order (`words.py`).
So nothing is moved between threads but the words. Sums are float32; a tile lies in one group, whose scale is multiplied
afterwards and never rounded into a weight.

Few outputs give few programs, so a row of weights is shared out among PARTS of them. Whichever comes last adds up what
all have, in one order, so the same input gives the same bits. Weights: as in `products.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .words import after_previous, place, place_of_code, zero_points


@triton.jit
def _half_code(words, j: tl.constexpr, zeros, BITS: tl.constexpr):
    """Code j of each word, less its zero point, float16: exact, as a code in the lowest bits of 1024 is 1024 + code."""
    if BITS == 16:
        value = ((words >> (16 * j)) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    else:
        raised = ((words >> (BITS * j)) & ((1 << BITS) - 1)) | 0x6400
        value = raised.to(tl.int16).to(tl.float16, bitcast=True) - (zeros + 1024.0).to(tl.float16)
    return value


@triton.jit
def few_product(
    x_ptr, order_ptr, codes_ptr, scales_ptr, zeros_ptr, bias_ptr, gate_ptr, y_ptr, parts_ptr, arrived_ptr,
    rows, N, pitch,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, ORDER: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr, WIDTH: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """y = x · Wᵀ, plus a bias, added to y, or times SiLU(gate).  Grid: (ceil(N / BN), PARTS).

    x: float16 [rows, K] in a step's order, rows <= BM. order: int32 [K], the place of the element that code k belongs
    to. bias: float16 [N]. y: float16 or float32 [rows, N], `pitch` from one row to the next; in a step's order where
    WIDTH is N, in natural order where it is 0. gate: float16, where y is. C: words at once, of one group.
    parts: float32 [ceil(N / BN), PARTS, BN, BM]. arrived: int32 [ceil(N / BN)], 0 before and after.
    """
    PER: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = K // PER
    GROUPS: tl.constexpr = K // GROUP
    SHARE: tl.constexpr = ((WORDS + C - 1) // C + PARTS - 1) // PARTS
    block, part = tl.program_id(0), tl.program_id(1)
    output = block * BN + tl.arange(0, BN)
    outputs = tl.minimum(output, N - 1)
    row = tl.arange(0, BM)
    after_previous(PDL)
    y = tl.zeros((BN, BM), tl.float32)
    for start in range(part * SHARE * C, tl.minimum((part + 1) * SHARE * C, WORDS), C):
        word = start + tl.arange(0, C)
        inside = word < WORDS
        words = tl.load(codes_ptr + outputs[:, None] * WORDS + word[None, :], mask=inside[None, :], other=0)
        group = start // (GROUP // PER)
        zeros = tl.full((BN,), 1 << (BITS - 1), tl.float32)
        if ZEROS:
            zeros = zero_points(zeros_ptr, outputs, group, GROUPS, BITS, outputs >= 0)
        sums = tl.zeros((BN, BM), tl.float32)
        for j in tl.static_range(PER):
            if ORDER:
                at = tl.load(order_ptr + word * PER + j, mask=inside, other=0)
            else:
                at = place_of_code(word, j, BITS, K)
            x = tl.load(x_ptr + row[None, :] * K + at[:, None], mask=inside[:, None] & (row < rows)[None, :], other=0.0)
            sums = tl.dot(_half_code(words, j, zeros[:, None], BITS), x, sums)
        if BITS < 16:
            sums *= tl.load(scales_ptr + outputs * GROUPS + group).to(tl.float32)[:, None]
        y += sums
    last = True
    if PARTS > 1:
        inner = tl.arange(0, BN)[:, None] * BM + row[None, :]
        tl.store(parts_ptr + (block * PARTS + part) * BN * BM + inner, y)
        tl.debug_barrier()  # all threads have stored when one says so
        last = tl.atomic_add(arrived_ptr + block, 1, sem="acq_rel") == PARTS - 1
        if last:
            tl.store(arrived_ptr + block, 0)
            y = tl.zeros((BN, BM), tl.float32)
            for other in tl.static_range(PARTS):
                y += tl.load(parts_ptr + (block * PARTS + other) * BN * BM + inner, cache_modifier=".cg")
    if last:
        if WIDTH:
            into = row[None, :] * pitch + place(outputs, WIDTH)[:, None]
        else:
            into = row[None, :] * pitch + outputs[:, None]
        written = (output < N)[:, None] & (row < rows)[None, :]
        if BIAS:
            y += tl.load(bias_ptr + outputs).to(tl.float32)[:, None]
        if GATED:
            gate = tl.load(gate_ptr + into, mask=written, other=0.0).to(tl.float32)
            y *= gate / (1.0 + tl.exp(-gate))
        if RESIDUAL:
            y += tl.load(y_ptr + into, mask=written, other=0.0)
        tl.store(y_ptr + into, y.to(y_ptr.dtype.element_ty), mask=written)
