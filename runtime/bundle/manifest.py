"""The bundle's manifest: what the model is, how it was made, and every file with its size and sha256.

`bundle.json` is this module's dataclasses written as JSON. Reading checks every field's presence, type and bounds and
collects all problems, so that one message names them all. Sizes are bounded before anything is allocated from them.

The manifest vouches for the other files, and for itself by its `sha256`, over all its other content in one canonical
form: that tells an edit, or a damaged copy, from what was exported. It is no signature: who can change the file can
change the hash. Manifests of before it was written have none and are read all the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .json_file import read_json, short

FORMAT = "vl3edge-bundle"
FORMAT_VERSION = 1
SEAL = "sha256"
SPECIAL_TOKENS = "tokenizer_config.json"
"""Beside tokenizer.json; of a bundle, it holds the names of the special tokens and nothing else."""
DECODER_GRAPH, FP16_DECODER_GRAPH, PREFILL_GRAPH = "decoder.onnx", "decoder-fp16.onnx", "decoder-prefill.onnx"
"""The decoder's graphs in a bundle: for CPUs; for NVIDIA GPUs, whose attention takes float16; for prompts on CPUs."""

VISION_GRAPHS = ("vision", "projector-image", "projector-video")
"""The graphs of the vision path, without ".onnx"."""
HEAD_TOKENS = "head-tokens.npy"
"""The tokens that the rows of the output head stand for, where it has not the whole vocabulary."""

ENCODER_GRAPH = "vision"
"""The one of them that a bundle of the vision encoder alone has."""

SlimTarget = Literal["cpu", "cuda", "rtx", "jetson"]

Json = dict[str, Any]
_MAX_SIZE = 1 << 24  # no dimension of a model of this family comes near
_MAX_BLOCK_PX = 1 << 10  # side of a visual token, and so the least side of a frame
_MAX_FRAME_PX = 1 << 26  # frames smaller than the minimum are enlarged to it
_MAX_CLIP_PX = 1 << 32
_LARGEST_ERROR = 10.0  # as a share: what is off by more is no approximation


@dataclass(frozen=True)
class MediaSpec:
    """Pixel budget of images or of videos; sides become multiples of patch_size × merge_size pixels.

    min_pixels, max_pixels: of one image, or of all frames of a video together (`ProcessorSpec.rule` says how they are
    shared out).
    """

    merge_size: int
    min_pixels: int
    max_pixels: int


@dataclass(frozen=True)
class ProcessorSpec:
    """How media become pixels. mean and std are per RGB channel, on pixels in [0, 1]."""

    rule: Literal["transformers", "authors"]
    image: MediaSpec
    video: MediaSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fps: float
    max_frames: int
    token_compression: bool


@dataclass(frozen=True)
class VisionSpec:
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    patch_size: int


@dataclass(frozen=True)
class TextSpec:
    """Sizes of the decoder graph.

    head_dim: of the KV cache; the model's own is rotary_dim, and what is more is zeros at the end of either half.
    rope_theta: base of the rotary frequencies. Both are 0 in bundles of before they were written.
    head_rows: tokens that the output head can say (`head_tokens.py`); 0 is all of the vocabulary.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float = 0.0
    rotary_dim: int = 0
    head_rows: int = 0

    @property
    def num_logits(self) -> int:
        """Rows of the output head."""
        return self.head_rows or self.vocab_size


NO_TEXT = TextSpec(0, 0, 0, 0, 0, 0, 0, 0)
"""Of a bundle that holds the vision encoder alone: with these sizes there is nothing to reckon with."""


@dataclass(frozen=True)
class TokenSpec:
    """Token ids. In the authors' layout image_id and video_id are one and the same."""

    image_id: int
    video_id: int
    eos_ids: tuple[int, ...]


