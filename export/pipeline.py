"""Checkpoint in, bundle out: the stages of an export, in order, each measured against the torch modules.

The manifest is written last, after every file it lists; `staging.py` sees to it that a bundle appears whole or not at
all.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import MediaProcessing, ModelConfig
from vl3edge.runtime.bundle import MANIFEST_NAME, hash_file
from vl3edge.runtime.manifest import (
    FileEntry,
    Manifest,
    MediaSpec,
    ProcessorSpec,
    TokenSpec,
    VisionSpec,
)

from .check import check_decoder
from .decoder import export_decoder, text_spec
from .embeddings import export_embeddings
from .staging import staged_folder
from .vision import export_projectors, export_vision

Progress = Callable[[str, int, int], None]
TARGETS = ("cpu",)


@dataclass(frozen=True)
class ExportOptions:
    """What to make of a checkpoint.

    precision: of weights that are not quantized; "fp16" halves the bundle and is computed in float32 on a CPU.
    """

    targets: tuple[str, ...] = ("cpu",)
    quantization: Literal["none"] = "none"
    precision: Literal["fp32", "fp16"] = "fp32"
    force: bool = False


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote: files with their sizes, and per stage the difference from the torch modules."""

    folder: Path
    files: dict[str, FileEntry]
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Float32Source:
    """A checkpoint's tensors as float32 arrays, one at a time."""

    checkpoint: Checkpoint

    def array(self, name: str) -> np.ndarray:
        return self.checkpoint.tensor(name, torch.float32).numpy()


def export_bundle(
    checkpoint: Checkpoint,
    target: Path,
    options: ExportOptions | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ExportReport:
    """Exports a checkpoint to the folder `target`.

    progress: called with (stage, steps done, steps in all).
    Raises ExportError (target exists, disk full, …) or CheckpointError (from reading).
    """
    options = options or ExportOptions()
    with staged_folder(target, options.force, _estimated_bytes(checkpoint, options.precision)) as folder:
        measured = _write_stages(checkpoint, folder, options, progress)
        report = _write_manifest(checkpoint, folder, options, measured)
    return ExportReport(target, report.files, measured)


def _write_stages(checkpoint: Checkpoint, folder: Path, options: ExportOptions, progress: Progress) -> dict[str, Any]:
    config, precision = checkpoint.config, options.precision
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(checkpoint.chat_template(), encoding="utf-8")
    measured: dict[str, Any] = {}

    progress("vision", 0, 1)
    measured["vision"] = export_vision(checkpoint, folder, precision)
    progress("vision", 1, 1)
    for name, difference in export_projectors(checkpoint, folder, precision).items():
        measured[name] = difference
    progress("projectors", 1, 1)

    table = export_embeddings(checkpoint, folder, precision)
    progress("embeddings", 1, 1)
    export_decoder(
        Float32Source(checkpoint),
        config.text,
        folder,
        precision,
        table if config.text.tie_word_embeddings else None,
        lambda done, total: progress("decoder", done, total),
    )
    measured["decoder"] = check_decoder(
        checkpoint, folder, lambda done, total: progress("checking the decoder", done, total)
    )
    return {stage: asdict(difference) for stage, difference in measured.items()}


def _write_manifest(
    checkpoint: Checkpoint, folder: Path, options: ExportOptions, measured: dict[str, Any]
) -> ExportReport:
    files = {
        path.relative_to(folder).as_posix(): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    manifest = make_manifest(checkpoint.config, options, measured, files, checkpoint.commit)
    text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
    return ExportReport(folder, files, measured)


def make_manifest(
    config: ModelConfig,
    options: ExportOptions,
    measured: dict[str, Any],
    files: dict[str, FileEntry],
    commit: str | None,
) -> Manifest:
    """The manifest of a bundle made from a checkpoint of this configuration."""
    vision, text = config.vision, config.text
    return Manifest(
        name=config.name,
        layout=config.layout,
        source=f"{config.name}@{commit}" if commit else config.name,
        precision=options.precision,
        targets=options.targets,
        vision=VisionSpec(
            vision.hidden_size,
            vision.num_layers,
            vision.num_heads,
            vision.intermediate_size,
            vision.patch_size,
        ),
        text=text_spec(text),
        processor=ProcessorSpec(
            rule=config.layout,
            image=_media_spec(config.image, vision.patch_size),
            video=_media_spec(config.video, vision.patch_size),
            mean=_three(config.image_mean),
            std=_three(config.image_std),
            fps=config.fps,
            max_frames=config.max_frames,
            token_compression=config.use_token_compression,
        ),
        tokens=TokenSpec(config.image_token_id, config.video_token_id, config.eos_token_ids),
        quantization={"method": options.quantization},
        measured=measured,
        versions={
            "vl3edge": version("vl3edge"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        files=files,
    )


def _media_spec(processing: MediaProcessing, patch_size: int) -> MediaSpec:
    """Budgets in pixels; the authors' layout counts merged tokens."""
    unit = 1 if processing.rule == "transformers" else (patch_size * processing.merge_size) ** 2
    return MediaSpec(processing.merge_size, processing.minimum * unit, processing.maximum * unit)


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _estimated_bytes(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes of all weights in the precision asked for, and a little more for graphs and rotary tables."""
    width = 2 if precision == "fp16" else 4
    elements = sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.names)
    return elements * width + (64 << 20)
