"""Sound media files to be damaged: small, of as many containers and codecs as FFmpeg and Pillow write here."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from clips import LONG_GOP, OPEN_GOP, SHORT_GOP, picture, write_clip
from PIL import Image

VFR = np.cumsum(np.random.default_rng(0).integers(5, 400, 30)).tolist()
HEVC = {"x265-params": "keyint=15:open-gop=1:bframes=4:log-level=none"}
VP8 = {"g": "20", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "10"}


def _frames(count: int) -> list[Image.Image]:
    return [Image.fromarray(picture(number)) for number in range(count)]


def _animation(path: Path) -> None:
    first, *others = _frames(8)
    first.save(path, save_all=True, append_images=others, duration=120)


def _still(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, so that the orientation is read
    _frames(1)[0].save(path, **({"exif": exif} if path.suffix in (".jpg", ".png", ".webp") else {}))


WRITERS: dict[str, Callable[[Path], object]] = {
    "h264.mp4": lambda p: write_clip(p, range(40), options=SHORT_GOP),
    "h264-long.mp4": lambda p: write_clip(p, range(60), options=LONG_GOP),
    "h264-fragmented.mp4": lambda p: write_clip(
        p, range(40), options=SHORT_GOP, muxer={"movflags": "frag_keyframe+empty_moov"}
    ),
    "h264-turned.mov": lambda p: write_clip(p, range(20), options=SHORT_GOP, rotation=90),
    "h264.ts": lambda p: write_clip(p, range(40), options=OPEN_GOP),
    "h264-vfr.mkv": lambda p: write_clip(p, VFR, Fraction(1, 1000), options=OPEN_GOP),
    "h264.flv": lambda p: write_clip(p, range(20), options=SHORT_GOP),
    "hevc.mp4": lambda p: write_clip(p, range(30), codec="libx265", options=HEVC),
    "mpeg4.avi": lambda p: write_clip(p, range(30), codec="mpeg4", options={"g": "12", "bf": "2"}),
    "mpeg2.mpg": lambda p: write_clip(p, range(30), codec="mpeg2video", options={"g": "12", "bf": "2"}),
    "vp8.webm": lambda p: write_clip(p, range(30), codec="libvpx", options=VP8),
    "vp9.webm": lambda p: write_clip(p, range(20), codec="libvpx-vp9", options={"deadline": "realtime"}),
    "mjpeg.mov": lambda p: write_clip(p, range(20), codec="mjpeg"),
    "animation.gif": _animation,
    "animation.apng": _animation,
    "animation-clip.webp": _animation,
    "still.png": _still,
    "still.jpg": _still,
    "still.webp": _still,
    "still.bmp": _still,
    "still.tif": _still,
}


def write_seeds(folder: Path) -> list[Path]:
    """Writes all of them; names of animations whose type is also a still's hold "animation"."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in WRITERS.items():
        if not (folder / name).exists():
            write(folder / name)
    return [folder / name for name in WRITERS]
