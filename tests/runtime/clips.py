"""Small video clips written for tests, and what FFmpeg itself makes of a clip: every frame, or its fps filter."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]

LONG_GOP = {"g": "250", "bf": "3"}
SHORT_GOP = {"g": "12", "bf": "2"}
OPEN_GOP = {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal"}


def picture(number: int, height: int = 64, width: int = 96) -> Frame:
    """A frame that no other number has: a drifting ramp, a moving square, a little noise."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width]
    frame = np.stack([2 * x + number, 3 * y + 2 * number, x + y + 5 * number], axis=2) % 256
    at = 3 * number % (width - 16)
    frame[8:24, at : at + 16] = (255, 40, number % 256)
    return np.clip(frame + rng.integers(-4, 5, frame.shape), 0, 255).astype(np.uint8)


def write_clip(
    path: Path,
    ticks: Sequence[int],
    time_base: Fraction = Fraction(1, 25),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    height: int = 64,
    width: int = 96,
    rotation: int = 0,
    muxer: dict[str, str] | None = None,
) -> Path:
    """A clip with one frame at each of `ticks` · `time_base` seconds."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=round(1 / time_base) if time_base > Fraction(1, 60) else 25)
        stream.width, stream.height = width, height
        stream.pix_fmt = {"mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.time_base = time_base
        stream.options = {**({"preset": "veryfast"} if codec == "libx264" else {}), **(options or {})}
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if rotation:
        _turn(path, rotation)
    return path


def _turn(path: Path, degrees: int) -> None:
    """Writes the display matrix of an MP4's or MOV's one track, counterclockwise; PyAV can from version 16 on."""
    cos, sin = (round(f(math.radians(degrees))) for f in (math.cos, math.sin))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # of the first version of the box
    data[at : at + 36] = struct.pack(">9i", cos << 16, -sin << 16, 0, sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def every_frame(path: Path) -> list[Frame]:
    """All frames in the order shown, decoded plainly: uint8 [H, W, 3] each."""
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(container.streams.best("video"))]


def fps_filter(path: Path, rate: str) -> list[Frame]:
    """What FFmpeg's own filter `fps=fps=rate:round=down` gives, on the clock that the FFmpeg program uses."""
    graph = av.filter.Graph()
    output: list[Frame] = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        source = graph.add_buffer(template=stream)
        chosen = graph.add("fps", f"fps={rate}:round=down")
        sink = graph.add("buffersink")
        source.link_to(chosen)
        chosen.link_to(sink)
        graph.configure()
        zero = round(Fraction(container.start_time or 0, av.time_base) / stream.time_base)
        for frame in [*container.decode(stream), None]:
            if frame is not None:
                frame.pts -= zero
            source.push(frame)
            while True:
                try:
                    output.append(sink.pull().to_ndarray(format="rgb24"))
                except (av.BlockingIOError, av.EOFError):
                    break
    return output
