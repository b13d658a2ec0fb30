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
    write_clip(folder / "h265_video.mp4", range(60), codec="libx265", height=144, width=256)
    write_clip(folder / "video_90.mov", range(30), height=320, width=568, rotation=-90)
    _damaged(folder / "corrupted.mp4")
    for name, height, width in (("cat.jpg", 360, 480), ("chart.jpg", 900, 1400)):
        Image.fromarray(picture(len(name), height, width)).save(folder / name, quality=90)
    return folder


def _two_streams(path: Path) -> None:
    """Two videos of 13.013 s with scenes that cut, at 270p and at 180p, the smaller one first, and sound."""
    with av.open(str(path), "w") as container:
        streams = []
        for height, width in ((180, 320), (270, 480)):
            stream = container.add_stream("libx264", rate=Fraction(30000, 1001), options={"preset": "veryfast"})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append(stream)
        for number in range(390):
            for stream in streams:
                scene = picture(number // 97 * 40, stream.height, stream.width)
                frame = av.VideoFrame.from_ndarray(np.roll(scene, number % 97 // 4, axis=1), format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))


def _damaged(path: Path) -> None:
    """50 frames at 10 a second, of which bytes in the middle were overwritten."""
    write_clip(path, range(50), Fraction(1, 10), options={"g": "12", "bf": "0"}, height=180, width=320)
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 3, len(data) // 2, 4000):
        data[at : at + 40] = bytes(40)
    path.write_bytes(bytes(data))
