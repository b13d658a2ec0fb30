"""One picture of a clip for a page: a frame from its middle."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..config import MediaKind, SamplingPlan
from ..media.image import load_image
from ..media.limits import MediaLimits
from ..media.video import open_video
from .frames import Rgb, data_uri, jpeg

_LONGEST = 320  # pixels of the longer side


def thumbnail(frame: Callable[[], Rgb]) -> str:
    """A frame, uint8 [H, W, 3], as a data URI; empty where it cannot be had."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return data_uri(jpeg(frame(), _LONGEST), "image/jpeg")
    except Exception:  # the page is about the answers; why a clip cannot be read is told elsewhere
        return ""


def middle_frame(source: Any, kind: MediaKind, limits: MediaLimits, sampling: SamplingPlan) -> Rgb:
    """uint8 [H, W, 3], of the part of a video that a plan samples, or the picture. Raises MediaError."""
    if kind == "image":
        return load_image(source, limits)
    reader = open_video(source, replace(sampling, fps=None, max_frames=3), limits=limits)
    frames = reader.frames()
    for _ in range(reader.num_frames // 2):
        next(frames)
    return next(frames).pixels
