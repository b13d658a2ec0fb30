"""The frame rate of a stream, and where it comes from.

Bare streams (.h264, .hevc, .m4v, .mjpeg, .obu, …) have no times. As in FFmpeg, their headers' rate counts if there is
one; else FFmpeg assumes 25, which may be far off. `source_fps` overrides it: the frames of any source then count as
evenly spaced at that rate.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

FORMAT_WITHOUT_TIMES = 0x80
"""FFmpeg's AVFMT_NOTIMESTAMPS: the times of such packets (MJPEG over HTTP, bare H.264) are made up from a rate."""

PLAUSIBLE_FPS = 1000
"""The true rate of a container is never above this."""

ASSUMED_FPS = Fraction(25)
"""FFmpeg's assumption for streams that state no rate."""


def lacks_clock(container: InputContainer) -> bool:
    """Whether it is a bare stream: its packets have no times, or times that FFmpeg derived from a rate."""
    return bool(int(container.format.flags) & FORMAT_WITHOUT_TIMES) or container.format.name.endswith("_pipe")


def own_rate(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Frames per second as the container states them, or as FFmpeg counts them; for a bare stream, as its headers
    state."""
    if lacks_clock(container):
        return stream.guessed_rate if stream.codec_context.framerate else None
    rate = stream.average_rate or stream.guessed_rate
    # For DV, FFmpeg mistakes the ticks of a second for frames.
    return stream.guessed_rate if rate and rate > PLAUSIBLE_FPS else rate


def must_be_counted(container: InputContainer) -> bool:
    """Whether only the rate tells when a frame is shown.

    MPEG-1 and 2 state for every picture how long it is shown (films slowed to 30 a second), which FFmpeg's times
    respect.
    """
    return lacks_clock(container) and container.format.name != "mpegvideo"
