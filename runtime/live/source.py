"""Where live frames come from: a camera, a network stream or a file, opened through FFmpeg with limits of time.

A source that states its length is a recording: it is played in real time and its end is the end. Everything else is
live: what comes is new, and its end is a loss. Cameras are V4L2 devices (Linux).
"""

from __future__ import annotations

import errno
import glob
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import av

from ..config import check_rate
from ..errors import ConfigError, MediaError
from ..media.addresses import is_address
from ..media.contents import format_of, media_kind
from ..media.frame_rate import ASSUMED_FPS, lacks_clock, must_be_counted, own_rate
from ..media.frame_sampling import as_fraction
from ..media.limits import DEFAULT_LIMITS
from ..media.packets import best_video_stream, is_picture, open_container, open_tolerantly
from ..media.signatures import STILL_BRANDS

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

Transport = Literal["tcp", "udp"]


PICTURE = "this is a still picture; use vl3edge ask or caption"


class SourceLost(MediaError):
    """A source that cannot be read now, but perhaps later: it ended, fell silent, refused, or sent garbage.

    The message says why, without the source's name.
    """


@dataclass(frozen=True)
class SourceOptions:
    """How a source is opened.

    timeout_s: of silence, after which it counts as lost.
    transport: what an RTSP server is asked to send over; "udp" has less delay and loses packets.
    camera_size: "1280x720", asked of a camera; None takes what it is set to.
    camera_rate: frame rate to request from a camera.
    source_fps: of a recording, whatever its own clock says; None takes that, or what is assumed of a bare stream.
    """

    timeout_s: float = 10.0
    transport: Transport = "tcp"
    camera_size: str | None = None
    camera_rate: float | None = None
    source_fps: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < 1e6:
            raise ConfigError(f"timeout_s must be a positive number of seconds, not {self.timeout_s}")
        if self.transport not in get_args(Transport):
            raise ConfigError(f"transport must be one of {', '.join(get_args(Transport))}, not {self.transport!r}")
        if self.camera_size is not None and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", self.camera_size):
            raise ConfigError(f"camera_size must be WIDTHxHEIGHT in pixels, not {self.camera_size!r}")
        if self.camera_rate is not None and not 0 < self.camera_rate <= 1000:
            raise ConfigError(f"camera_rate must be frames per second, at most 1000, not {self.camera_rate}")
        check_rate("source_fps", self.source_fps)


@dataclass(frozen=True)
class Reconnection:
    """When a lost source is opened again.

    first_s, longest_s: the pause before the first attempt, and the limit to which it doubles.
    attempts: in a row without a frame, after which the source is given up; None never gives up.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    attempts: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.longest_s:
            raise ConfigError(
                f"pauses must be positive, and first_s ({self.first_s}) at most longest_s ({self.longest_s})"
            )
        if self.attempts is not None and self.attempts < 0:
            raise ConfigError(f"the number of attempts must be 0 or more, not {self.attempts}")

    def pause_s(self, attempt: int) -> float:
        """Seconds to wait before attempt number 1, 2, …"""
        return min(self.longest_s, self.first_s * 2.0 ** min(attempt - 1, 60))


@dataclass(frozen=True, eq=False)
class LiveSource:
    """An open source. is_recording: it has an end; has_clock: its frames carry times of their own.

    fps: by which the frames of a recording are counted that have none, or of which another rate is known.
    is_assumed: whether nobody has stated it.
    """

    container: InputContainer
    stream: VideoStream
    is_recording: bool
    has_clock: bool
    fps: Fraction | None = None
    is_assumed: bool = False


def is_camera(source: str) -> bool:
    return source.startswith("/dev/")


def shown_name(source: str) -> str:
    """The source for messages and records: an address without its password."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", source)


