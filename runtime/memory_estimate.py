"""How much memory a model and a clip will take, estimated before anything is allocated.

Every term is a size that can be looked up: numbers of weights, widths of layers, tokens, pixels. What an engine makes
of a file was measured with ONNX Runtime 1.31 on a CPU (`benchmarks/memory.py` compares estimate and measurement):

- It copies every weight while it loads: products are packed for its kernels, float16 becomes float32. Nothing of the
  graphs' files stays mapped. Four bits stay four bits, and each group of weights has three float32 beside its codes:
  the scale, its packed copy, and a sum that stands for the zero point.
- While a weight is packed it exists twice; the largest is the output head. The encoder is loaded after the decoder.
- Activations live in one arena per graph that grows to the largest call and is never given back, so the graphs' terms
  add up though they run one after the other.
- The embedding table is a memory map: of a whole table (not shared with the head) only the rows used become resident.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .backends.onnxruntime import PATCHES_PER_CALL
from .bundle.bundle import Bundle
from .bundle.file_names import PREFILL_GRAPH
from .bundle.manifest import Manifest
from .bundle.specs import TextSpec
from .decode.kv_cache import bytes_per_row, capacity_for, rung_for, rungs
from .decode.prefill_chunk import PREFILL_CHUNK, prefill_activation_bytes
from .media.stretches import decoder_bytes, num_decoders

FLOAT = 4
_HALF = 2
CODE_BYTES = 62_000_000
"""Pages of the libraries' files that a first clip touches. Linux maps their neighbours, too, in pieces as large as
those in which its page cache happens to hold the file: 58 to 80 MB, from one copy of the same files to the next. They
are shared between processes, and given back when memory is short."""

BASE_BYTES = 43_000_000 + CODE_BYTES
"""Of Python, numpy, FFmpeg, ONNX Runtime and the others: the peak of a process that captions a tiny clip with the demo
bundle, less what that bundle accounts for. The first term is 38 to 43 MB on Python 3.10 to 3.13."""

TEXT_TOKENS = 320
"""Of a question and its answer, where they are not known yet."""

GROUP_BYTES = 3 * FLOAT
"""Beside the codes of one group of quantized weights: scale, packed scale, packed sum."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Host memory in bytes, by what it is for.

    base_bytes: the interpreter and its libraries. weights_bytes: all graphs as the engine holds them.
    loading_bytes: what loading takes beyond them for a moment.
    frames_bytes: decoded and resized frames held at once. vision_bytes: activations of the encoder and the projector.
    tokens_bytes: visual tokens, as the clip's and as the decoder's input. kv_bytes: the decoder's cache.
    prefill_bytes: the decoder's activations for one chunk of the prompt.
    """

    base_bytes: int
    weights_bytes: int
    loading_bytes: int
    frames_bytes: int
    vision_bytes: int
    tokens_bytes: int
    kv_bytes: int
    prefill_bytes: int

    @property
    def clip_bytes(self) -> int:
        """What a clip and its answer add to a loaded model."""
        return self.frames_bytes + self.vision_bytes + self.tokens_bytes + self.kv_bytes + self.prefill_bytes

    @property
    def loaded_bytes(self) -> int:
        """The peak while the model is loaded."""
        return self.base_bytes + self.weights_bytes + self.loading_bytes

    @property
    def total_bytes(self) -> int:
        """The peak of the whole process."""
        return max(self.loaded_bytes, self.base_bytes + self.weights_bytes + self.clip_bytes)


def estimate(
    model: Bundle | Manifest,
    *,
    frames: int,
    size: tuple[int, int],
    visual_tokens: int | None = None,
    context_tokens: int | None = None,
    batch: int = 1,
    kind: str = "video",
    source_size: tuple[int, int] | None = None,
    patches_per_call: int = PATCHES_PER_CALL,
    captures: bool = False,
    prefill_chunk: int = PREFILL_CHUNK,
) -> MemoryEstimate:
    """The memory of a process that loads `model`, encodes a clip and answers about it, on a CPU.

    frames, size: of the clip as it is encoded: their number, (height, width) in pixels after resizing.
    visual_tokens: that are kept; None is all of them. context_tokens: prompt and answer; None is the visual tokens,
        64 of text and 256 of an answer. batch: sequences decoded together, of context_tokens each.
    kind: "image" or "video", which choose the merge size. source_size: of the frames before resizing; None is `size`.
    patches_per_call: at most so many go through the encoder at once, but always one frame.
    captures: kv_bytes is of a GPU whose steps are CUDA graphs: a cache in float16 for one of a few capacities, and the
        smaller of them, which are kept for the next clips.
    prefill_chunk: tokens of a prompt that go through the decoder at once, at most.
    Raises ContextLengthError if context_tokens are beyond the model's.
    """
    manifest = model.manifest if isinstance(model, Bundle) else model
    text, vision = manifest.text, manifest.vision
    merge = manifest.processor.image.merge_size if kind == "image" else manifest.processor.video.merge_size
    patches = (size[0] // vision.patch_size) * (size[1] // vision.patch_size)
    at_once = min(frames, max(1, patches_per_call // patches))
    if visual_tokens is None:
        visual_tokens = frames * patches // merge**2
    if context_tokens is None:
        context_tokens = min(visual_tokens + TEXT_TOKENS, text.max_position_embeddings)
    prompt_bytes = batch * context_tokens * text.hidden_size * FLOAT
    return MemoryEstimate(
        base_bytes=BASE_BYTES,
        weights_bytes=weights_bytes(manifest),
        loading_bytes=loading_bytes(manifest),
        frames_bytes=frames_bytes(at_once, size, source_size or size),
        vision_bytes=vision_bytes(manifest, at_once * patches, merge),
        tokens_bytes=2 * visual_tokens * text.hidden_size * FLOAT + prompt_bytes,  # a clip joins its frames' tokens
        kv_bytes=batch * _kv_bytes(text, context_tokens, captures),
        prefill_bytes=prefill_bytes(manifest, min(context_tokens, prefill_chunk), batch),
    )


def weights_bytes(manifest: Manifest) -> int:
    """All weights as the engine holds them: vision encoder, one projector, decoder."""
    text = manifest.text
    rotary = text.max_position_embeddings * text.head_dim * FLOAT
    layers = sum(_linear_bytes(_layer_weights(manifest), *_quantized(manifest, i)) for i in range(text.num_layers))
    if PREFILL_GRAPH in manifest.files:  # a byte each; of the last layer, only what makes keys and values
        layers += (text.num_layers - 1) * _layer_weights(manifest) + _qkv_weights(manifest)
        rotary *= 2
    return _encoder_bytes(manifest) + rotary + layers + _head_bytes(manifest)


def gpu_weights_bytes(manifest: Manifest) -> int:
    """All weights as a GPU holds them: in float16, or as codes with a scale for each group."""
    text = manifest.text
    held = text.max_position_embeddings * text.head_dim + _encoder_weights(manifest)
    return held * _HALF + gpu_step_bytes(manifest, text.num_logits)


def gpu_step_bytes(manifest: Manifest, head_rows: int) -> int:
    """Weights that a step of the decoder reads on a GPU if its output head has so many rows."""
    text = manifest.text
    per_layer = [(_layer_weights(manifest), *_quantized(manifest, i)) for i in range(text.num_layers)]
    linears = [*per_layer, (head_rows * text.hidden_size, *_quantized(manifest, None))]
    return sum(_linear_bytes(*linear, _HALF, _HALF) for linear in linears)


def loading_bytes(manifest: Manifest) -> int:
    """What loading takes beyond the weights: the head a second time, but before the encoder is there."""
    return max(0, _head_bytes(manifest) - _encoder_bytes(manifest))


def _kv_bytes(text: TextSpec, tokens: int, captures: bool) -> int:
    """Of the cache for one sequence."""
    if not captures:
        return bytes_per_row(text, capacity_for(text, tokens))
    largest = rung_for(text, tokens)
    return sum(bytes_per_row(text, rung, _HALF) for rung in rungs(text) if rung <= largest)


def _encoder_bytes(manifest: Manifest) -> int:
    """The vision encoder and one projector."""
    saved = _encoder_layers(manifest) * (FLOAT - 1) if manifest.vision_quantization.bits == 8 else 0
    return _encoder_weights(manifest) * FLOAT - saved


def _encoder_weights(manifest: Manifest) -> int:
    """Of the vision encoder and one projector."""
    vision, text = manifest.vision, manifest.text
    patches = 3 * vision.patch_size**2 * vision.hidden_size
    projector = vision.hidden_size * text.hidden_size + text.hidden_size**2
    return _encoder_layers(manifest) + patches + projector


def _encoder_layers(manifest: Manifest) -> int:
    """Weights of the encoder's layers."""
    vision = manifest.vision
    return vision.num_layers * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size)


