"""Products of a step: quantized weights times a few vectors, a norm in front and what follows in the same launch.

A step reads every weight once, so what counts is that words are read as fast as memory gives them. Each program makes
BN outputs: it goes along their rows of codes, C words of each at a time, and adds up in float32. Nothing is added
atomically and nothing depends on how programs are scheduled: the same input gives the same bits, and a row the bits
that it has alone. An RMSNorm in front multiplies by its weight on the way and by its factor at the end, so that no
program waits for the sum of squares, which each takes from the values that pass by.

A tile [BN, C] is kept two-dimensional: with a third dimension for several vectors, Triton moves every word through
shared memory. So several vectors are several programs; from four on `prompt.py` is the better choice.

C = 128 · warps gives every thread four words of 16 bytes together, and the same four activations: no exchange between
threads until the end. So do one warp's 128 words and rows of BN apart for each warp.

Weights: codes int32 [N, K · BITS / 32] (the bytes of MatMulNBits [N, K / GROUP, GROUP · BITS / 8], read as words),
scales float16 [N, K / GROUP], zero points uint8 [N, ceil(K / GROUP · BITS / 8)] where ZEROS says so, else all are the
middle code. BITS 16 are float16 weights [N, K], GROUP is then any power of two from 16 that divides K, and not used.
Vectors are in a step's order (`words.py`), K and N of what is written in it multiples of 8.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .words import after_previous, code_as_float, place, place_of_code, zero_points


@triton.jit
def _stored(
    codes_ptr, scales_ptr, outputs, start,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Words int32 and scales float16 [BN, C] of the weights' rows `outputs`, from word `start` on; 0 beyond the end."""
    PER: tl.constexpr = 32 // BITS
    word = start + tl.arange(0, C)
    inside = (word < K // PER)[None, :]
    words = tl.load(codes_ptr + outputs[:, None] * (K // PER) + word[None, :], mask=inside, other=0)
    if BITS == 16:
        scales = words.to(tl.float16)  # not used
    else:
        group = word // (GROUP // PER)
        scales = tl.load(scales_ptr + outputs[:, None] * (K // GROUP) + group[None, :], mask=inside, other=0.0)
    return words, scales


@triton.jit
def _activations(x_ptr, norm_ptr, order_ptr, word, inside, j: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr,
                 NORM: tl.constexpr, ORDER: tl.constexpr):  # fmt: skip
    """float32 [C]: what code j of each word multiplies, as it is, and times the norm's weight."""
    if ORDER:
        at = tl.load(order_ptr + word * (32 // BITS) + j, mask=inside, other=0)
    else:
        at = place_of_code(word, j, BITS, K)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    normed = x
    if NORM:
        normed = x * tl.load(norm_ptr + at, mask=inside, other=0.0)
    return x, normed


@triton.jit
def _middle(zeros_ptr, outputs, word, inside, K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
            ZEROS: tl.constexpr):  # fmt: skip
    """The code that means zero: float32 [BN, C], or one number where it is the middle one."""
    if ZEROS:
        group = word // (GROUP // (32 // BITS))
        return zero_points(zeros_ptr, outputs[:, None], group[None, :], K // GROUP, BITS, inside[None, :])
    return 1 << (BITS - 1)


@triton.jit
def _row_sums(
    x_ptr, norm_ptr, order_ptr, codes_ptr, scales_ptr, zeros_ptr, outputs,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, NORM: tl.constexpr,
    ORDER: tl.constexpr, EPS: tl.constexpr, BN: tl.constexpr, C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """float32 [BN]: one vector times the weights' rows `outputs`, normed where NORM says so."""
    WORDS: tl.constexpr = K * BITS // 32
    sums = tl.zeros((BN, C), tl.float32)
    squares = tl.zeros((C,), tl.float32)
    words, scales = _stored(codes_ptr, scales_ptr, outputs, 0, K, BITS, GROUP, C)
    after_previous(PDL)
    for start in tl.range(0, WORDS, C):
        if WORDS > C:
            next_words, next_scales = _stored(codes_ptr, scales_ptr, outputs, start + C, K, BITS, GROUP, C)
        word = start + tl.arange(0, C)
        inside = word < WORDS
        zeros = _middle(zeros_ptr, outputs, word, inside, K, BITS, GROUP, ZEROS)
        part = tl.zeros((BN, C), tl.float32)
        for j in tl.static_range(32 // BITS):
            x, normed = _activations(x_ptr, norm_ptr, order_ptr, word, inside, j, K, BITS, NORM, ORDER)
            if NORM:
                squares += x * x
            part += code_as_float(words, j, zeros, BITS) * normed[None, :]
        if BITS == 16:
            sums += part
        else:
            sums += part * scales.to(tl.float32)
        if WORDS > C:
            words, scales = next_words, next_scales
    result = tl.sum(sums, 1)
    if NORM:
        result *= tl.rsqrt(tl.sum(squares, 0) / K + EPS)
    return result


@triton.jit
def _pair_row_sums(
    x_ptr, norm_ptr, codes_ptr, scales_ptr, zeros_ptr, up_codes_ptr, up_scales_ptr, up_zeros_ptr, outputs,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, UP_GROUP: tl.constexpr,
    UP_ZEROS: tl.constexpr, EPS: tl.constexpr, BN: tl.constexpr, C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`_row_sums` of two matrices whose codes are as wide, with what they multiply read once."""
    WORDS: tl.constexpr = K * BITS // 32
    sums = tl.zeros((BN, C), tl.float32)
    up_sums = tl.zeros((BN, C), tl.float32)
    squares = tl.zeros((C,), tl.float32)
    words, scales = _stored(codes_ptr, scales_ptr, outputs, 0, K, BITS, GROUP, C)
    up_words, up_scales = _stored(up_codes_ptr, up_scales_ptr, outputs, 0, K, BITS, UP_GROUP, C)
    after_previous(PDL)
    for start in tl.range(0, WORDS, C):
        if WORDS > C:
            next_words, next_scales = _stored(codes_ptr, scales_ptr, outputs, start + C, K, BITS, GROUP, C)
            next_up, next_up_scales = _stored(up_codes_ptr, up_scales_ptr, outputs, start + C, K, BITS, UP_GROUP, C)
        word = start + tl.arange(0, C)
        inside = word < WORDS
        zeros = _middle(zeros_ptr, outputs, word, inside, K, BITS, GROUP, ZEROS)
        up_zeros = _middle(up_zeros_ptr, outputs, word, inside, K, BITS, UP_GROUP, UP_ZEROS)
        part = tl.zeros((BN, C), tl.float32)
        up_part = tl.zeros((BN, C), tl.float32)
        for j in tl.static_range(32 // BITS):
            x, normed = _activations(x_ptr, norm_ptr, norm_ptr, word, inside, j, K, BITS, True, False)
            squares += x * x
            part += code_as_float(words, j, zeros, BITS) * normed[None, :]
            up_part += code_as_float(up_words, j, up_zeros, BITS) * normed[None, :]
        if BITS == 16:
            sums += part
            up_sums += up_part
        else:
            sums += part * scales.to(tl.float32)
            up_sums += up_part * up_scales.to(tl.float32)
        if WORDS > C:
            words, scales, up_words, up_scales = next_words, next_scales, next_up, next_up_scales
    factor = tl.rsqrt(tl.sum(squares, 0) / K + EPS)
    return tl.sum(sums, 1) * factor, tl.sum(up_sums, 1) * factor


@triton.jit
def product(
    x_ptr, norm_ptr, order_ptr, codes_ptr, scales_ptr, zeros_ptr, bias_ptr, y_ptr, rows, N, pitch,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, NORM: tl.constexpr,
    ORDER: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, WIDTH: tl.constexpr, EPS: tl.constexpr,
    BN: tl.constexpr, C: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """y = W · x, or W · RMSNorm(x), plus a bias; or added to y.  Grid: (ceil(N / BN) · rows,).

    x: float16 or float32 [rows, K] in a step's order. norm: float32 [K] in that order. order: int32 [K], the place
    (`words.place`) of the element that code k belongs to, for weights with reordered inputs. bias: float16 [N].
    y: float16 or float32 [rows, N] in natural order, `pitch` from one row to the next; with RESIDUAL it is in a step's
    order, is added to, and WIDTH is N. What a flag switches off is not read. Programs of one place and several rows
    are neighbours: what one reads of the weights, the others find in the cache.
    """
    row = tl.program_id(0) % rows
    outputs = tl.program_id(0) // rows * BN + tl.arange(0, BN)
    real = outputs < N
    outputs = tl.minimum(outputs, N - 1)  # the last ones twice rather than masked loads
    y = _row_sums(
        x_ptr + row * K, norm_ptr, order_ptr, codes_ptr, scales_ptr, zeros_ptr, outputs,
        K, BITS, GROUP, ZEROS, NORM, ORDER, EPS, BN, C, PDL,
    )  # fmt: skip
    if BIAS:
        y += tl.load(bias_ptr + outputs).to(tl.float32)
    if RESIDUAL:
        into = y_ptr + row * pitch + place(outputs, WIDTH)
        y += tl.load(into, mask=real, other=0.0)
    else:
        into = y_ptr + row * pitch + outputs
    tl.store(into, y.to(y_ptr.dtype.element_ty), mask=real)


@triton.jit
def gated_product(
    x_ptr, norm_ptr, order_ptr, codes_ptr, scales_ptr, zeros_ptr,
    up_order_ptr, up_codes_ptr, up_scales_ptr, up_zeros_ptr, y_ptr, rows,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, ORDER: tl.constexpr,
    UP_BITS: tl.constexpr, UP_GROUP: tl.constexpr, UP_ZEROS: tl.constexpr, UP_ORDER: tl.constexpr,
    WIDTH: tl.constexpr, EPS: tl.constexpr, BN: tl.constexpr, C: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """y = SiLU(G · RMSNorm(x)) · (U · RMSNorm(x)), SiLU(a) = a / (1 + exp(−a)).  Grid: (ceil(WIDTH / BN) · rows,).

    x: float32 [rows, K], norm float32 [K], y: float16 [rows, WIDTH], all in a step's order; the weights of gate and up
    as in `product`, each with settings of its own.
    """
    row = tl.program_id(0) % rows
    outputs = tl.program_id(0) // rows * BN + tl.arange(0, BN)
    real = outputs < WIDTH
    outputs = tl.minimum(outputs, WIDTH - 1)
    if BITS == UP_BITS and not ORDER and not UP_ORDER:  # the same activations for both
        gate, up = _pair_row_sums(
            x_ptr + row * K, norm_ptr, codes_ptr, scales_ptr, zeros_ptr, up_codes_ptr, up_scales_ptr, up_zeros_ptr,
            outputs, K, BITS, GROUP, ZEROS, UP_GROUP, UP_ZEROS, EPS, BN, C, PDL,
        )  # fmt: skip
    else:
        gate = _row_sums(
            x_ptr + row * K, norm_ptr, order_ptr, codes_ptr, scales_ptr, zeros_ptr, outputs,
            K, BITS, GROUP, ZEROS, True, ORDER, EPS, BN, C, PDL,
        )  # fmt: skip
        up = _row_sums(
            x_ptr + row * K, norm_ptr, up_order_ptr, up_codes_ptr, up_scales_ptr, up_zeros_ptr, outputs,
            K, UP_BITS, UP_GROUP, UP_ZEROS, True, UP_ORDER, EPS, BN, C, PDL,
        )  # fmt: skip
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(y_ptr + row * WIDTH + place(outputs, WIDTH), y.to(tl.float16), mask=real)
