"""Frames to look at: which ones to show, pruned blocks dimmed, and files embedded in a page."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

Rgb = npt.NDArray[np.uint8]

_DIMMED = 0.25  # of a pruned pixel's brightness is left; the rest is the colour of the page
_LUMA = np.array([0.299, 0.587, 0.114])


def choose_shown(num_frames: int, most: int) -> list[int]:
    """Numbers of at most `most` frames, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, num_frames - 1, min(num_frames, most)).round().astype(int)).tolist()


def dimmed(frame: Rgb, keep: npt.NDArray[np.bool_], block: int, page: tuple[int, int, int]) -> Rgb:
    """A frame, uint8 [H, W, 3], with the blocks that are not kept grey and faded to the colour `page`.

    keep: bool [n], row by row. block: its side in pixels.
    """
    height, width = frame.shape[0] // block, frame.shape[1] // block
    kept = keep.reshape(height, width).repeat(block, axis=0).repeat(block, axis=1)[..., None]
    faded = _DIMMED * (frame @ _LUMA)[..., None] + (1 - _DIMMED) * np.array(page)
    return np.where(kept, frame, faded.round().astype(np.uint8))


def jpeg(frame: Rgb, longest: int) -> bytes:
    """A frame as JPEG, made smaller so that its longer side is at most `longest` pixels."""
    image = Image.fromarray(frame)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return encoded(image, "JPEG", quality=80, optimize=True)


def veil(keep: npt.NDArray[np.bool_], grid: tuple[int, int]) -> bytes:
    """A PNG with one pixel for each token: opaque where it was pruned, transparent where it was kept."""
    alpha = np.where(keep.reshape(grid), 0, 255).astype(np.uint8)
    opaque = np.zeros_like(alpha)
    return encoded(Image.fromarray(np.dstack([opaque, opaque, opaque, alpha])), "PNG", optimize=True)


def with_palette(png: bytes) -> bytes:
    """A picture reduced to its 256 commonest colours: a third of the bytes, and hardly a visible difference."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return encoded(image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE), "PNG", optimize=True)


def data_uri(content: bytes, media_type: str) -> str:
    """A file as part of a page."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
