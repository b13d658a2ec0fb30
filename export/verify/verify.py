"""`verify`: compares a bundle with the checkpoint it was made from, stage by stage.

Each stage of the bundle gets the *reference's* input, so that the first stage that fails is the faulty one, not one
affected by an earlier fault. The reference is the checkpoint itself: torch modules in float32, which the tests hold
equal to transformers' for both layouts, one part in memory at a time, and an independent implementation of the
processors' rules (`reference.py`). Finally the whole path runs on its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.projector import Projector
from vl3edge.models.vision import VisionEncoder
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import Bundle, open_bundle
from vl3edge.runtime.bundle.file_names import fp16_file
from vl3edge.runtime.bundle.manifest import Manifest
from vl3edge.runtime.media.resize import PixelBudget, resize_rgb, target_size
from vl3edge.runtime.vision.difffp import keep_mask
from vl3edge.runtime.vision.engines import VisionEngines

from ..errors import ExportError
from ..manifest import make_manifest
from ..options import ExportOptions
from ..progress import Progress
from .clips import VerifyClip, verify_clips
from .decoder import verify_decoder, verify_whole_path
from .prompt import verify_embeddings, verify_prompts
from .report import FLOAT16, FLOAT32, Bound, StageResult, VerifyReport, compare
from .vision_fp16 import encoded, fp16_on_host, verify_fp16_vision

_OPTIONAL = ("text.rope_theta", "text.rotary_dim")  # 0 in older bundles, which do not record it


@dataclass(frozen=True)
class VerifyOptions:
    """What to verify with, and where.

    media: files, folders and patterns; empty takes a synthetic video and image. frames: of each video, at most. tokens:
        of each answer compared. backend, threads: as for `VideoLlama3.load`.
    """

    media: tuple[str, ...] = ()
    frames: int = 4
    tokens: int = 16
    backend: str = "cpu"
    threads: int = 0


def verify_bundle(
    folder: str | Path,
    checkpoint: Checkpoint,
    options: VerifyOptions | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> VerifyReport:
    """Compares every stage; progress is called with (stage, steps done, steps in all).

    Memory: the larger of the bundle's vision encoder or decoder, and one part of the checkpoint in float32 (the vision
    encoder, or one layer of the decoder).
    Raises BundleError, BackendError, MediaError, CheckpointError, ExportError if no comparison is possible, such as
    with a checkpoint of other sizes.
    """
    options = options or VerifyOptions()
    bundle = open_bundle(folder, decoder=False)
    backend = select_backend(options.backend, options.threads)
    clips = verify_clips(checkpoint, options.media, options.frames)
    stages = [_settings(bundle.manifest, checkpoint)]
    if _sizes(bundle.manifest) != _sizes(make_manifest(checkpoint.config, ExportOptions(), None)):
        raise ExportError(f"{folder} is not a bundle of {checkpoint.folder}: {stages[0].detail}")
    stages += [_pixels(bundle.manifest, clips), _pruning(bundle.manifest, clips)]
    progress("pixels", 1, 1)
    vision_stages, tokens = _vision(bundle, backend, checkpoint, clips)
    stages += vision_stages
    progress("vision encoder and projector", 1, 1)
    if checkpoint.config.has_decoder:
        stages += [verify_prompts(bundle, clips), verify_embeddings(bundle, checkpoint)]
        bound = _bound(bundle.manifest.precision, backend)
        answers, decoder_stages = verify_decoder(
            bundle, backend, checkpoint, clips, tokens, options.tokens, bound, progress
        )
        stages += decoder_stages
        vision_bound = _vision_bound(bundle.manifest, backend)
        stages += verify_whole_path(bundle, backend, clips, tokens, answers, options.tokens, vision_bound)
        progress("whole path", 1, 1)
    return VerifyReport(
        bundle=str(folder),
        checkpoint=str(checkpoint.folder),
        reference=f"{checkpoint.folder} in float32, by torch {torch.__version__}",
        backend=f"{backend.name} ({backend.vision_runtime})",
        media=tuple(clip.name for clip in clips),
        stages=tuple(stages),
    )


def _bound(precision: str, backend: Backend) -> Bound:
    """GPUs round products to TensorFloat-32 or float16, however weights are stored."""
    return FLOAT32 if precision == "fp32" and backend.name == "cpu" else FLOAT16


def _vision_bound(manifest: Manifest, backend: Backend) -> Bound:
    """For an 8-bit encoder, three times the error that its export measured on other frames."""
    bound, stated = _bound(manifest.precision, backend), manifest.vision_quantization
    if stated.bits == 16 or backend.name not in ("cpu", "cuda"):
        return bound
    return Bound(largest=0.5, mean=min(0.3, max(bound.mean, 3 * stated.relative_error)))


def _settings(manifest: Manifest, checkpoint: Checkpoint) -> StageResult:
    """What `bundle.json` says about the model, against the checkpoint's files and the adapters given."""
    expected = make_manifest(checkpoint.config, ExportOptions(), None)
    expected = dataclasses.replace(expected, adapters=checkpoint.adapters)
    ours, reference = (dict(_flat(_model_facts(each))) for each in (manifest, expected))
    wrong = [
        f"{name} is {ours[name]}, the checkpoint's is {value}"
        for name, value in reference.items()
        if ours[name] != value and not (name in _OPTIONAL and ours[name] == 0)
    ]
    compared = f"{len(reference)} values of bundle.json that describe the model"
    return StageResult("settings", compared, None, None, "equal", not wrong, "; ".join(wrong))


