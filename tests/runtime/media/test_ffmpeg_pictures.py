"""Pictures that FFmpeg opens as one-frame streams, and films that are called pictures: each is what is in it."""

from __future__ import annotations

import importlib.util
import shutil
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from clips import picture, write_clip
from commands import run
from PIL import Image

from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.live.reader import LiveReader
from vl3edge.runtime.media.addresses import Fetched
from vl3edge.runtime.media.contents import format_of, media_kind
from vl3edge.runtime.media.discovery import expand
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.limits import MediaLimits
from vl3edge.runtime.media.signatures import PREFIX_BYTES, starts_as_picture
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.model import VideoLlama3

ISOLATED = MediaLimits(isolate=True)
# FFmpeg's encoder and the pixels it takes.
STILLS = {
    "exr": ("exr", "gbrpf32le"),
    "dpx": ("dpx", "rgb48be"),
    "jls": ("jpegls", "rgb24"),
    "pam": ("pam", "rgb24"),
    "pfm": ("pfm", "gbrpf32le"),
    "hdr": ("hdr", "gbrpf32le"),
    "xwd": ("xwd", "rgb24"),
}
JXL = b"\xff\x0a\xf8\x16" + bytes(60), b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl " + bytes(60)


def still(path: Path, style: str, number: int = 7, height: int = 64, width: int = 96) -> Path:
    """A picture written by FFmpeg, whatever the name says."""
    codec, pixels = STILLS[style]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg does not write {style}")
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.framerate = height, width, pixels, 25
    encoder.time_base = 1 / encoder.framerate
    frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24").reformat(format=pixels)
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))
    return path


def by_ffmpeg(path: Path, style: str) -> np.ndarray:
    """The picture as FFmpeg's decoder alone gives it."""
    decoder = av.CodecContext.create(STILLS[style][0], "r")
    return decoder.decode(av.Packet(path.read_bytes()))[0].to_ndarray(format="rgb24")


@pytest.mark.parametrize("name", ["still", "own suffix", "still.mp4", "still.jpg", "100%d.png"])
@pytest.mark.parametrize("style", STILLS)
def test_a_picture_that_ffmpeg_reads_is_a_picture(tmp_path: Path, style: str, name: str) -> None:
    path = still(tmp_path / (f"still.{style}" if name == "own suffix" else name), style)
    if style == "xwd" and path.suffix == ".mp4":
        pytest.skip("it has no signature")
    expected = by_ffmpeg(path, style)
    assert np.abs(expected.astype(int) - picture(7)).max() < 60  # it is the picture at all
    assert media_kind(path) == media_kind(path, ISOLATED) == "image"
    np.testing.assert_array_equal(load_image(path), expected)
    assert open_video(path).num_source_frames == open_video(path, limits=ISOLATED).num_source_frames == 1
    with pytest.raises(MediaError, match="this is a still picture"), LiveReader(str(path)) as reader:
        reader.take(timeout_s=5.0)


@pytest.mark.parametrize("style", ["exr", "dpx", "jls"])
def test_one_from_an_address_too(tmp_path: Path, style: str) -> None:
    path = still(tmp_path / "still", style)
    data = path.read_bytes()
    assert starts_as_picture(data[:PREFIX_BYTES])
    fetched = Fetched("http://host/still", data)
    assert media_kind(fetched) == "image"
    np.testing.assert_array_equal(load_image(fetched), by_ffmpeg(path, style))


@pytest.mark.parametrize("style", ["exr", "dpx"])
def test_a_rendered_sequence_is_a_video_and_other_pictures_are_pictures(tmp_path: Path, style: str) -> None:
    for number in range(4):
        still(tmp_path / f"shot.{number:04}.{style}", style, number)
    with pytest.warns(UserWarning, match="its 4 pictures are treated as the frames of one video"):
        assert expand([str(tmp_path)]) == [str(tmp_path)]
    assert open_video(tmp_path).num_source_frames == 4
    still(tmp_path / f"shot.0004.{style}", style, height=32)
    with pytest.warns(UserWarning, match="are treated as separate photographs"):
        assert len(expand([str(tmp_path)])) == 5


def test_damaged_and_oversized_ones_are_refused(tmp_path: Path) -> None:
    for style in ("dpx", "exr"):  # of some formats, FFmpeg shows what there is
        path = still(tmp_path / f"cut.{style}", style)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(MediaError, match=rf"cut\.{style}: a damaged \w+ picture; convert it to PNG or JPEG$"):
            load_image(path)
    with pytest.raises(MediaError, match=r"96×64 pixels exceed the limit of 100"):
        load_image(still(tmp_path / "a.exr", "exr"), MediaLimits(max_pixels=100))


