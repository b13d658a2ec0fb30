"""What a clip states and cannot hold, or takes too long to give: each is one line that names the limit."""

from __future__ import annotations

import os
import struct
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import SHORT_GOP, picture, write_clip
from PIL import Image

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import ConfigError, MediaError
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.limits import MediaLimits, ReadingClock
from vl3edge.runtime.media.video import open_video


def refusal(path: Path, limits: MediaLimits | None = None) -> str:
    with pytest.raises(MediaError) as caught:
        list(open_video(path, limits=limits or MediaLimits()).frames((56, 56)))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def patched(path: Path, box: bytes, offset: int, number: int) -> Path:
    """The file with a 32-bit number put into its first box of this type, `offset` bytes after the type."""
    data = bytearray(path.read_bytes())
    at = data.index(box) + 4 + offset
    data[at : at + 4] = struct.pack(">I", number)
    path.write_bytes(data)
    return path


def animation(path: Path, count: int, size: tuple[int, int] = (96, 64)) -> Path:
    first, *others = [Image.fromarray(picture(number, size[1], size[0])) for number in range(count)]
    first.save(path, save_all=True, append_images=others, duration=100)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", range(30), options=SHORT_GOP)


def test_one_frame_that_states_a_billion(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "one.mp4", range(1), options=SHORT_GOP)
    patched(path, b"stsz", 8, 10**9)
    begin = time.perf_counter()
    assert "no frame of its video can be decoded" in refusal(path)  # FFmpeg finds the index contradictory
    assert time.perf_counter() - begin < 10


@pytest.mark.parametrize(
    ("side", "message"),
    [(9000, "9000×9000 pixels exceed the limit of 67,108,864"), (30000, "not a video that FFmpeg can read")],
)
def test_a_header_of_many_pixels(tmp_path: Path, side: int, message: str) -> None:
    path = tmp_path / "huge.y4m"
    path.write_bytes(f"YUV4MPEG2 W{side} H{side} F1:1 Ip C420jpeg\nFRAME\n".encode() + bytes(4096))
    assert message in refusal(path)


def test_times_a_century_apart(tmp_path: Path) -> None:
    hours = 10**6
    path = write_clip(tmp_path / "century.mkv", [0, 1, hours * 3600], Fraction(1, 1), options=SHORT_GOP)
    message = refusal(path)
    assert "1,000,000 hours by its own timestamps, above the limit of 48 (max_duration_s)" in message
    assert len(list(open_video(path, limits=MediaLimits(max_duration_s=1e10)).frames((56, 56)))) == 180


def test_a_million_frames_per_second(clip: Path) -> None:
    reader = open_video(clip, SamplingPlan(fps=1e6))
    assert reader.num_frames == 180
    assert len(list(reader.frames((56, 56)))) == 180


def test_too_many_frames(clip: Path, tmp_path: Path) -> None:
    few = MediaLimits(max_source_frames=20)
    assert "it has more than 20 frames (max_source_frames)" in refusal(clip, few)
    assert "more than 20 frames" in refusal(animation(tmp_path / "a.gif", 21), few)
    assert "more than 20 frames" in refusal(animation(tmp_path / "a.apng", 21), few)
    assert open_video(animation(tmp_path / "b.gif", 20), limits=few).num_source_frames == 20
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(21):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    assert "more than 20 frames" in refusal(folder, few)


def test_a_gif_whose_second_frame_is_larger_than_its_canvas(tmp_path: Path) -> None:
    path = animation(tmp_path / "bomb.gif", 3)
    data = bytearray(path.read_bytes())
    second = data.index(b"\x21\xf9", data.index(b"\x21\xf9") + 2) + 8  # after the graphic control extension
    assert data[second] == 0x2C
    data[second + 5 : second + 9] = struct.pack("<HH", 13000, 13000)
    path.write_bytes(data)
    assert "13000×13000 pixels" in refusal(path)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif"])
def test_a_picture_larger_than_the_limit(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"large{suffix}"
    Image.new("RGB", (400, 300)).save(path)
    limits = MediaLimits(max_pixels=400 * 300 - 1)
    with pytest.raises(MediaError, match="400×300 pixels exceed the limit of 119,999"):
        load_image(path, limits)
    assert "400×300 pixels exceed the limit of 119,999" in refusal(path, limits)


def test_the_time_to_read(clip: Path, tmp_path: Path) -> None:
    short = MediaLimits(max_read_s=1e-6)
    assert "takes more than 1e-06 s (max_read_s, --max-read-seconds)" in refusal(clip, short)
    assert "takes more than 1e-06 s" in refusal(animation(tmp_path / "a.gif", 3), short)


def test_the_clock_stands_still_while_frames_are_used(clip: Path) -> None:
    reader = open_video(clip, SamplingPlan(fps=10), limits=MediaLimits(max_read_s=1.5))
    for _ in reader.frames((56, 56)):
        time.sleep(0.2)  # twelve times


def test_the_clock() -> None:
    clock = ReadingClock("clip", MediaLimits(max_read_s=0.1))
    with clock:
        clock.check()
    time.sleep(0.15)
    clock.check()
    with clock:
        time.sleep(0.15)
        with pytest.raises(MediaError, match=r"clip: reading it takes more than 0\.1 s"):
            clock.check()


def test_pipes_and_programs(tmp_path: Path) -> None:
    for name in ("pipe.mp4", "pipe.png"):
        os.mkfifo(tmp_path / name)
        assert "this is a pipe" in refusal(tmp_path / name)
    program = tmp_path / "page.png"
    Image.fromarray(picture(0)).save(program, format="EPS")
    with pytest.raises(MediaError, match="EPS files are programs"):
        load_image(program)


@pytest.mark.parametrize("values", [{"max_pixels": 0}, {"max_read_s": float("nan")}, {"max_duration_s": -1.0}])
def test_limits_that_cannot_work(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be a number above 0"):
        MediaLimits(**values)  # type: ignore[arg-type]


def test_arrays_have_limits_too() -> None:
    with pytest.raises(MediaError, match="64×64 pixels"):
        open_video(np.zeros((2, 64, 64, 3), np.uint8), source_fps=1, limits=MediaLimits(max_pixels=4095))
