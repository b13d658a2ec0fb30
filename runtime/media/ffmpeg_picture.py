"""Pictures that FFmpeg reads and Pillow does not: EXR, DPX, JPEG-LS, PAM and others, and JPEG XL where FFmpeg can.

Their levels become RGB as FFmpeg converts them: a renderer's linear light stays linear, and looks dark.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import av
from PIL import Image

from ..errors import MediaError
from .addresses import Fetched
from .limits import MediaLimits
from .packets import is_picture, open_file, open_tolerantly
from .pixels import frame_rgb
from .signatures import FFMPEG_FORMATS

if TYPE_CHECKING:
    from av.container import InputContainer


def ffmpeg_picture(source: Path | Fetched, name: str | None, limits: MediaLimits) -> Image.Image | None:
    """The picture, decoded and RGB; None for what FFmpeg does not read as one. name: of its format, if known.

    Raises MediaError if it is too large.
    """
    try:
        with _opened(source, name) as container:
            stream = container.streams.video[0]
            if not is_picture(container) or stream.codec_context is None:
                return None
            limits.check_pixels(str(source), stream.codec_context.height, stream.codec_context.width)
            stream.codec_context.options = {"err_detect": "explode"}
            frame = next(container.decode(stream))
            return Image.fromarray(frame_rgb(frame, str(source), limits))
    except MediaError:
        raise
    except (av.FFmpegError, OSError, LookupError, ValueError, StopIteration):
        return None


def _opened(source: Path | Fetched, name: str | None) -> InputContainer:
    file = BytesIO(source.data) if isinstance(source, Fetched) else f"file:{source}"
    if name in FFMPEG_FORMATS:
        return open_tolerantly(file, format=FFMPEG_FORMATS[name])
    return open_tolerantly(file) if isinstance(source, Fetched) else open_file(str(source))
