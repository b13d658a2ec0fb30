"""The pixels of a decoded frame: RGB, upright.

Colours are converted as PyAV's `to_ndarray(format="rgb24")` does it, which is what transformers' PyAV backend gives.
The display matrix (rotation, mirroring) is applied; the sample aspect ratio is not, as neither reference does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType

from ..errors import MediaError
from .limits import DEFAULT_LIMITS, MediaLimits

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Frame = npt.NDArray[np.uint8]
UNSPECIFIED = 2
"""FFmpeg's AVCOL_SPC_UNSPECIFIED."""


def _unnamed(kinds: type[SideDataType], number: object) -> SideDataType:
    """A member of PyAV's enum of side data for a number that it has no name for."""
    kind: Any = object.__new__(kinds)
    kind._name_, kind._value_ = f"UNNAMED_{number}", number
    named: SideDataType = kind
    return named


if "_missing_" not in vars(SideDataType):
    # Before PyAV 19, one piece of side data without a name (EXIF of a JPEG, what a newer FFmpeg adds) makes all of a
    # frame's side data a ValueError, the display matrix included.
    SideDataType._missing_ = classmethod(_unnamed)  # type: ignore[assignment,method-assign]


def frame_rgb(frame: VideoFrame, name: str, limits: MediaLimits = DEFAULT_LIMITS) -> Frame:
    """The upright pixels of a decoded frame of `name`, uint8 [H, W, 3]. Raises MediaError if there are too many."""
    limits.check_pixels(name, frame.height, frame.width)
    try:
        try:
            pixels = _converted(frame)
        except (av.FFmpegError, ValueError):
            # A colour space that the converter does not know (ICtCp, reserved numbers). FFmpeg before version 8 took
            # such for an unspecified one, and so do players.
            frame.colorspace = UNSPECIFIED
            pixels = _converted(frame)
    except (av.FFmpegError, ValueError) as e:
        raise MediaError(f"{name}: a frame of the format {frame.format.name} cannot be converted to RGB ({e})") from e
    return _upright(pixels, frame)


def _converted(frame: VideoFrame) -> Frame:
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def _upright(pixels: Frame, frame: VideoFrame) -> Frame:
    """Applies the frame's display matrix, to the nearest quarter turn, as FFmpeg's own player does."""
    # Not `frame.side_data`: the frame would hold that and be held by it, and so stay in memory, 3 MB at 1080p, until
    # the garbage collector comes by, which may be hundreds of frames later.
    data: Any = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]  # its stub lacks __init__
    if data is None:
        return pixels
    matrix = np.frombuffer(bytes(data), dtype=np.int32).reshape(3, 3)
    (a, b), (c, d) = matrix[0, :2].tolist(), matrix[1, :2].tolist()
    # A point (x, y) of the coded frame is shown at (a·x + c·y, b·x + d·y).
    if abs(a) + abs(d) >= abs(b) + abs(c):
        flip_x, flip_y = a < 0, d < 0
    else:
        pixels = pixels.transpose(1, 0, 2)
        flip_x, flip_y = c < 0, b < 0
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
