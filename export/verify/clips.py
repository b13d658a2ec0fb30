"""The clips that a bundle is verified on: a synthetic video and image, or the user's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import ModelConfig
from vl3edge.runtime.config import MediaKind, SamplingPlan
from vl3edge.runtime.media.contents import media_kind
from vl3edge.runtime.media.discovery import expand
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.prompt.chat_template import DESCRIBE

from .reference import PreparedMedia, prepare, prompt_ids

_SIZE = (90, 130)  # no multiple of a patch, so that frames have to be resized


@dataclass(frozen=True)
class VerifyClip:
    """One clip, with what the reference makes of it.

    source: the runtime's input, a path or pixels. frames: uint8 [F, H, W, 3] at full size. prompt: ids by the
        reference; none for a vision encoder alone.
    """

    name: str
    kind: MediaKind
    source: str | np.ndarray
    frames: np.ndarray
    times_s: tuple[float, ...]
    prepared: PreparedMedia
    prompt: list[int]

    @property
    def question(self) -> str:
        return DESCRIBE[self.kind]


def verify_clips(checkpoint: Checkpoint, media: Sequence[str], num_frames: int) -> list[VerifyClip]:
    """The clips to verify on; by default a synthetic video and image.

    The runtime samples the frames, which has its own tests; everything after that is the reference's.
    Raises MediaError.
    """
    found = [_read(name, checkpoint.config, num_frames) for name in expand(media)]
    clips = []
    for clip in found or _synthetic(checkpoint.config, num_frames):
        prepared = prepare(clip.frames, clip.kind, checkpoint.config)
        kept = prepared.keep.sum(axis=1).tolist()
        ids = []
        if checkpoint.config.has_decoder:
            ids = prompt_ids(checkpoint, clip.kind, clip.times_s, kept, DESCRIBE[clip.kind])
        clips.append(VerifyClip(clip.name, clip.kind, clip.source, clip.frames, clip.times_s, prepared, ids))
    return clips


@dataclass(frozen=True)
class _Decoded:
    """A clip before the reference has processed it; fields as in VerifyClip."""

    name: str
    kind: MediaKind
    source: str | np.ndarray
    frames: np.ndarray
    times_s: tuple[float, ...]


def _read(name: str, config: ModelConfig, num_frames: int) -> _Decoded:
    if media_kind(name) == "image":
        return _Decoded(name, "image", name, load_image(name)[None], (0.0,))
    video = open_video(name, SamplingPlan(fps=config.fps, max_frames=num_frames)).read()
    return _Decoded(name, "video", name, video.frames, video.timestamps_s)


def _synthetic(config: ModelConfig, num_frames: int) -> list[_Decoded]:
    """A square moving over a still, noisy background: some tokens change, most do not. And its last frame."""
    height, width = _SIZE
    rows, columns = np.mgrid[:height, :width]
    ground = np.stack([rows * 2, columns, 255 - rows], axis=-1) + np.random.default_rng(0).integers(-9, 10, (*_SIZE, 3))
    frames = np.repeat(np.clip(ground, 0, 255).astype(np.uint8)[None], num_frames, axis=0)
    for index, frame in enumerate(frames):
        left = 8 + 12 * index % (width - 50)
        frame[20:55, left : left + 35] = (210, 40, 30)
    times = tuple(index / config.fps for index in range(num_frames))
    return [
        _Decoded("a synthetic video", "video", frames, frames, times),
        _Decoded("a synthetic image", "image", frames[-1], frames[-1:], (0.0,)),
    ]
