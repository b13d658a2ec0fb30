"""Pictures and animations of many formats, written for tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from clips import picture
from PIL import Image, features

FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "ICO", "TGA", "JPEG2000", "PPM", "GIF", "DDS", "PCX", "SGI"]
FORMATS += ["AVIF"] if features.check("avif") else []
FORMATS += ["HEIF"] if importlib.util.find_spec("pillow_heif") else []
ANIMATIONS = ["GIF", "WEBP", "PNG"] + (["AVIF"] if features.check("avif") else [])


def write_picture(path: Path, style: str, number: int = 7, height: int = 64, width: int = 96, **options: Any) -> Path:
    """A picture in Pillow's format `style`, whatever the name says."""
    if style == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.fromarray(picture(number, height, width)).save(path, format=style, **options)
    return path


def write_animation(path: Path, style: str, durations_ms: Sequence[int], **options: Any) -> Path:
    """An animation in Pillow's format `style`, each of its frames another `picture`."""
    frames = [Image.fromarray(picture(number)) for number in range(len(durations_ms))]
    options |= {"lossless": True} if style == "WEBP" else {}
    options |= {"duration": list(durations_ms)} if len(durations_ms) > 1 else {}
    frames[0].save(path, format=style, save_all=True, append_images=frames[1:], **options)
    return path


def shown(path: Path, number: int = 0) -> npt.NDArray[np.uint8]:
    """A frame as Pillow gives it, uint8 [H, W, 3]."""
    with Image.open(path) as image:
        image.seek(number)
        return np.asarray(image.convert("RGB"))