def _sizes(manifest: Manifest) -> tuple[int, ...]:
    """Those that determine input and output shapes: if they differ, no stage can take the reference's input."""
    vision, text = manifest.vision, manifest.text
    return vision.hidden_size, vision.patch_size, text.hidden_size, text.vocab_size, text.num_layers


def _model_facts(manifest: Manifest) -> dict[str, Any]:
    parts = {name: dataclasses.asdict(getattr(manifest, name)) for name in ("vision", "text", "processor", "tokens")}
    del parts["text"]["head_rows"]  # chosen at the export
    adapters = "; ".join(map(str, manifest.adapters)) or "none"
    return {"layout": manifest.layout, "adapters (--lora)": adapters, **parts}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _pixels(manifest: Manifest, clips: Sequence[VerifyClip]) -> StageResult:
    """The frames that the bundle's settings produce from the clips, which must be equal bit for bit."""
    processor, patch = manifest.processor, manifest.vision.patch_size
    problems, largest, total, count = [], 0, 0, 0
    for clip in clips:
        frames = clip.frames
        spec = processor.image if clip.kind == "image" else processor.video
        budget = PixelBudget(patch, spec.merge_size, spec.min_pixels, spec.max_pixels, processor.rule)
        size = target_size(frames.shape[1], frames.shape[2], budget, len(frames))
        wanted = clip.prepared.frames
        if size != wanted.shape[1:3]:
            problems.append(f"{clip.name} becomes {size[1]}×{size[0]} pixels, not {wanted.shape[2]}×{wanted.shape[1]}")
            continue
        resized = np.stack([resize_rgb(frame, size, processor.rule) for frame in frames])
        levels = np.abs(resized.astype(np.int16) - wanted)
        largest, total, count = max(largest, int(levels.max())), total + int(levels.sum()), count + levels.size
        if levels.any():
            problems.append(f"{clip.name}: {np.count_nonzero(levels)} of {levels.size} pixel values differ")
    mean = total / count if count else None
    compared = f"{sum(len(clip.prepared.frames) for clip in clips)} resized frames, in levels of 255"
    return StageResult("pixels", compared, float(largest), mean, "equal", not problems, "; ".join(problems))


