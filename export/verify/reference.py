"""The oracle of `verify`: an independent implementation of the reference processors.

Nothing here calls the runtime's own resizing, pruning or prompting. Sizes follow `smart_resize` of the layout's
processor, pixels come from torch's interpolation (which torchvision uses) or Pillow's, DiffFP is computed in float64 on
normalized pixels, and a prompt is rendered with its special tokens and tokenized at once, as transformers does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image
from tokenizers import Tokenizer

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import MediaProcessing, ModelConfig

THRESHOLD = 0.1  # DiffFP's, as released
_TIE = 1e-6  # differences this close to the threshold are decided by rounding


@dataclass(frozen=True)
class PreparedMedia:
    """frames: uint8 [F, H, W, 3], resized. keep: bool [F, tokens of a frame].

    tied: bool, as keep: where the difference equals the threshold up to rounding, so that both decisions are right.
    """

    frames: np.ndarray
    keep: np.ndarray
    tied: np.ndarray


def prepare(frames: np.ndarray, kind: str, config: ModelConfig) -> PreparedMedia:
    """Full-size frames uint8 [F, H, W, 3] of a video or an image (F = 1) as the checkpoint's processor prepares them."""
    processing = config.image if kind == "image" else config.video
    patch = config.vision.patch_size
    size = _size(frames.shape[1], frames.shape[2], processing, patch, len(frames))
    resized = np.stack([_resized(frame, size, processing) for frame in frames])
    block = patch * processing.merge_size
    differences = _differences(resized, block, config)
    if kind == "image" or not config.use_token_compression:
        differences = np.full_like(differences, np.inf)
    keep = differences > THRESHOLD
    keep[~keep.any(axis=1), 0] = True  # a frame in which nothing changed keeps one token
    return PreparedMedia(resized, keep, np.abs(differences - THRESHOLD) <= _TIE)


def _size(height: int, width: int, processing: MediaProcessing, patch: int, sharing: int) -> tuple[int, int]:
    """(height, width) after resizing; `sharing` frames share the largest area."""
    factor = patch * processing.merge_size
    is_port = processing.rule == "transformers"
    unit = 1 if is_port else factor**2  # the authors count merged tokens
    smallest, largest = processing.minimum * unit, processing.maximum * unit // sharing
    result = [round(side / factor) * factor for side in (height, width)]
    shrink = math.prod(result) > largest
    if shrink:
        ratio = math.sqrt(height * width / largest)
        result = [math.floor(side / ratio / factor) * factor for side in (height, width)]
        result = [max(side, factor) for side in result] if is_port else result
    if math.prod(result) < smallest and not (shrink and is_port):
        ratio = math.sqrt(smallest / (height * width))
        result = [math.ceil(side * ratio / factor) * factor for side in (height, width)]
    return result[0], result[1]


def _resized(frame: np.ndarray, size: tuple[int, int], processing: MediaProcessing) -> np.ndarray:
    if frame.shape[:2] == size:
        return frame
    if processing.rule == "authors":
        return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC))
    planes = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None]
    scaled = torch.nn.functional.interpolate(planes, size, mode="bicubic", antialias=True)
    return np.ascontiguousarray(scaled[0].permute(1, 2, 0).numpy())


def _differences(frames: np.ndarray, block: int, config: ModelConfig) -> np.ndarray:
    """Per token, 255 times the mean absolute difference of normalized pixels to the frame before: float64 [F, n]."""
    count, height, width, _ = frames.shape
    normalized = (frames / 255.0 - np.array(config.image_mean)) / np.array(config.image_std)
    rows, columns = height // block, width // block
    change = np.abs(np.diff(normalized, axis=0)).reshape(count - 1, rows, block, columns, block * 3)
    means = change.mean(axis=(2, 4)).reshape(count - 1, rows * columns) * 255
    return np.concatenate([np.full((1, rows * columns), np.inf), means])


def prompt_ids(
    checkpoint: Checkpoint, kind: str, times_s: Sequence[float], tokens_per_frame: Sequence[int], question: str
) -> list[int]:
    """Ids of the prompt about one video or image, with one placeholder for every visual token."""
    config = checkpoint.config
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json())
    placeholder = str(tokenizer.id_to_token(config.image_token_id if kind == "image" else config.video_token_id))
    part = {"type": kind, "num_frames": len(times_s), "timestamps": list(times_s)}
    words = {"type": "text", "text": question}
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(checkpoint.chat_template()).render(
        messages=[{"role": "user", "content": [part, words]}],
        add_generation_prompt=True,
        add_system_prompt=False,
        image_token=placeholder,
    )
    spans = [placeholder * count for count in tokens_per_frame]
    if kind == "video" and config.layout == "transformers":
        # One placeholder stands for the whole video; the processor writes the times.
        spans = [",".join(f"Time {time:.1f}s:{span}" for time, span in zip(times_s, spans, strict=True))]
    before, *parts = text.split(placeholder)
    expanded = before + "".join(span + part for span, part in zip(spans, parts, strict=True))
    return list(tokenizer.encode(expanded, add_special_tokens=False).ids)
