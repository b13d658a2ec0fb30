"""Rates: of bare streams as their headers say, assumed where nothing says it, and given by whoever knows better."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import SHORT_GOP, every_frame, picture, write_clip
from PIL import Image

from vl3edge.runtime.cli.main import main
from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import ConfigError, MediaWarning
from vl3edge.runtime.live.reader import LiveReader
from vl3edge.runtime.live.source import SourceOptions
from vl3edge.runtime.media.limits import MediaLimits
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.model import VideoLlama3

QUARTERS = Fraction(1, 4)


def as_format(path: Path, name: str, codec: str, options: dict[str, str] | None = None) -> Path:
    """36 frames at 4 a second, in a format that is not the one of the ending."""
    with av.open(str(path), "w", format=name) as container:
        stream = container.add_stream(codec, rate=4)
        stream.width, stream.height = 96, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = options or {}
        for number in range(36):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = number, QUARTERS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


STATED: dict[str, Callable[[Path], Path]] = {
    "avc.h264": lambda p: as_format(p, "h264", "libx264", SHORT_GOP),
    "avc": lambda p: as_format(p, "h264", "libx264", SHORT_GOP),
    "hevc.265": lambda p: as_format(p, "hevc", "libx265", {"x265-params": "log-level=none"}),
    "asp.m4v": lambda p: as_format(p, "m4v", "mpeg4", {"bf": "2"}),
    "frames.y4m": lambda p: as_format(p, "yuv4mpegpipe", "wrapped_avframe"),
    "vp9.ivf": lambda p: as_format(p, "ivf", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
}
SILENT: dict[str, Callable[[Path], Path]] = {
    "frames.mjpeg": lambda p: as_format(p, "mjpeg", "mjpeg"),
    "frames.mjpg": lambda p: as_format(p, "mjpeg", "mjpeg"),
    "hevc.hevc": lambda p: as_format(p, "hevc", "libx265", {"x265-params": "log-level=none:vui-timing-info=0"}),
}


@pytest.mark.parametrize("name", STATED)
def test_a_stream_has_the_rate_of_its_own_headers(name: str, tmp_path: Path) -> None:
    path = STATED[name](tmp_path / name)
    reader = open_video(path)
    assert (reader.num_frames, reader.duration_s, reader.source_fps) == (9, 9.0, 4.0)
    assert reader.timestamps_s == tuple(float(second) for second in range(9))
    assert reader.warnings == ()
    expected = every_frame(path)
    for number, frame in enumerate(reader.frames()):
        np.testing.assert_array_equal(frame.pixels, expected[4 * number + 3], err_msg=f"second {number}")


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.parametrize("isolate", [False, True])
def test_what_is_assumed_is_told_and_can_be_said(name: str, isolate: bool, tmp_path: Path) -> None:
    path, limits = SILENT[name](tmp_path / name), MediaLimits(isolate=isolate)
    reader = open_video(path, limits=limits)
    assert (reader.num_frames, reader.duration_s) == (1, pytest.approx(36 / 25))
    with pytest.warns(
        MediaWarning, match=f"{name}: it has no timestamps: 25 frames per second are assumed.*--source-fps"
    ):
        list(reader.frames())
    told = open_video(path, SamplingPlan(source_fps=4.0), limits=limits)
    assert (told.num_frames, told.duration_s, told.source_fps, told.warnings) == (9, 9.0, 4.0, ())
    expected = every_frame(path)
    for number, frame in enumerate(told.frames()):
        np.testing.assert_array_equal(frame.pixels, expected[4 * number + 3], err_msg=f"second {number}")


def test_a_clock_that_is_overridden_is_told(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "slow.mp4", range(50), options=SHORT_GOP)
    reader = open_video(path, source_fps=10.0)
    assert (reader.num_frames, reader.duration_s) == (5, 5.0)
    with pytest.warns(MediaWarning, match="its timestamps say 25 frames .*; source_fps .10. is used instead"):
        list(reader.frames())
    assert open_video(path, source_fps=25.0).warnings == ()
    frames = [Image.new("RGB", (32, 32), (number, 0, 0)) for number in range(8)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=500)
    assert open_video(tmp_path / "a.gif").duration_s == 4.0
    assert open_video(tmp_path / "a.gif", source_fps=8.0).duration_s == 1.0


def folder_of(pictures: int, folder: Path) -> Path:
    folder.mkdir()
    for number in range(pictures):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    return folder


def test_folders_of_frames(tmp_path: Path) -> None:
    folder = folder_of(12, tmp_path / "frames")
    reader = open_video(folder)
    assert reader.duration_s == 4.0
    assert "3 frames per second are assumed" in reader.warnings[0]
    told = open_video(folder, SamplingPlan(source_fps=2.0))
    assert (told.duration_s, told.warnings) == (6.0, ())


def test_every_way_into_the_model(bundle: Path, tmp_path: Path) -> None:
    folder, plan = folder_of(8, tmp_path / "frames"), SamplingPlan(source_fps=2.0)
    model = VideoLlama3.load(bundle, num_threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MediaWarning)
        clip = model.encode(folder, plan)
        assert (clip.num_frames, clip.end_s) == (4, 4.0)
        assert model.begin(folder, plan).num_frames == model.open(folder, plan).num_frames == 4
        assert [clip.num_frames for clip in model.encode_all([folder, folder], plan)] == [4, 4]
        content = [{"type": "video", "video": str(folder)}, {"type": "text", "text": "What?"}]
        model.generate([{"role": "user", "content": content}], sampling=plan)
    array = np.stack([picture(number) for number in range(8)])
    assert model.encode(array).num_frames == 8  # sampled already
    assert model.encode(array, plan).num_frames == 4


def test_the_commands(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = SILENT["frames.mjpeg"](tmp_path / "frames.mjpeg")
    common = ["-m", str(bundle), "--source-fps", "4", "--max-new-tokens", "4"]
    assert main(["caption", str(path), *common]) == 0
    assert "9 frames" in capsys.readouterr().err
    assert main(["ask", str(path), "-q", "What?", *common]) == 0
    assert "9 frames" in capsys.readouterr().err
    assert main(["caption", str(path), "-m", str(bundle), "--source-fps", "0"]) == 2
    assert "source_fps must be a positive number" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "fps"), [("avc.h264", None), ("frames.mjpeg", 4.0)])
def test_a_watch_plays_bare_streams_at_their_rate(name: str, fps: float | None, tmp_path: Path) -> None:
    path = {**STATED, **SILENT}[name](tmp_path / name)
    times = []
    with LiveReader(str(path), options=SourceOptions(source_fps=fps), speed=20.0) as reader:
        while not reader.ended:
            frame = reader.take(timeout_s=5.0)
            times += [] if frame is None else [frame.timestamp_s]
    assert reader.counts.sampled == 9
    assert times[-1] == 8.0


def test_a_watch_tells_what_it_assumes(tmp_path: Path) -> None:
    path = SILENT["frames.mjpeg"](tmp_path / "frames.mjpeg")
    with LiveReader(str(path), speed=20.0) as reader:
        while not reader.ended:
            reader.take(timeout_s=5.0)
    assert "25 frames per second are assumed" in reader.events()[0].message
    assert reader.counts.sampled == 2


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), True, "4"])
def test_rates_that_there_cannot_be(fps: object) -> None:
    with pytest.raises(ConfigError, match="source_fps must be"):
        SamplingPlan(source_fps=fps)  # type: ignore[arg-type]


@pytest.mark.parametrize(("suffix", "rate", "height"), [(".dv", 25, 576), (".dv", Fraction(30000, 1001), 480)])
def test_dv_has_frames_and_not_ticks_for_its_rate(
    tmp_path: Path, suffix: str, rate: Fraction | int, height: int
) -> None:
    path = tmp_path / f"tape{suffix}"
    with av.open(str(path), "w", format="dv") as container:
        stream = container.add_stream("dvvideo", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 720, height, "yuv420p" if height == 576 else "yuv411p"
        for number in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, height, 720), format="rgb24")))
        container.mux(stream.encode(None))
    reader = open_video(path, SamplingPlan(rule="index", fps=float(rate)))
    assert (reader.num_source_frames, reader.source_fps) == (6, pytest.approx(float(rate)))
    assert reader.timestamps_s == pytest.approx([number / float(rate) for number in range(6)])
