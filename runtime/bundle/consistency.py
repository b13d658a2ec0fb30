"""What is wrong with a manifest whose fields are all there and of their types: sizes out of bounds, parts at odds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .file_names import HEAD_TOKENS, PREFILL_GRAPH
from .json_file import short
from .specs import NO_TEXT, NO_TOKENS, MediaSpec, TextSpec, TokenSpec

if TYPE_CHECKING:
    from .manifest import Manifest

_MAX_SIZE = 1 << 24  # no dimension of a model of this family comes near
_MAX_BLOCK_PX = 1 << 10  # side of a visual token, and so the least side of a frame
_MAX_FRAME_PX = 1 << 26  # frames smaller than the minimum are enlarged to it
_MAX_CLIP_PX = 1 << 32
_LARGEST_ERROR = 10.0  # as a share: what is off by more is no approximation


def inconsistencies(manifest: Manifest) -> list[str]:
    """What is wrong, in words, by the names of the fields; empty for a sound manifest."""
    problems = []
    alone = manifest.kind == "encoder"
    if alone and (manifest.text, manifest.tokens) != (NO_TEXT, NO_TOKENS):
        problems.append("kind is encoder, but text and tokens describe a decoder")
    sizes: dict[str, Any] = {}
    for part in ("vision",) if alone else ("vision", "text"):
        sizes |= {f"{part}.{k}": v for k, v in dataclasses.asdict(getattr(manifest, part)).items()}
    sizes["processor.max_frames"] = manifest.processor.max_frames
    theta, rotary_dim = sizes.pop("text.rope_theta", 0), sizes.pop("text.rotary_dim", 0)
    head_rows = sizes.pop("text.head_rows", 0)
    if not 0 <= head_rows <= manifest.text.vocab_size or (head_rows > 0) != (HEAD_TOKENS in manifest.files):
        there = "is listed" if HEAD_TOKENS in manifest.files else "is not"
        problems.append(f"text.head_rows is {head_rows} of {manifest.text.vocab_size}, and {HEAD_TOKENS} {there}")
    known = 0 < theta < math.inf and 0 < rotary_dim <= manifest.text.head_dim and rotary_dim % 2 == 0
    if not known and (theta, rotary_dim) != (0, 0):
        problems.append(f"text.rope_theta {theta} and text.rotary_dim {rotary_dim} do not fit the heads")
    problems += [f"{name} is {size}, out of bounds" for name, size in sizes.items() if not 0 < size <= _MAX_SIZE]
    for kind in ("image", "video"):
        spec: MediaSpec = getattr(manifest.processor, kind)
        limits = {"min_pixels": (spec.min_pixels, _MAX_FRAME_PX), "max_pixels": (spec.max_pixels, _MAX_CLIP_PX)}
        limits["merge_size"] = (spec.merge_size, _MAX_BLOCK_PX // max(1, manifest.vision.patch_size))
        problems += [
            f"processor.{kind}.{name} is {value}, out of bounds"
            for name, (value, largest) in limits.items()
            if not 0 < value <= largest
        ]
    if not alone:
        problems += _decoder_problems(manifest.text, manifest.tokens, sound=not problems)
    if not all(s > 0 for s in manifest.processor.std):
        problems.append(f"processor.std is {list(manifest.processor.std)}, not above 0")
    if not manifest.processor.fps > 0:
        problems.append(f"processor.fps is {manifest.processor.fps}, not above 0")
    stated, listed = manifest.prefill_quantization, PREFILL_GRAPH in manifest.files
    if (stated.bits == 8) != listed:
        there = "is listed" if listed else "is not"
        problems.append(f"prefill_quantization.bits is {stated.bits}, but {PREFILL_GRAPH} {there}")
    if stated.calibration_tokens < 0:
        problems.append(f"prefill_quantization.calibration_tokens is {stated.calibration_tokens}, below 0")
    if not 0 <= stated.relative_error <= _LARGEST_ERROR:
        problems.append(f"prefill_quantization.relative_error is {short(stated.relative_error)}, out of bounds")
    return problems + manifest.generation.problems() + _quantization_problems(manifest.quantization)


def _decoder_problems(text: TextSpec, tokens: TokenSpec, sound: bool) -> list[str]:
    """sound: whether the sizes are known to be within bounds."""
    problems = []
    if sound and text.num_heads % text.num_kv_heads:
        problems.append(f"text.num_heads {text.num_heads} is not a multiple of num_kv_heads {text.num_kv_heads}")
    ids = {"tokens.image_id": tokens.image_id, "tokens.video_id": tokens.video_id}
    ids |= {f"tokens.eos_ids[{i}]": token for i, token in enumerate(tokens.eos_ids)}
    problems += [
        f"{name} is {token}, outside the vocabulary of {text.vocab_size}"
        for name, token in ids.items()
        if not 0 <= token < text.vocab_size
    ]
    if not tokens.eos_ids:
        problems.append("tokens.eos_ids is empty: generation would not stop")
    return problems


def _quantization_problems(facts: Mapping[str, Any]) -> list[str]:
    """What memory is reckoned from: bits and group size; the rest of the report is for people."""
    layers = facts.get("layers", {})
    if not isinstance(layers, Mapping) or not all(isinstance(layer, Mapping) for layer in layers.values()):
        return ["quantization.layers is not an object of objects"]
    bits = {f"layers.{name}.bits": layer.get("bits") for name, layer in layers.items()}
    bits |= {name: facts.get(name) for name in ("bits", "head_bits")}
    problems = [
        f"quantization.{name} is {short(value)}, not from 1 to 16"
        for name, value in bits.items()
        if not (value is None or (type(value) in (int, float) and 1 <= value <= 16))
        and (name, value) != ("bits", "auto")  # layers have their own then
    ]
    group = facts.get("group_size", -1)
    if type(group) is not int or not -1 <= group <= _MAX_SIZE:
        problems.append(f"quantization.group_size is {short(group)}, not a whole number from -1")
    return problems
