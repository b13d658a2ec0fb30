"""Observes the inputs of the vision encoder's products, in the float32 encoder on a few frames.

Frames come from the user's media through the runtime's own readers and resizing, or from the synthetic scenes that also
calibrate the decoder. Some are held out, with their features, to measure a quantized encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.vision import VisionEncoder
from vl3edge.models.weight_map import Linear
from vl3edge.quant.calibration import calibration_items
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.manifest import Manifest
from vl3edge.runtime.bundle.specs import MediaSpec
from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.media.contents import media_kind
from vl3edge.runtime.media.discovery import expand
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.resize import PixelBudget, resize_rgb, target_size
from vl3edge.runtime.media.video import open_video

from .smoothquant import Smoothing, find_smoothquant, watch_inputs

_log = logging.getLogger(__name__)

_FRAMES = 32
_FRAMES_PER_CLIP = 2  # frames a clip: many clips say more than many frames; long clips are cut into pieces
_PATCHES_PER_FRAME = 1024
_HELD_OUT_EVERY = 8


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Frames uint8 [F, H, W, 3] and their features float32 [F, h, w, C] in the float32 encoder."""

    frames: np.ndarray
    features: np.ndarray


@dataclass(frozen=True, eq=False)
class VisionCalibration:
    """The inputs of the encoder's products, and how they are smoothed.

    largest: by the name of a product ("layers.0.mlp.fc1"), the largest absolute value of each input channel, float32
        [in], before smoothing. num_frames: frames observed, without the held-out ones.
    """

    largest: dict[str, np.ndarray]
    smoothing: Smoothing
    num_frames: int
    held_out: tuple[HeldOut, ...]

    @property
    def products(self) -> list[str]:
        """Names of the products that are computed in 8 bits: those of the layers."""
        return [name for name in self.largest if name.startswith("layers.")]


def calibrate_vision(
    checkpoint: Checkpoint,
    clips: Sequence[np.ndarray],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VisionCalibration:
    """Runs the float32 encoder on clips, each uint8 [F, H, W, 3]; the second of every eight is held out.

    progress: called with (clips done, in all).
    """
    encoder = VisionEncoder.from_checkpoint(checkpoint)
    largest: dict[str, np.ndarray] = {}
    products = ((name, module) for name, module in encoder.named_modules() if isinstance(module, Linear))
    hooks = watch_inputs(products, largest)
    held_out: list[HeldOut] = []
    count = 0
    with torch.inference_mode():
        for index, frames in enumerate(clips):
            if index % _HELD_OUT_EVERY != 1:
                encoder(torch.from_numpy(frames))
                count += len(frames)
                progress(index + 1, len(clips))
        for hook in hooks:
            hook.remove()
        for frames in clips[1::_HELD_OUT_EVERY] or clips[-1:]:  # a single clip is measured on itself
            held_out.append(HeldOut(frames, encoder(torch.from_numpy(frames)).numpy()))
    return VisionCalibration(largest, find_smoothquant(encoder, largest), count, tuple(held_out))


def relative_error(path: Path, held_out: Sequence[HeldOut]) -> float:
    """Root mean square difference of the encoder at `path` from the held-out features, over their root mean square."""
    session = select_backend("cpu").session(path)
    squared = total = 0.0
    for part in held_out:
        (features,) = session.run(None, {"frames": part.frames})
        squared += float(np.square(features - part.features, dtype=np.float64).sum())
        total += float(np.square(part.features, dtype=np.float64).sum())
    return float(np.sqrt(squared / total)) if total else 0.0


def calibration_clips(manifest: Manifest, media: Sequence[str] = ()) -> list[np.ndarray]:
    """Frames uint8 [F, H, W, 3] of files, folders and patterns, or of synthetic scenes when there are none.

    About 32 frames in all, one or two in a clip, made small enough for 1,024 patches each.
    Raises MediaError when an argument matches nothing, or none of the media can be read.
    """
    paths = expand(media)
    each = max(_FRAMES_PER_CLIP, _FRAMES // len(paths)) if paths else _FRAMES_PER_CLIP
    sources: list[str | Path | np.ndarray] = [*_spread(paths, _FRAMES // each)]
    if not paths:
        sources = [item.media for item in _spread(list(calibration_items()), _FRAMES // each)]
    clips, problems = [], []
    for source in sources:
        try:
            frames = _frames(manifest, source, each)
            clips += np.split(frames, range(_FRAMES_PER_CLIP, len(frames), _FRAMES_PER_CLIP))
        except MediaError as e:
            problems.append(str(e))
            _log.warning("calibration of the encoder skips %s", e)
    if not clips:
        raise MediaError(f"none of the calibration media can be used: {'; '.join(dict.fromkeys(problems))}")
    return clips


def _spread(items: list, count: int) -> list:
    """At most `count` of the items, evenly spaced."""
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in chosen]


def _frames(manifest: Manifest, source: str | Path | np.ndarray, count: int) -> np.ndarray:
    processor, patch_size = manifest.processor, manifest.vision.patch_size

    def size(height: int, width: int, spec: MediaSpec, frames: int) -> tuple[int, int]:
        largest = min(spec.max_pixels, _PATCHES_PER_FRAME * patch_size**2 * frames)
        smallest = min(spec.min_pixels, largest)
        return target_size(height, width, PixelBudget(patch_size, spec.merge_size, smallest, largest), frames)

    if media_kind(source) == "image":
        image = load_image(source)
        chosen = size(image.shape[0], image.shape[1], processor.image, 1)
        return resize_rgb(image, chosen, processor.rule)[None]
    fps = processor.fps
    plan = SamplingPlan(fps=fps, max_frames=count)
    reader = open_video(source, plan, source_fps=fps if isinstance(source, np.ndarray) else None)
    chosen = size(reader.height, reader.width, processor.video, reader.num_frames)
    frames: np.ndarray = reader.read(chosen, processor.rule).frames
    return frames