def vision_bytes(manifest: Manifest, patches: int, merge: int) -> int:
    """Activations of the vision path for so many patches at once.

    The encoder's largest moment is GELU: its input, its output and a scratch of the same size, beside the residual
    stream; of the attention before it, the arena keeps what was normalized, query, key, value and result. Then come the
    features, and the projector's: merged, its two layers. The features of the call before are held as well.
    """
    vision, text = manifest.vision, manifest.text
    per_patch = 3 * vision.intermediate_size + 5 * vision.hidden_size + 2 * vision.hidden_size
    per_token = vision.hidden_size + 3 * text.hidden_size
    return (patches * per_patch + patches // merge**2 * per_token) * FLOAT


def prefill_bytes(manifest: Manifest, tokens: int, batch: int = 1) -> int:
    """Activations of the decoder for so many tokens at once, and its logits."""
    return prefill_activation_bytes(manifest.text, tokens) + batch * manifest.text.vocab_size * FLOAT


def frames_bytes(at_once: int, size: tuple[int, int], source: tuple[int, int]) -> int:
    """Resized frames: the chunk encoded, the one read meanwhile, in pieces and joined; frames inside the decoder."""
    resized = 3 * at_once * 3 * size[0] * size[1]
    # FFmpeg holds what frames refer to, and one per thread, at 1.5 bytes a pixel; then one as RGB, twice.
    decoders = num_decoders(*source)
    decoded = decoders * decoder_bytes(*source) if decoders > 1 else source[0] * source[1] * 8 * 3 // 2
    return resized + decoded + source[0] * source[1] * 2 * 3


def _layer_weights(manifest: Manifest) -> int:
    """Weights of the linear layers of one decoder layer."""
    text = manifest.text
    output = text.num_heads * text.head_dim * text.hidden_size
    return _qkv_weights(manifest) + output + 3 * text.hidden_size * text.intermediate_size


def _qkv_weights(manifest: Manifest) -> int:
    """Weights that make queries, keys and values in one decoder layer."""
    text = manifest.text
    return text.hidden_size * text.head_dim * (text.num_heads + 2 * text.num_kv_heads)


def _head_bytes(manifest: Manifest) -> int:
    text = manifest.text
    return _linear_bytes(text.num_logits * text.hidden_size, *_quantized(manifest, None))


def _quantized(manifest: Manifest, layer: int | None) -> tuple[float | None, int]:
    """(bits, group size) of a decoder layer, or of the head with None; bits are None where weights are whole."""
    facts: dict[str, Any] = manifest.quantization  # its values were checked with the manifest
    if facts.get("method", "none") == "none":
        return None, 1
    group = facts.get("group_size", -1)
    group = manifest.text.hidden_size if group < 1 else group
    if layer is None:
        return facts.get("head_bits"), group
    bits = facts.get("layers", {}).get(f"layers.{layer}", {}).get("bits", facts.get("bits"))
    return (4 if bits is None else bits), group


def _linear_bytes(
    weights: int, bits: float | None, group: int, itemsize: int = FLOAT, group_bytes: int = GROUP_BYTES
) -> int:
    """itemsize: of a weight that is not quantized. group_bytes: beside the codes of a group."""
    if bits is None:
        return weights * itemsize
    return int(weights * bits / 8) + weights // group * group_bytes
