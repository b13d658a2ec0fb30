"""Tells pictures from videos by type or content, never by file name alone.

An animation of several frames is a video, one of a single frame a picture. The name decides only if the file is missing
or unreadable: then the error should be about the kind of file it was meant to be.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ..config import MediaKind
from ..errors import ConfigError, MediaError
from .addresses import Fetched, is_address, suffix_of
from .image import damage_reported, open_image
from .isolated import ask_worker
from .limits import DEFAULT_LIMITS, MediaLimits
from .packets import is_picture, open_container
from .signatures import TGA_SUFFIXES, picture_format

PICTURE_SUFFIXES = TGA_SUFFIXES | frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".dpx", ".exr", ".jxl", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tif", ".tiff", ".webp"}
)
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".divx", ".dv", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
    | {".264", ".265", ".h263", ".h264", ".h265", ".hevc", ".ivf", ".m2v", ".mjpeg", ".mjpg", ".obu"}
    | {".gif", ".apng"}  # mostly animated; a .png or .webp mostly is not
)
ANIMATED_FORMATS = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
_EVERYDAY_FORMATS = ANIMATED_FORMATS | {"JPEG", "TIFF", "BMP", "ICO", "TGA", "JPEG2000", "HEIF", "PPM"}
_EVERYDAY_FORMATS |= {"JXL", "EXR", "DPX", "QOI"}


def media_kind(source: Any, limits: MediaLimits = DEFAULT_LIMITS) -> MediaKind:
    """Whether a source is an image or a video; folders are videos. A picture at an address has to be fetched before.

    Raises ConfigError for what is not a source at all, MediaError if the process that was to find out died.
    """
    if isinstance(source, Image.Image):
        return "image"
    if isinstance(source, np.ndarray):
        return "video" if source.ndim == 4 else "image"
    if isinstance(source, str | Path | Fetched):
        if limits.isolate:
            kind: MediaKind = ask_worker("kind", str(source), source, limits)
            return kind
        return _file_kind(source, limits)
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return "video"
    raise ConfigError(
        "media must be a path, an address, a Pillow image, an array [H, W, 3] or [F, H, W, 3], or a list of Pillow "
        f"images, not {type(source).__name__}"
    )


def format_of(source: str | Path | Fetched) -> str | None:
    """The format name of a picture file, see `picture_format`; None for other or unreadable files."""
    try:
        with _opened(source) as file:
            return picture_format(file, suffix_of(str(source)))
    except (OSError, ValueError):  # the latter for a name that no file can have
        return None


def is_animated(image: Image.Image) -> bool:
    """Whether an open picture is an animation of several frames. Raises MediaError if it is damaged."""
    if image.format not in ANIMATED_FORMATS:
        return False  # a TIFF may have several pages
    with damage_reported("the picture is damaged"):
        if image.format == "GIF":
            return bool(getattr(image, "is_animated", False))  # its frames are not counted: there may be any number
        return getattr(image, "n_frames", 1) - first_frame(image) > 1


def first_frame(image: Image.Image) -> int:
    """The number of an animation's first frame: 1 for a PNG whose picture for old readers is not part of it."""
    return int(bool(getattr(image, "default_image", False)))


def pictures_in(paths: Sequence[Path]) -> list[Path]:
    """The files that are pictures, by suffix, or by content if the suffix is unknown."""
    return [path for path in paths if _is_picture(path)]


def _is_picture(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in PICTURE_SUFFIXES or suffix in VIDEO_SUFFIXES:
        return suffix in PICTURE_SUFFIXES
    return format_of(path) in _EVERYDAY_FORMATS


def _file_kind(source: str | Path | Fetched, limits: MediaLimits) -> MediaKind:
    if is_address(str(source)) and not isinstance(source, Fetched):
        return "video"
    name = format_of(source)
    if name is None:
        return _kind_by_ffmpeg(str(source))
    if name not in ANIMATED_FORMATS:
        return "image"
    try:
        with open_image(source, limits) as image:
            return "video" if is_animated(image) else "image"
    except MediaError:
        return "image"  # reading it says what is wrong


def _kind_by_ffmpeg(path: str) -> MediaKind:
    """The kind by what FFmpeg finds in a file, or by suffix if it finds nothing."""
    suffix = suffix_of(path)
    hoped_for: MediaKind = "image" if suffix in PICTURE_SUFFIXES else "video"
    if (hoped_for == "image" or suffix not in VIDEO_SUFFIXES) and os.path.isfile(path):
        try:
            with open_container(path) as container:
                # One JPEG would have been told by its bytes: these are several, of which FFmpeg looked at the first.
                is_still = is_picture(container) and container.format.name != "jpeg_pipe"
                return "image" if is_still else "video"
        except (MediaError, ValueError):
            pass
    return "video" if os.path.isdir(path) else hoped_for


def _opened(source: str | Path | Fetched) -> BinaryIO:
    if isinstance(source, Fetched):
        return BytesIO(source.data)
    if not stat.S_ISREG(os.stat(source).st_mode):  # a pipe would have to be waited for
        raise OSError(f"{source} is not a file")
    return open(source, "rb")