@pytest.mark.parametrize("data", JXL, ids=["bare", "boxes"])
@pytest.mark.parametrize("name", ["a.jxl", "a.mp4", "a"])
def test_jpeg_xl_is_a_picture_that_says_what_it_needs(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert media_kind(tmp_path / name) == "image"
    assert format_of(tmp_path / name) == "JXL"
    has_reader = importlib.util.find_spec("pillow_jxl") or {"libjxl", "jpegxl"} & av.codecs_available
    message = "damaged" if has_reader else "a JPEG XL picture, which needs pillow-jxl-plugin: pip install"
    with pytest.raises(MediaError, match=message) as caught:
        load_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_jpeg_xl_with_its_plugin(tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    Image.fromarray(picture(7)).save(tmp_path / "a.png.jxl", "JXL", lossless=True)
    (tmp_path / "a.png.jxl").rename(tmp_path / "a")
    assert media_kind(tmp_path / "a") == "image"
    np.testing.assert_array_equal(load_image(tmp_path / "a"), picture(7))


FILMS = {"mpg": "mpeg2video", "mjpeg": "mjpeg", "m4v": "mpeg4", "h264": "libx264", "m2v": "mpeg2video", "avi": "mpeg4"}


@pytest.mark.parametrize("name", ["film.jpg", "film.png", "film.tif", "film.jxl", "film.exr", "film%03d.jpg", "film"])
@pytest.mark.parametrize("style", FILMS)
def test_small_films_named_as_pictures_are_films(tmp_path: Path, style: str, name: str) -> None:
    path = write_clip(tmp_path / f"film.{style}", range(6), codec=FILMS[style])
    expected = open_video(path)
    frames = expected.read().frames
    named = Path(shutil.move(path, tmp_path / name))
    assert media_kind(named) == media_kind(named, ISOLATED) == "video"
    reader = open_video(named)
    assert (reader.num_source_frames, reader.duration_s) == (expected.num_source_frames, expected.duration_s)
    np.testing.assert_array_equal(reader.read().frames, frames)


def jpeg(number: int, size: tuple[int, int] = (96, 64), **options: object) -> bytes:
    file = BytesIO()
    Image.fromarray(picture(number)).resize(size).save(file, "JPEG", **options)
    return file.getvalue()


def with_thumbnails(data: bytes, *held: bytes) -> bytes:
    """A JPEG with others in an APP1 segment, back to back, as makers' notes have them."""
    body = b"Exif\0\0" + b"".join(held)
    return data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


STILL_JPEGS = {
    "one": jpeg(0),
    "progressive": jpeg(0, progressive=True),
    "two thumbnails inside": with_thumbnails(jpeg(0), jpeg(1, (32, 24)), jpeg(2, (32, 24))),
    "a preview behind": jpeg(0) + jpeg(0, (48, 32)),
    "a film behind": jpeg(0) + b"\0\0\0\x18ftypmp42" + bytes(500),
}


@pytest.mark.parametrize("suffix", ["", ".jpg", ".mp4"])
@pytest.mark.parametrize("name", STILL_JPEGS)
def test_a_photograph_is_one_picture(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(STILL_JPEGS[name])
    assert media_kind(path) == "image"
    np.testing.assert_array_equal(load_image(path), np.asarray(Image.open(BytesIO(STILL_JPEGS[name]))))


def test_motion_jpeg_of_one_frame_is_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.mjpeg").write_bytes(jpeg(0))
    assert media_kind(tmp_path / "a.mjpeg") == "image"


@pytest.mark.parametrize("name", ["film", "film.jpg", "film.mjpeg"])
@pytest.mark.parametrize("between", [b"", bytes(37), b"\r\n"], ids=["close", "padded", "lines"])
def test_motion_jpeg_is_a_film(tmp_path: Path, name: str, between: bytes) -> None:
    """Large frames: further apart than FFmpeg and a look at the beginning reach."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    assert file.tell() > 1 << 20
    (tmp_path / name).write_bytes(between.join([file.getvalue()] * 3))
    assert media_kind(tmp_path / name) == "video"
    assert open_video(tmp_path / name).num_source_frames == 3


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(still(tmp_path / "a.exr", "exr"))
    for options in ([], ["--isolate"]):
        status, out, err = run(capsys, "caption", path, "--max-new-tokens", 3, *options)
        assert (status, out.count("\n")) == (0, 1), err
        assert "1 frame of" in err
    status, _, err = run(capsys, "ask", path, "-q", "What is it?", "--max-new-tokens", 3)
    assert status == 0, err
    model = VideoLlama3.load(backend="cpu", num_threads=1)
    assert model.encode(path).num_tokens == model.encode(load_image(path)).num_tokens