def _pruning(manifest: Manifest, clips: Sequence[VerifyClip]) -> StageResult:
    """Which tokens DiffFP keeps of the reference's frames."""
    flipped = kept = total = 0
    for clip in clips:
        prepared = clip.prepared
        kept, total = kept + int(prepared.keep.sum()), total + prepared.keep.size
        keep = np.ones_like(prepared.keep)
        if clip.kind == "video" and manifest.processor.token_compression:
            spec = manifest.processor.video
            if any(side % (manifest.vision.patch_size * spec.merge_size) for side in prepared.frames.shape[1:3]):
                detail = f"tokens of {spec.merge_size}×{spec.merge_size} patches do not divide the reference's frames"
                return StageResult("pruning", "which tokens are kept", None, None, "equal", False, detail)
            keep = keep_mask(prepared.frames, manifest.vision.patch_size, spec.merge_size, manifest.processor.std)
        if keep.shape != prepared.keep.shape:
            detail = f"{clip.name} has {keep.shape[1]} tokens a frame, the reference {prepared.keep.shape[1]}"
            return StageResult("pruning", "which tokens are kept", None, None, "equal", False, detail)
        flipped += int(((keep != prepared.keep) & ~prepared.tied).sum())
    compared = f"which of {total} tokens are kept: {kept}"
    detail = f"{flipped} tokens are kept that the reference drops, or the reverse" if flipped else ""
    return StageResult("pruning", compared, float(flipped), flipped / total, "equal", not flipped, detail)


@torch.inference_mode()
def _vision(
    bundle: Bundle, backend: Backend, checkpoint: Checkpoint, clips: Sequence[VerifyClip]
) -> tuple[list[StageResult], list[np.ndarray]]:
    """The encoder's and the projectors' stages, and the reference's visual tokens float32 [K, hidden] of each clip.

    A vision encoder alone has no projectors and no tokens.
    """
    encoder = VisionEncoder.from_checkpoint(checkpoint)
    features = []
    for clip in clips:  # a frame at a time, for memory
        parts = [encoder(torch.from_numpy(frame[None])) for frame in clip.prepared.frames]
        features.append(torch.cat(parts).numpy())
    del encoder
    tokens = _reference_tokens(checkpoint, clips, features) if checkpoint.config.has_decoder else []
    checkpoint.release()

    vision = VisionEngines(bundle, backend)
    ours = [encoded(vision, clip.prepared.frames) for clip in clips]
    count = sum(len(clip.prepared.frames) for clip in clips)
    bound, encoder_bound = _bound(bundle.manifest.precision, backend), _vision_bound(bundle.manifest, backend)
    hint = "the vision encoder of the bundle is a different one, or runs incorrectly on this backend"
    stages = [compare("encoder", f"features of {count} frames", ours, features, encoder_bound, hint)]
    for kind in ("video", "image"):
        chosen = [parts for parts in zip(clips, features, tokens, strict=False) if parts[0].kind == kind]
        if chosen:
            projected = [vision.tokens(values, kind, clip.prepared.keep) for clip, values, _ in chosen]
            wanted = [part for _, _, part in chosen]
            compared = f"{sum(map(len, wanted))} visual tokens"
            hint = f"projector-{kind}.onnx is a different one, or runs incorrectly on this backend"
            stages.append(compare(f"projector, {kind}", compared, projected, wanted, bound, hint))
    if backend.device is None and fp16_file("vision") in bundle.manifest.files:
        other = fp16_on_host(backend)
        bounds = _vision_bound(bundle.manifest, other), _bound(bundle.manifest.precision, other)
        stages += verify_fp16_vision(VisionEngines(bundle, other), clips, features, tokens, bounds)
    return stages, tokens


def _reference_tokens(
    checkpoint: Checkpoint, clips: Sequence[VerifyClip], features: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The reference's projectors on its features."""
    tokens = []
    for clip, values in zip(clips, features, strict=True):
        merge = (checkpoint.config.image if clip.kind == "image" else checkpoint.config.video).merge_size
        keep = torch.from_numpy(np.flatnonzero(clip.prepared.keep))
        tokens.append(Projector.from_checkpoint(checkpoint, merge)(torch.from_numpy(values), keep).numpy())
    return tokens
