"""The manifest of a new bundle, from the checkpoint's configuration."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx
import onnxruntime
import torch

from vl3edge.models.config import MediaProcessing, ModelConfig
from vl3edge.runtime.bundle.manifest import FileEntry, Manifest
from vl3edge.runtime.bundle.specs import ExportSpec, MediaSpec, ProcessorSpec, TokenSpec, VisionSpec

from .graphs.decoder import text_spec
from .options import ExportOptions
from .vocabulary.head_vocabulary import WHOLE, HeadVocabulary


def list_files(
    manifest: Manifest, folder: Path, describe: Callable[[Path], FileEntry] = lambda path: FileEntry(0, "")
) -> Manifest:
    """The manifest, listing every file that is now in the folder."""
    files = {
        path.relative_to(folder).as_posix(): describe(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return replace(manifest, files=files)


def make_manifest(
    config: ModelConfig, options: ExportOptions, commit: str | None, vocabulary: HeadVocabulary = WHOLE
) -> Manifest:
    """The manifest of a bundle made from a checkpoint of this configuration, before anything is measured or written."""
    vision, text = config.vision, config.text
    manifest = Manifest(
        name=options.name or config.name,
        layout=config.layout,
        source=f"{config.name}@{commit}" if commit else config.name,
        precision=options.stored_precision,
        targets=options.targets,
        vision=VisionSpec(
            vision.hidden_size,
            vision.num_layers,
            vision.num_heads,
            vision.intermediate_size,
            vision.patch_size,
        ),
        text=text_spec(text, vocabulary.ids),
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
        generation=replace(config.generation, penalize_prompt=config.layout == "transformers"),
        vocabulary=vocabulary.spec,
        export=ExportSpec(options.preset, options.changed, options.activation_bits),
        quantization={},
        measured={},
        versions={
            "vl3edge": version("vl3edge"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    )
    return manifest if config.has_decoder else manifest.encoder_alone()


def _media_spec(processing: MediaProcessing, patch_size: int) -> MediaSpec:
    """Budgets in pixels; the authors' layout counts merged tokens."""
    unit = 1 if processing.rule == "transformers" else (patch_size * processing.merge_size) ** 2
    return MediaSpec(processing.merge_size, processing.minimum * unit, processing.maximum * unit)


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
