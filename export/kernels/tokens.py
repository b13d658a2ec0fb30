"""From tokens to their embeddings, and from logits to the next token, without the host.

What varies is in device memory: tokens int64 [rows], lengths int32 [rows] (`rotary.py`), and for each row its
temperature float32 [rows], top_k int32 [rows] and draws float32 [rows, TRAIL], numbers from 0 up to 1 that the host has
drawn, so that a seed means the same tokens as where the host samples.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .words import after_previous, place


@triton.jit
def embed(
    tokens_ptr, codes_ptr, scales_ptr, zeros_ptr, x_ptr, vocabulary,
    K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, BLOCK: tl.constexpr,
    STRANDS: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """Rows of the embedding table, float32 [count, K], in a step's order where STRANDS says so.  Grid: (count,).

    tokens: int64 [count]; the row of an id outside the vocabulary is left as it is, as that of a visual token, given
    as −1. Table: codes uint8 [vocabulary, K · BITS / 8], scales float16 [vocabulary, K / GROUP], perhaps zero points,
    as MatMulNBits has them; or float16 or float32 [vocabulary, K] with BITS 16 or 32. BLOCK: a power of two from K on.
    """
    after_previous(PDL)
    row, k = tl.program_id(0), tl.arange(0, BLOCK)
    token = tl.load(tokens_ptr + row)
    inside = (k < K) & (token >= 0) & (token < vocabulary)
    if BITS >= 16:
        x = tl.load(codes_ptr + token * K + k, mask=inside, other=0.0).to(tl.float32)
    else:
        PER: tl.constexpr = 8 // BITS
        GROUPS: tl.constexpr = K // GROUP
        WIDTH: tl.constexpr = (GROUPS + PER - 1) // PER
        MASK: tl.constexpr = (1 << BITS) - 1
        group = k // GROUP
        codes = tl.load(codes_ptr + token * (K // PER) + k // PER, mask=inside, other=0).to(tl.int32)
        x = ((codes >> (k % PER * BITS)) & MASK).to(tl.float32)
        if ZEROS:
            zeros = tl.load(zeros_ptr + token * WIDTH + group // PER, mask=inside, other=0).to(tl.int32)
            x -= ((zeros >> (group % PER * BITS)) & MASK).to(tl.float32)
        else:
            x -= 1 << (BITS - 1)
        x *= tl.load(scales_ptr + token * GROUPS + group, mask=inside, other=0.0).to(tl.float32)
    at = k
    if STRANDS:
        at = place(k, K)
    tl.store(x_ptr + row * K + at, x, mask=inside)


@triton.jit
def _best(values, ids, nowhere):
    """The largest of the values, NaN if one of them is NaN, and the lowest id that has it."""
    spoilt = tl.max((values != values).to(tl.int32), 0) > 0
    largest = tl.max(tl.where(values != values, float("-inf"), values), 0)
    best = tl.min(tl.where(values == largest, ids, nowhere), 0)
    return tl.where(spoilt, float("nan"), largest), best


@triton.jit
def best_of_block(logits_ptr, values_ptr, ids_ptr, vocabulary, BLOCK: tl.constexpr, PDL: tl.constexpr = False):
    """The first stage of a choice: the best of every BLOCK logits.  Grid: (ceil(vocabulary / BLOCK), rows).

    logits: float32 [rows, vocabulary]. values: float32 [rows, blocks], NaN where a logit is. ids: int32 [rows, blocks],
    the lowest id of those that are equal.
    """
    after_previous(PDL)
    block, row = tl.program_id(0), tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + row * vocabulary + ids, mask=ids < vocabulary, other=float("-inf"))
    value, best = _best(logits, ids, vocabulary - 1)
    at = row * tl.num_programs(0) + block
    tl.store(values_ptr + at, value)
    tl.store(ids_ptr + at, best)


@triton.jit
def choose(
    logits_ptr, values_ptr, ids_ptr, temperatures_ptr, top_k_ptr, draws_ptr, tokens_ptr, trail_ptr, lengths_ptr,
    vocabulary, blocks, grown, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, TRAIL: tl.constexpr,
    PDL: tl.constexpr = False,
):  # fmt: skip
    """The second stage: the next token of each row, greedy or sampled; the row then is `grown` longer.  Grid: (rows,).

    values, ids: of `best_of_block`. tokens: int64 [rows], the choice. trail: int64 [rows, TRAIL], the choice again, at
    the position where it will stand modulo TRAIL; draws likewise. A row of negative length keeps it, without a trail.
    Of logits of which one is NaN, or the best infinite, the choice is 0: the caller looks at them when it sees a 0, as
    at any argmax of nothing but NaN. BLOCKS: a power of two from `blocks` on.
    Sampling is `filtered_probabilities` of the runtime without top-p, in float32.
    """
    after_previous(PDL)
    row = tl.program_id(0)
    block = tl.arange(0, BLOCKS)
    values = tl.load(values_ptr + row * blocks + block, mask=block < blocks, other=float("-inf"))
    ids = tl.load(ids_ptr + row * blocks + block, mask=block < blocks, other=vocabulary - 1)
    best, token = _best(values, ids, vocabulary - 1)
    sound = tl.abs(best) < float("inf")  # false for NaN, too
    length = tl.load(lengths_ptr + row)
    active = length >= 0
    at = row * TRAIL + tl.where(active, (length + grown) % TRAIL, 0)
    temperature = tl.load(temperatures_ptr + row)
    if sound & (temperature > 0.0):
        k = tl.load(top_k_ptr + row)
        lowest = _kth_key(logits_ptr + row * vocabulary, tl.where(k > 0, k, vocabulary), vocabulary, BLOCK)
        token = _drawn(
            logits_ptr + row * vocabulary, vocabulary, lowest, best, temperature, tl.load(draws_ptr + at), BLOCK
        )
    token = tl.where(sound, token, 0).to(tl.int64)
    tl.store(tokens_ptr + row, token)
    tl.store(trail_ptr + at, token, mask=active)
    tl.store(lengths_ptr + row, length + grown, mask=active)


@triton.jit
def _keys(logits):
    """int32 keys that are ordered as the logits are; both zeros have one key."""
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _kth_key(logits_ptr, k, vocabulary, BLOCK: tl.constexpr):
    """The key of the k-th largest logit, the smallest of all keys where there are no more than k."""
    high = tl.full((), 0, tl.int32)  # of the key as if it had no sign
    if k < vocabulary:
        high, rank = _next_byte(logits_ptr, high, k, vocabulary, 24, BLOCK)
        high, rank = _next_byte(logits_ptr, high, rank, vocabulary, 16, BLOCK)
        high, rank = _next_byte(logits_ptr, high, rank, vocabulary, 8, BLOCK)
        high, rank = _next_byte(logits_ptr, high, rank, vocabulary, 0, BLOCK)
    return high ^ -2147483648


@triton.jit
def _next_byte(logits_ptr, high, rank, vocabulary, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """The next byte of a key sought, put into `high`, and the key's rank among those that agree so far.

    Of the keys that agree with `high` in the bytes above, it is counted how many have which byte here.
    """
    digits = tl.arange(0, 256)
    counts = tl.zeros((256,), tl.int32)
    for start in range(0, vocabulary, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        keys = _keys(tl.load(logits_ptr + ids, mask=ids < vocabulary, other=0.0)) ^ -2147483648
        counted = ids < vocabulary
        if SHIFT < 24:
            counted = counted & ((keys >> (SHIFT + 8)) == (high >> (SHIFT + 8)))
        counts += tl.histogram((keys >> SHIFT) & 255, 256, mask=counted)
    above = tl.sum(counts, 0) - tl.cumsum(counts, 0)
    digit = tl.max(tl.where((above < rank) & (above + counts >= rank), digits, 0), 0)
    return high | (digit << SHIFT), rank - tl.sum(tl.where(digits == digit, above, 0), 0)


@triton.jit
def _drawn(logits_ptr, vocabulary, lowest, best, temperature, draw, BLOCK: tl.constexpr):
    """The id at which the running sum of the probabilities of keys from `lowest` on passes draw · their sum."""
    total = 0.0
    for start in range(0, vocabulary, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        total += tl.sum(_weights(logits_ptr, ids, vocabulary, lowest, best, temperature), 0)
    goal, passed = draw * total, 0.0
    token = tl.full((), -1, tl.int32)
    last = tl.full((), 0, tl.int32)
    for start in range(0, vocabulary, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        weights = _weights(logits_ptr, ids, vocabulary, lowest, best, temperature)
        here = tl.sum(weights, 0)
        last = tl.maximum(last, tl.max(tl.where(weights > 0.0, ids, 0), 0))
        if (token < 0) & (passed + here > goal):
            beyond = (passed + tl.cumsum(weights, 0) > goal) & (weights > 0.0)
            token = tl.minimum(tl.min(tl.where(beyond, ids, vocabulary), 0), last)
        passed += here
    return tl.where(token < 0, last, token)  # rounding may leave the sum a little short of a draw close to 1


@triton.jit
def _weights(logits_ptr, ids, vocabulary, lowest, best, temperature):
    """exp((logit − best) / temperature) of the logits whose keys reach `lowest`, else 0."""
    logits = tl.load(logits_ptr + ids, mask=ids < vocabulary, other=float("-inf"))
    kept = (ids < vocabulary) & (_keys(logits) >= lowest)
    return tl.where(kept, tl.exp((logits - best) / temperature), 0.0)
