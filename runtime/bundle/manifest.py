"""The bundle's manifest: what the model is, how it was made, and every file with its size and sha256.

`bundle.json` is `Manifest` written as JSON. Reading checks every field's presence, type and bounds and collects all
problems, so that one message names them all. Sizes are bounded before anything is allocated from them.

The manifest vouches for the other files, and for itself by its `sha256`, over all its other content in one canonical
form: that tells an edit, or a damaged copy, from what was exported. It is no signature: who can change the file can
change the hash. Manifests of before it was written have none and are read all the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .consistency import inconsistencies
from .file_names import ENCODER_GRAPH, VISION_GRAPHS
from .json_file import read_json
from .specs import (
    GREEDY,
    NO_PREFILL_GRAPH,
    NO_TEXT,
    NO_TOKENS,
    NO_VOCABULARY,
    UNKNOWN_EXPORT,
    WHOLE_VISION,
    AdapterSpec,
    ExportSpec,
    GenerationSpec,
    PrefillQuantization,
    ProcessorSpec,
    TextSpec,
    TokenSpec,
    VisionQuantization,
    VisionSpec,
    VocabularySpec,
)

FORMAT = "vl3edge-bundle"
FORMAT_VERSION = 1
SEAL = "sha256"

SlimTarget = Literal["cpu", "cuda", "rtx", "jetson"]
Json = dict[str, Any]


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
    vision_quantization: VisionQuantization = WHOLE_VISION
    prefill_quantization: PrefillQuantization = NO_PREFILL_GRAPH
    generation: GenerationSpec = GREEDY
    vocabulary: VocabularySpec = NO_VOCABULARY
    export: ExportSpec = UNKNOWN_EXPORT
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
            prefill_quantization=NO_PREFILL_GRAPH,
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
        problems += misread or inconsistencies(manifest)
        return (None, problems) if problems else (manifest, [])


def sealed(data: Mapping[str, Any]) -> Json:
    """A manifest's JSON values with their sha256, over all of them but an earlier sha256, written canonically."""
    content = {key: value for key, value in data.items() if key != SEAL}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return {**content, SEAL: hashlib.sha256(canonical.encode()).hexdigest()}
