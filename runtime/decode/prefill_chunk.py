"""How many tokens of a prompt go through the decoder in one call: enough to be bound by arithmetic, few enough to fit.

On a CPU 512 are, and their activations are small. A GPU wants more: at the 2B sizes one H200 read 55,000 tokens a
second in chunks of 512, 97,500 in chunks of 2,048 and 112,900 in chunks of 4,096.

The chunk is in the bits of a result. Kernels sum in another order for another number of positions, so keys, values and
logits of a prompt that was cut elsewhere differ by rounding, as they do between one device and another. What does not
depend on it: a prompt that grows while its clip is encoded is cut where the whole prompt is, so it has the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..bundle.specs import TextSpec

PREFILL_CHUNK = 512
GPU_CHUNKS = (4096, 2048)
LIMITED_CHUNKS = (*GPU_CHUNKS, 1024, 512)
_SHARE = 8
_FLOAT = 4


def prefill_activation_bytes(spec: TextSpec, tokens: int) -> int:
    """Activations of the decoder for so many tokens at once, in float32.

    The largest moment is the gated product: gate and up in one array, then each alone and their product, beside the
    residual stream. Of the attention before it, the arena keeps about a dozen arrays of the model's width: residuals,
    normalized, queries with keys and values, rotated and rearranged, results.
    """
    return tokens * (5 * spec.intermediate_size + 12 * spec.hidden_size) * _FLOAT


def gpu_chunk(
    spec: TextSpec, available_bytes: int | None, token_bytes: int | None = None, chunks: Sequence[int] = GPU_CHUNKS
) -> int:
    """The largest of a GPU's chunks whose activations take an eighth of its free memory at most, else the smallest.

    token_bytes: activations of one token; None reckons with ONNX Runtime's in float32, of which a float16 decoder
    takes less. available_bytes: None is memory of unknown size. chunks: from the largest on; where the memory has a
    limit (--memory-limit), smaller ones as well.
    """
    token_bytes = prefill_activation_bytes(spec, 1) if token_bytes is None else token_bytes
    fitting = (chunk for chunk in chunks if token_bytes * chunk * _SHARE <= (available_bytes or 0))
    return next(fitting, chunks[-1])
