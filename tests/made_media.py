"""Stand-ins for the real clips and images that lie beside some checkouts: of their kinds, made by code."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from clips import picture, write_clip
from PIL import Image


def make_media(folder: Path) -> Path:
    """Writes all of them into the folder, by the names of the real ones."""
    _two_streams(folder / "nasa_13013.mp4")
    write_clip(folder / "h265_video.mp4", range(10), Fraction(1, 10), codec="libx265", height=128, width=128)
    write_clip(folder / "video_90.mov", range(3), Fraction(1, 30), height=320, width=568, rotation=-90)
    _damaged(folder / "corrupted.mp4")
    for name, height, width in (("cat.jpg", 360, 480), ("chart.jpg", 900, 1400)):
        Image.fromarray(picture(len(name), height, width)).save(folder / name, quality=90)
    return folder


def _two_streams(path: Path) -> None:
    """Two videos of 13 s, the better one second: scenes that cut at 5.2 and 8.2 s, noisier from left to right."""
    sizes = {(180, 320): Fraction(25), (270, 480): Fraction(30000, 1001)}
    with av.open(str(path), "w") as container:
        streams = []
        for (height, width), rate in sizes.items():
            stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "16"})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append(stream)
        streams[1].disposition = av.stream.Disposition.default.value
        for stream, rate in zip(streams, sizes.values(), strict=True):
            for number in range(int(Fraction(13013, 1000) * rate)):
                time_s = number / rate
                pixels = picture((time_s > 5.2) + (time_s > 8.2), stream.height, stream.width)
                noise = np.random.default_rng(number).normal(0, 1, pixels.shape)
                noise *= np.linspace(3, 9, stream.width)[:, None]
                noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
            container.mux(stream.encode(None))


def _damaged(path: Path) -> None:
    """50 frames at 10 a second, of which eight before a keyframe are overwritten."""
    write_clip(path, range(50), Fraction(1, 10), options={"g": "12", "bf": "0"}, height=180, width=320)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    with path.open("r+b") as file:
        for at, size in places[28:36]:
            file.seek(at)
            file.write(b"\xff" * size)