@dataclass(frozen=True)
class GenerationSpec:
    """How the checkpoint wants tokens to be chosen: what a call takes for what its GenerationConfig leaves open.

    do_sample: False is greedy; temperature, top_p and top_k then count only for calls that set a temperature.
    max_new_tokens: of an answer, max_length: of the prompt and the answer; 0 says nothing, and the former goes first.
    penalize_prompt: whether repetition_penalty counts the prompt's tokens, placeholders of media included. So it is
        where transformers is given ids (its own layout); the authors' release gives it embeddings, and then it counts
        those of the answer alone.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    penalize_prompt: bool = True
    max_new_tokens: int = 0
    max_length: int = 0

    def problems(self) -> list[str]:
        """Describes every value that is out of bounds; NaN and infinity are already refused when JSON is read."""
        right = {
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "repetition_penalty": self.repetition_penalty > 0,
            "max_new_tokens": self.max_new_tokens >= 0,
            "max_length": self.max_length >= 0,
        }
        return [f"generation.{name} is {getattr(self, name)}, out of bounds" for name, ok in right.items() if not ok]


NO_TOKENS = TokenSpec(0, 0, ())
"""Of a bundle that holds the vision encoder alone."""

GREEDY = GenerationSpec()
"""What a checkpoint that asks for nothing gets, and bundles of before this was written."""


@dataclass(frozen=True)
class VisionQuantization:
    """How the products of the vision encoder are computed: 8 bits for weights and activations, or 16 for float.

    source: what it was calibrated on, in words. relative_error: root mean square difference of the features of
    held-out frames from the float32 encoder's, over their root mean square.
    """

    bits: Literal[8, 16] = 16
    source: str = ""
    calibration_frames: int = 0
    relative_error: float = 0.0


@dataclass(frozen=True)
class PrefillQuantization:
    """How a CPU computes the decoder's products while it reads a prompt: in 8 bits, by a graph of its own, or not.

    bits: 8, or 16 where there is no such graph and prompts are computed as steps are. source: what it was calibrated
    on, in words. relative_error: root mean square difference of the keys, or the values, of held-out prompts from the
    float32 decoder's, over their spread from token to token, in the layer where it is largest.
    """

    bits: Literal[8, 16] = 16
    source: str = ""
    calibration_tokens: int = 0
    relative_error: float = 0.0


@dataclass(frozen=True)
class VocabularySpec:
    """Where `TextSpec.head_rows` are taken from, and what that loses; empty where the head has the whole vocabulary.

    source: in words. held_out_tokens: of every other line of the texts. held_out_lost: as many of them are not in a
    head made from the other lines; held_out_spelled: tokens of that head that spell these, at least.
    """

    source: str = ""
    held_out_tokens: int = 0
    held_out_lost: int = 0
    held_out_spelled: int = 0


NO_VOCABULARY = VocabularySpec()
"""Of a head that has not been cut."""


@dataclass(frozen=True)
class ExportSpec:
    """How a bundle was asked for, where its other facts do not tell.

    preset: of `vl3edge export`; "" for none, as in bundles from before. changed: settings that were given instead of
    the preset's, in words, such as "head_bits 8". activation_bits: 8 if a CPU rounds activations before the decoder's
    quantized products.
    """

    preset: Literal["", "exact", "balanced", "small"] = ""
    changed: tuple[str, ...] = ()
    activation_bits: Literal[8, 32] = 8


@dataclass(frozen=True)
class AdapterSpec:
    """A LoRA adapter that was merged into the weights before anything else.

    name: of its folder, or of its repository with the commit. sha256, config_sha256: of adapter_model.safetensors and
    adapter_config.json. weight: what its changes were multiplied by.
    """

    name: str
    sha256: str
    config_sha256: str
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.name}, weight {self.weight:g}, sha256 {self.sha256[:16]}"


@dataclass(frozen=True)
class FileEntry:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything `bundle.json` says.

    kind: "encoder" for the vision encoder alone, whose text and tokens are NO_TEXT and NO_TOKENS.
    measured: figures of the export, per stage: largest and mean difference from the torch modules.
    quantization: of the decoder: method and settings, with the measured error; {"method": "none"} when the weights are
        whole.
    adapters: merged into the checkpoint's weights, in this order.
    """

    name: str
    layout: Literal["transformers", "authors"]
    source: str
    precision: Literal["fp32", "fp16"]
    targets: tuple[str, ...]
    vision: VisionSpec
    text: TextSpec
    processor: ProcessorSpec
    tokens: TokenSpec
    quantization: Json
    measured: Json
    versions: dict[str, str]
    files: dict[str, FileEntry] = field(default_factory=dict)
    vision_quantization: VisionQuantization = VisionQuantization()
    prefill_quantization: PrefillQuantization = PrefillQuantization()
    generation: GenerationSpec = GREEDY
    vocabulary: VocabularySpec = NO_VOCABULARY
    export: ExportSpec = ExportSpec()
    slim: Literal["", "cpu", "cuda", "rtx", "jetson"] = ""
    kind: Literal["model", "encoder"] = "model"
    adapters: tuple[AdapterSpec, ...] = ()

    @property
    def vision_graphs(self) -> tuple[str, ...]:
        """The graphs of the vision path that it has, without ".onnx"."""
        return (ENCODER_GRAPH,) if self.kind == "encoder" else VISION_GRAPHS

    def encoder_alone(self) -> Manifest:
        """As of a bundle of the same vision encoder alone, but for its files."""
        return dataclasses.replace(
            self,
            kind="encoder",
            text=NO_TEXT,
            tokens=NO_TOKENS,
            generation=GREEDY,
            quantization={"method": "none"},
            prefill_quantization=PrefillQuantization(),
        )

    def to_json(self) -> Json:
        """The manifest as JSON values, with the format's name and version first and its own sha256 last."""
        values: Json = json.loads(json.dumps(dataclasses.asdict(self)))
        return sealed({"format": FORMAT, "format_version": FORMAT_VERSION, **values})

    def to_text(self) -> str:
        """What stands in the file."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, data: Any) -> tuple[Manifest | None, list[str]]:
        """Reads what `to_json` wrote; returns (manifest, []) or (None, every problem found)."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            return None, [f"it is not a {FORMAT} manifest"]
        version = data.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            newer = type(version) is int and version > FORMAT_VERSION
            advice = "upgrade vl3edge" if newer else "export the bundle again"
            return None, [f"format_version is {version!r}, this vl3edge reads {FORMAT_VERSION}: {advice}"]
        problems: list[str] = []
        if SEAL in data and data[SEAL] != sealed(data)[SEAL]:
            problems.append("it was changed after the export (its sha256 does not match)")
        body = {key: value for key, value in data.items() if key not in ("format", "format_version", SEAL)}
        misread: list[str] = []
        manifest = read_json(cls, body, "", misread)
        problems += misread or _inconsistencies(manifest)
        return (None, problems) if problems else (manifest, [])


def fp16_file(stem: str) -> str:
    """The file of a graph of the vision path that computes in float16, for NVIDIA GPUs."""
    return f"{stem}-fp16.onnx"


def sealed(data: Mapping[str, Any]) -> Json:
    """A manifest's JSON values with their sha256, over all of them but an earlier sha256, written canonically."""
    content = {key: value for key, value in data.items() if key != SEAL}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return {**content, SEAL: hashlib.sha256(canonical.encode()).hexdigest()}


def _inconsistencies(manifest: Manifest) -> list[str]:
    """What well-typed values can still get wrong."""
    problems = []
    alone = manifest.kind == "encoder"
    if alone and (manifest.text, manifest.tokens) != (NO_TEXT, NO_TOKENS):
        problems.append("kind is encoder, but text and tokens describe a decoder")
    sizes: Json = {}
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