def open_live_source(source: str, options: SourceOptions) -> LiveSource:
    """Opens a source; the caller closes its container.

    Raises SourceLost where trying again may help; MediaError where it will not (no such file or camera, no video).
    """
    name = shown_name(source)
    if is_camera(source):
        _check_camera(source)
    elif not is_address(source):
        _check_film(source)
    container = _open(source, name, options) if is_camera(source) or is_address(source) else open_container(source)
    try:
        if _shows_a_picture(container):
            raise MediaError(f"{name}: {PICTURE}")
        stream = best_video_stream(container, name)
    except MediaError as e:
        container.close()
        lost = is_address(source) and PICTURE not in str(e)
        raise (SourceLost(str(e).removeprefix(f"{name}: ")) if lost else e) from e
    stated = container.duration is not None and container.duration > 0
    recording = stated if is_camera(source) or is_address(source) else True
    # Slices, not frames: each thread that decodes a frame of its own holds one back.
    stream.thread_type = "SLICE"
    # A stream may grow while it runs; what is too large fails in the decoder, before it has taken the memory.
    stream.codec_context.options = {"max_pixels": str(DEFAULT_LIMITS.max_pixels)}
    if not recording:
        if options.source_fps is not None:
            container.close()
            raise ConfigError(f"{name}: live frames are timed by their arrival: leave out source_fps")
        return LiveSource(container, stream, recording, not lacks_clock(container))
    if options.source_fps is not None:
        return LiveSource(container, stream, recording, False, as_fraction(options.source_fps))
    if not must_be_counted(container):
        return LiveSource(container, stream, recording, True)
    rate = own_rate(container, stream)
    return LiveSource(container, stream, recording, False, rate or ASSUMED_FPS, rate is None)


def _open(source: str, name: str, options: SourceOptions) -> InputContainer:
    # By default FFmpeg measures the rate of a stream for seconds before it hands out the first frame.
    settings = {"fpsprobesize": "0", "rtsp_transport": options.transport}
    if options.camera_size is not None:
        settings["video_size"] = options.camera_size
    if options.camera_rate is not None:
        settings["framerate"] = f"{options.camera_rate:g}"
    limits = (options.timeout_s, options.timeout_s)
    kind = "v4l2" if is_camera(source) else None
    try:
        # Not `options`, which go to each stream, too: before version 18, PyAV then frees memory that is not its own
        # where FFmpeg finds more streams than the header named, as in FLV and MPEG-PS.
        return open_tolerantly(source, format=kind, container_options=settings, timeout=limits)
    except av.FFmpegError as e:
        if isinstance(e, av.ProtocolNotFoundError | PermissionError):
            raise MediaError(f"{name}: {reason(e, options)}") from e
        raise SourceLost(reason(e, options)) from e


def reason(error: av.FFmpegError, options: SourceOptions) -> str:
    """What an error of FFmpeg means for a source."""
    if isinstance(error, av.ExitError | TimeoutError):
        return f"silent for {options.timeout_s:g} s"
    if isinstance(error, av.InvalidDataError):
        return "it sends no video that FFmpeg can read"
    if isinstance(error, av.ProtocolNotFoundError):
        return "FFmpeg does not support this protocol"
    if error.errno == errno.EIO:  # which is all that FFmpeg says of either
        return "the connection was lost, or the host is unknown"
    return str(error.strerror)


def _shows_a_picture(container: InputContainer) -> bool:
    """Whether FFmpeg found a picture; of a HEIF one it would show the first tile."""
    return is_picture(container) or container.metadata.get("major_brand", "").encode() in STILL_BRANDS


def _check_film(path: str) -> None:
    """Raises MediaError for a picture, and for an animation that FFmpeg does not play."""
    found = format_of(path)
    if found is not None and not (found in ("GIF", "PNG") and media_kind(path) == "video"):
        raise MediaError(f"{path}: {PICTURE}")


def _check_camera(source: str) -> None:
    if not Path(source).exists():
        found = ", ".join(sorted(glob.glob("/dev/video*"))) or "none is connected"
        raise MediaError(f"{source}: there is no such camera; cameras here: {found}")
