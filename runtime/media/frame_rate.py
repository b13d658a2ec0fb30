"""How fast the frames of a stream follow each other, and who says so.

Bare streams (.h264, .hevc, .m4v, .mjpeg, .obu, …) have no times. Where their own headers state a rate it is theirs, as
with FFmpeg; else FFmpeg assumes 25, which may be far off. Who knows better gives `source_fps`: then the frames, of
whatever source, count as evenly spaced at that rate.
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
"""No container states more for what it really holds."""

ASSUMED_FPS = Fraction(25)
"""By FFmpeg, of streams that say nothing."""


def lacks_clock(container: InputContainer) -> bool:
    """Whether it is a bare stream: its packets have no times, or such as FFmpeg made up from a rate."""
    return bool(int(container.format.flags) & FORMAT_WITHOUT_TIMES) or container.format.name.endswith("_pipe")


def own_rate(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Frames per second as the container states them, or counted by FFmpeg; of a bare stream, as its headers do."""
    if lacks_clock(container):
        return stream.guessed_rate if stream.codec_context.framerate else None
    rate = stream.average_rate or stream.guessed_rate
    # Of DV, FFmpeg takes the ticks of a second for frames.
    return stream.guessed_rate if rate and rate > PLAUSIBLE_FPS else rate


def must_be_counted(container: InputContainer) -> bool:
    """Whether the rate is all there is to tell when a frame is shown.

    MPEG-1 and 2 say of every picture how long it is shown (films slowed to 30 a second), which FFmpeg's times heed.
    """
    return lacks_clock(container) and container.format.name != "mpegvideo"
