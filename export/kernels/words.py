"""Codes in words of 32 bits, and the order that a step's activations have for them.

A row of codes is one bit string, as MatMulNBits has it (`quant/packing.py`): a word holds 32 / bits codes that follow
one another, the first in its lowest bits; float16 weights are two to a word in the same way. A thread that holds a word
needs the activations of all its codes. In natural order neighbouring threads would read them 8 places apart. So the
vectors of a step are kept in eight strands: place(k) = (k mod 8) · size / 8 + k div 8. Then code j of words that follow
one another meets activations that follow one another, at 4 bits, and with small strides at other widths. Prompts have
natural order, because there a tile of activations is read as a whole.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def after_previous(PDL: tl.constexpr):
    """Waits until the kernels before this one are done and what they wrote can be seen; then lets the next one begin.

    PDL: whether kernels overlap so (programmatic dependent launch, from compute capability 9.0 on). A kernel may read
    weights before, which nothing writes, and nothing else. As all of them wait here, what one reads all earlier ones
    have written. The next is let in only now: were it let in at the start, kernels further on would come and wait
    where there is room, and a small one would find it on few processors.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def place(k, SIZE: tl.constexpr):
    """Where element k of a vector of SIZE elements, a multiple of 8, stands in a step's order."""
    return (k % 8) * (SIZE // 8) + k // 8


@triton.jit
def place_of_code(word, j: tl.constexpr, BITS: tl.constexpr, SIZE: tl.constexpr):
    """`place` of code j of a word of BITS-bit codes, written so that what is contiguous can be seen to be."""
    if BITS == 4:
        k = j * (SIZE // 8) + word
    elif BITS == 2:
        k = (j % 8) * (SIZE // 8) + word * 2 + j // 8
    else:
        SHARE: tl.constexpr = BITS // 4  # words that eight codes take
        k = (word % SHARE * (32 // BITS) + j) * (SIZE // 8) + word // SHARE
    return k


@triton.jit
def code_as_float(words, j: tl.constexpr, zeros, BITS: tl.constexpr):
    """Code j of each word, less its zero point, in float32; the value itself of float16 weights (BITS 16).

    Bits that stand at place p of the mantissa of 2^(23 − p) add their value to it. So a code is masked where it stands
    and needs no conversion, and a shift only where it reaches beyond the 23 bits: once for several codes of a word.
    On an Orin, whose whole-number units are half as many, five instructions a code would take longer than reading it.
    """
    if BITS == 16:
        value = ((words >> (16 * j)) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        TOGETHER: tl.constexpr = 23 // BITS
        SHIFT: tl.constexpr = j // TOGETHER * TOGETHER * BITS
        PLACE: tl.constexpr = j % TOGETHER * BITS
        MASK: tl.constexpr = ((1 << BITS) - 1) << PLACE
        EXPONENT: tl.constexpr = (127 + 23 - PLACE) << 23
        raised = (((words >> SHIFT) & MASK) | EXPONENT).to(tl.float32, bitcast=True)
        value = raised - ((1 << (23 - PLACE)) * 1.0 + zeros)
    return value


@triton.jit
def zero_points(zeros_ptr, rows, groups, GROUPS: tl.constexpr, BITS: tl.constexpr, mask):
    """Zero points of rows and groups, float32, from bytes [N, ceil(GROUPS · BITS / 8)]; shapes are broadcast."""
    PER_BYTE: tl.constexpr = 8 // BITS
    WIDTH: tl.constexpr = (GROUPS + PER_BYTE - 1) // PER_BYTE
    packed = tl.load(zeros_ptr + rows * WIDTH + groups // PER_BYTE, mask=mask, other=0).to(tl.int32)
    return ((packed >> (groups % PER_BYTE * BITS)) & ((1 << BITS) - 1)).to(tl.float32)
