"""How much arithmetic and how many bytes the stages of a model need at least: the floors `bench` compares with."""

from __future__ import annotations

from .bundle.bundle import Bundle
from .bundle.manifest import Manifest, TextSpec
from .bundle.onnx_external import external_files
from .decode.kv_cache import bytes_per_row


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
    return text.num_layers * (2.0 * tokens * weights + attention) + 2.0 * text.hidden_size * text.vocab_size


def step_bytes(bundle: Bundle, context: int) -> int:
    """Bytes that one step of the decoder has to read: every weight, and keys and values of the tokens before."""
    text = bundle.manifest.text
    weights = bundle.path("decoder.onnx.data").stat().st_size - rotary_bytes(text)
    if shares_head(bundle):
        weights += bundle.path("embeddings.safetensors").stat().st_size
    return weights + bytes_per_row(text, context)


def rotary_bytes(text: TextSpec) -> int:
    """Tables of cosines and sines, of which a step reads one row."""
    return text.max_position_embeddings * text.head_dim * 4


def shares_head(bundle: Bundle) -> bool:
    """Whether the output head is read from the embeddings' file: tied weights are stored once."""
    return "embeddings.safetensors" in external_files(bundle.path("decoder.onnx"))
