"""The bundle's manifest: what the model is, how it was made, and every file with its size and sha256.

`bundle.json` is this module's dataclasses written as JSON. Reading checks every field's presence, type and bounds and
collects all problems, so that one message names them all. Sizes are bounded before anything is allocated from them.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FORMAT = "vl3edge-bundle"
FORMAT_VERSION = 1

Json = dict[str, Any]
_MAX_SIZE = 1 << 24  # no dimension of a model of this family comes near


@dataclass(frozen=True)
class MediaSpec:
    """Pixel budget of images or of videos; sides become multiples of patch_size × merge_size pixels.

    min_pixels, max_pixels: of one image, or of all frames of a video together (`ProcessorSpec.rule` says how they
    are shared out).
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
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int


@dataclass(frozen=True)
class TokenSpec:
    """Token ids. In the authors' layout image_id and video_id are one and the same."""

    image_id: int
    video_id: int
    eos_ids: tuple[int, ...]


@dataclass(frozen=True)
class FileEntry:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything `bundle.json` says.

    measured: figures of the export, per stage: largest and mean difference from the torch modules.
    quantization: method and settings, with the measured error; {"method": "none"} when the weights are whole.
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

    def to_json(self) -> Json:
        """The manifest as JSON values, with the format's name and version first."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> tuple[Manifest | None, list[str]]:
        """Reads what `to_json` wrote; returns (manifest, []) or (None, every problem found)."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            return None, [f"it is not a {FORMAT} manifest"]
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            advice = "upgrade vl3edge" if newer else "export the bundle again"
            return None, [f"format_version is {version!r}, this vl3edge reads {FORMAT_VERSION}: {advice}"]
        problems: list[str] = []
        body = {key: value for key, value in data.items() if key not in ("format", "format_version")}
        manifest = read_json(cls, body, "", problems)
        if not problems:
            problems += _inconsistencies(manifest)
        return (None, problems) if problems else (manifest, [])


def read_json(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """value as kind (a dataclass, a tuple, a dict or a plain type); what is wrong goes to problems."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where, problems)
    if origin is Literal:
        if value not in arguments:
            problems.append(f"{where} is {value!r}, not one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        many = len(arguments) == 2 and arguments[1] is Ellipsis
        if not isinstance(value, list) or not (many or len(value) == len(arguments)):
            problems.append(f"{where} is not a list{'' if many else f' of {len(arguments)}'}")
            return ()
        kinds = [arguments[0]] * len(value) if many else list(arguments)
        return tuple(
            read_json(k, item, f"{where}[{i}]", problems) for i, (k, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin in (dict, types.GenericAlias):
        if not isinstance(value, Mapping):
            problems.append(f"{where} is not an object")
            return {}
        return {key: read_json(arguments[1], item, f"{where}.{key}", problems) for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        problems.append(f"{where} is {value!r}, not {kind.__name__}")
    return value


def _read_dataclass(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{where or 'the manifest'} is not an object")
        return None
    prefix = f"{where}." if where else ""
    hints = typing.get_type_hints(kind)
    missing = [name for name in hints if name not in value]
    problems += [f"{prefix}{name} is missing" for name in missing]
    found = {name: read_json(hints[name], value[name], prefix + name, problems) for name in hints if name in value}
    return None if missing else kind(**found)


def _inconsistencies(manifest: Manifest) -> list[str]:
    """What well-typed values can still get wrong."""
    problems = []
    sizes: Json = {}
    for part in ("vision", "text"):
        sizes |= {f"{part}.{k}": v for k, v in dataclasses.asdict(getattr(manifest, part)).items()}
    sizes |= {f"processor.{m}.merge_size": getattr(manifest.processor, m).merge_size for m in ("image", "video")}
    sizes["processor.max_frames"] = manifest.processor.max_frames
    problems += [f"{name} is {size}, out of bounds" for name, size in sizes.items() if not 0 < size <= _MAX_SIZE]
    text, tokens = manifest.text, manifest.tokens
    if not problems and text.num_heads % text.num_kv_heads:
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
    if not all(s > 0 for s in manifest.processor.std):
        problems.append(f"processor.std is {list(manifest.processor.std)}, not above 0")
    if not manifest.processor.fps > 0:
        problems.append(f"processor.fps is {manifest.processor.fps}, not above 0")
    return problems
