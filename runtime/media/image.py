"""Reading one image as the reference processors do: upright, RGB, 8 bits.

It reads what Pillow or FFmpeg can, by content and not by file name. For an animated image it returns the first frame;
`video.py` reads all frames as a video.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError, features

from ..errors import MediaError, no_such_file
from .addresses import Fetched, is_address, located, suffix_of
from .ffmpeg_picture import ffmpeg_picture
from .limits import DEFAULT_LIMITS, MediaLimits
from .signatures import NOT_PICTURES, picture_format

_JXL_DECODERS = {"jpegxl", "libjxl"}

PROGRAMS = frozenset({"EPS", "WMF"})
"""Formats that Pillow hands to other programs (Ghostscript), whatever the file is called."""


def load_image(
    source: str | Path | Fetched | Image.Image | npt.NDArray[np.uint8], limits: MediaLimits = DEFAULT_LIMITS
) -> npt.NDArray[np.uint8]:
    """The image as uint8 [H, W, 3], turned upright by its EXIF orientation.

    Every mode becomes RGB as Pillow's `convert("RGB")` does it: alpha is dropped, palettes are looked up, CMYK is
    converted without a profile. 16-bit greyscale is scaled to 8 bits (Pillow alone would clip it). An array must be
    uint8 [H, W, 3], [H, W, 4] (alpha is dropped) or [H, W].

    Raises MediaError if the file is missing, empty, damaged, not an image, or beyond a limit.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, limits)
    if isinstance(source, Image.Image):
        limits.check_pixels("the image given", source.height, source.width)
        return image_rgb(source)
    source = located(source, limits)
    with open_image(source, limits) as image, damage_reported(f"{source}: the image is damaged or cut short"):
        return image_rgb(image)


@contextmanager
def damage_reported(message: str) -> Iterator[None]:
    """Pillow's readers raise whatever their parsing stumbles over: all of it becomes a MediaError with `message`."""
    try:
        yield
    except (MediaError, MemoryError):
        raise
    except Exception as e:
        raise MediaError(f"{message} ({' '.join(str(e).split()) or type(e).__name__})") from e


def open_image(source: str | Path | Fetched, limits: MediaLimits = DEFAULT_LIMITS) -> Image.Image:
    """The image file opened by Pillow, its header checked, its pixels not read yet. Raises MediaError."""
    if not isinstance(source, Fetched) and is_address(str(source)):
        raise MediaError(f"{source}: this address holds no picture that Pillow can read")
    path = source if isinstance(source, Fetched) else Path(source)
    name = None
    try:
        if isinstance(path, Path) and path.is_fifo():  # opening it would wait for a writer for ever
            raise MediaError(f"{path}: this is a pipe, not a file; save its output to a file first")
        if isinstance(path, Path) and path.stat().st_size == 0:
            raise MediaError(f"{path}: the file is empty")
        name = _format(path)
        formats = _formats(path, name)
        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels on and refuses from twice that; our own limit is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path if isinstance(path, Path) else BytesIO(path.data), formats=formats)
    except (MediaError, MemoryError):
        raise
    except FileNotFoundError as e:
        raise MediaError(no_such_file(str(path))) from e
    except PermissionError as e:
        raise MediaError(f"{path}: no permission to read it") from e
    except IsADirectoryError as e:
        raise MediaError(f"{path}: this is a folder, not an image") from e
    except UnidentifiedImageError as e:
        if (decoded := ffmpeg_picture(path, name, limits)) is None:
            what = f"a damaged {name} picture" if name else "not an image in a format that Pillow or FFmpeg can read"
            raise MediaError(f"{path}: {what}; convert it to PNG or JPEG") from e
        return decoded
    except Image.DecompressionBombError as e:
        raise MediaError(f"{path}: more than the limit of {limits.max_pixels:,} pixels; make it smaller first") from e
    except Exception as e:
        if isinstance(e, OSError) and e.errno:
            raise MediaError(f"{path}: it cannot be opened ({e.strerror})") from e
        why = " ".join(str(e).split())
        raise MediaError(f"{path}: the image is damaged or cannot be read ({why})") from e
    try:
        if image.format in PROGRAMS:
            raise MediaError(f"{path}: {image.format} files are programs, which are not run; convert it to PNG first")
        limits.check_pixels(str(path), image.height, image.width)
    except MediaError:
        image.close()
        raise
    return image


def _format(source: Path | Fetched) -> str | None:
    with source.open("rb") if isinstance(source, Path) else BytesIO(source.data) as file:
        return picture_format(file, suffix_of(str(source)))


def _formats(source: Path | Fetched, name: str | None) -> list[str]:
    """The formats that Pillow should try. Raises MediaError if the reader of the format `name` is missing."""
    if name == "HEIF":
        try:
            import pillow_heif
        except ImportError as e:
            raise MediaError(
                f"{source}: a HEIF picture (.heic), which needs pillow-heif: pip install 'vl3edge[heif]'"
            ) from e
        pillow_heif.register_heif_opener()
    if name == "JXL":
        try:
            import_module("pillow_jxl")  # which registers it
        except ImportError as e:
            if not _JXL_DECODERS & av.codecs_available:
                raise MediaError(
                    f"{source}: a JPEG XL picture, which needs pillow-jxl-plugin: pip install pillow-jxl-plugin"
                ) from e
    Image.init()
    if name == "AVIF" and not (name in Image.OPEN and features.check("avif")):
        raise MediaError(f"{source}: an AVIF picture, which needs Pillow 11.3 or later: pip install -U pillow")
    if name:
        return [name] if name in Image.OPEN else []
    return [known for known in Image.OPEN if known not in NOT_PICTURES]


def image_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The current frame of a Pillow image, upright: uint8 [H, W, 3]."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16") or (upright.mode == "I" and upright.format == "PNG"):
        levels = np.asarray(upright).astype(np.uint32)
        upright = Image.fromarray((levels >> 8).astype(np.uint8))
    return np.asarray(upright.convert("RGB"))


def _from_array(array: npt.NDArray[np.uint8], limits: MediaLimits) -> npt.NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise MediaError(f"an image array must be uint8 with levels 0 to 255, not {array.dtype}")
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or 0 in array.shape:
        raise MediaError(f"an image array must have the shape [H, W, 3], not {list(array.shape)}")
    limits.check_pixels("the array given", array.shape[0], array.shape[1])
    return np.ascontiguousarray(array[:, :, :3])
