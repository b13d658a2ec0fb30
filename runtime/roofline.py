"""The floors under every stage: no arrangement of the work can go below its bytes over the memory that this machine can
read in a second, nor below its arithmetic over the products that it can make; both measured, not quoted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .bundle.bundle import Bundle
from .bundle.manifest import Manifest
from .bundle.onnx_external import external_files
from .bundle.specs import TextSpec
from .decode.kv_cache import bytes_per_row

_BYTES = 1 << 28  # more than any cache holds
_SIDE = 1024


def read_bandwidth(threads: int, repeats: int = 5) -> float:
    """Bytes a second that `threads` threads read from memory together: the best of several passes."""
    data = np.ones(_BYTES // 4, np.float32)
    parts = np.array_split(data, threads)
    with ThreadPoolExecutor(threads) as pool:
        best = min(_seconds(lambda: list(pool.map(np.max, parts))) for _ in range(repeats))
    return data.nbytes / best


def multiply_rate(repeats: int = 5) -> float:
    """Floating-point operations a second of a float32 matrix product by numpy: the best of several.

    numpy's library uses the threads it likes, as a rule one per core.
    """
    a = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)
    best = min(_seconds(lambda: a @ a) for _ in range(repeats))
    return 2 * _SIDE**3 / best


def vision_flops(manifest: Manifest, patches: int) -> float:
    """Floating-point operations of the encoder on one frame of so many patches."""
    vision = manifest.vision
    width, inner = vision.hidden_size, vision.intermediate_size
    layer = 2 * patches * (4 * width**2 + 2 * width * inner) + 4 * patches**2 * width
    return float(vision.num_layers * layer + 2 * patches * 3 * vision.patch_size**2 * width)


def projector_flops(manifest: Manifest, tokens: int) -> float:
    """Of the projector, on so many tokens that are kept."""
    width, hidden = manifest.vision.hidden_size, manifest.text.hidden_size
    return 2.0 * tokens * (width * hidden + hidden * hidden)


def prefill_flops(manifest: Manifest, tokens: int) -> float:
    """Of the decoder, on a prompt of so many tokens; the head runs for the last one alone."""
    text = manifest.text
    heads = text.num_heads * text.head_dim
    weights = text.hidden_size * (2 * heads + 2 * text.num_kv_heads * text.head_dim + 3 * text.intermediate_size)
    attention = 4 * heads * tokens * (tokens + 1) / 2
    return text.num_layers * (2.0 * tokens * weights + attention) + 2.0 * text.hidden_size * text.num_logits


def step_bytes(bundle: Bundle, context: int) -> int:
    """Bytes that one step of the decoder has to read: every weight, and keys and values of the tokens before."""
    text = bundle.manifest.text
    weights = bundle.path("decoder.onnx.data").stat().st_size - rotary_bytes(text)
    if shares_head(bundle):
        stored = bundle.path("embeddings.safetensors").stat().st_size  # of a head with fewer rows, a copy beside them
        weights += stored * text.num_logits // (text.vocab_size + text.head_rows)
    return weights + bytes_per_row(text, context)


def rotary_bytes(text: TextSpec) -> int:
    """Tables of cosines and sines, of which a step reads one row."""
    return text.max_position_embeddings * text.head_dim * 4


def shares_head(bundle: Bundle) -> bool:
    """Whether the output head is read from the embeddings' file: tied weights are stored once."""
    return "embeddings.safetensors" in external_files(bundle.path("decoder.onnx"))


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
