"""What a file is told by what is in it: pictures, animations and films under any name."""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import picture, write_clip
from commands import run
from pictures import ANIMATIONS, FORMATS, shown, write_animation, write_picture
from PIL import Image

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.media.contents import format_of, media_kind
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.limits import MediaLimits
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.model import VideoLlama3

FIXTURES = Path(__file__).parents[2] / "fixtures"
GRID, FILM = FIXTURES / "grid.heif", FIXTURES / "demo_clip.mp4"
ISOLATED = MediaLimits(isolate=True)


@pytest.fixture(scope="module")
def model() -> VideoLlama3:
    return VideoLlama3.load(backend="cpu", num_threads=1)


@pytest.mark.parametrize("name", ["picture", "picture.mp4", "picture.jpg", "picture.png", "a picture: of 1.5 m"])
@pytest.mark.parametrize("style", FORMATS)
def test_pictures_are_pictures_under_any_name(tmp_path: Path, style: str, name: str) -> None:
    path = write_picture(tmp_path / name, style)
    expected = shown(path)
    assert media_kind(path) == "image"
    np.testing.assert_array_equal(load_image(path), expected)
    video = open_video(path)
    assert (video.num_frames, video.timestamps_s) == (1, (0.0,))
    np.testing.assert_array_equal(video.read().frames[0], expected)


@pytest.mark.parametrize("limits", [MediaLimits(), ISOLATED], ids=["here", "isolated"])
def test_films_are_films_under_any_name(tmp_path: Path, limits: MediaLimits) -> None:
    for name in ("film", "film.jpg", "film.tga", "film.png"):
        shutil.copy(FILM, tmp_path / name)
        assert media_kind(tmp_path / name, limits) == "video"
        assert open_video(tmp_path / name, limits=limits).num_source_frames == 36


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".mpg", ".flv", ".webm", ".mjpeg", ".m2v", ".y4m"])
def test_no_film_is_taken_for_a_picture(tmp_path: Path, suffix: str) -> None:
    codec = {".mpg": "mpeg2video", ".m2v": "mpeg2video", ".webm": "libvpx", ".mjpeg": "mjpeg", ".y4m": "rawvideo"}
    path = write_clip(tmp_path / f"film{suffix}", range(6), codec=codec.get(suffix, "libx264"))
    shutil.copy(path, tmp_path / "film")
    shutil.copy(path, tmp_path / "film.tga")
    for name in (path, tmp_path / "film", tmp_path / "film.tga"):
        assert format_of(name) is None
        assert media_kind(name) == "video"


@pytest.mark.parametrize(
    "header",
    [
        b"\0\0\1\xba" + bytes(20),  # MPEG: a palette that is not there
        b"\0\0\0\x20ftypisom" + bytes(20),
        struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 64, 64, 24, 0) + bytes(99),  # TGA, were it longer
    ],
)
def test_tga_needs_more_than_a_header(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "some").write_bytes(header)
    assert format_of(tmp_path / "some") is None


def test_tga_without_footer_and_suffix(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "old", "TGA")
    path.write_bytes(path.read_bytes().removesuffix(b"TRUEVISION-XFILE.\0")[:-8])
    np.testing.assert_array_equal(load_image(path), picture(7))
    assert media_kind(path) == "image"


@pytest.mark.parametrize("name", ["moving", "moving.jpg", "moving.png", "moving.mp4"])
@pytest.mark.parametrize("style", ANIMATIONS)
def test_animations_are_videos_under_any_name(tmp_path: Path, style: str, name: str) -> None:
    path = write_animation(tmp_path / name, style, [400, 1000, 700, 300])
    assert media_kind(path) == media_kind(path, ISOLATED) == "video"
    reader = open_video(path, SamplingPlan(fps=2.0))
    assert (reader.num_source_frames, reader.duration_s) == (4, 2.4)
    # Shown from 0, 0.4, 1.4 and 2.1 s on: the last before 0.5, 1, 1.5 and 2 s.
    np.testing.assert_array_equal(reader.read().frames, [shown(path, n) for n in (1, 1, 2, 2)])
    np.testing.assert_array_equal(load_image(path), shown(path))


@pytest.mark.parametrize("style", ANIMATIONS)
def test_animations_of_one_frame_are_pictures(tmp_path: Path, style: str) -> None:
    path = write_animation(tmp_path / "still.gif", style, [500])
    assert media_kind(path) == "image"


def test_the_picture_for_old_readers_is_not_part_of_an_animation(tmp_path: Path) -> None:
    path = write_animation(tmp_path / "a.png", "PNG", [400, 300, 0], default_image=True)
    reader = open_video(path, SamplingPlan(fps=10.0))
    assert (reader.num_source_frames, reader.duration_s) == (2, pytest.approx(0.7))
    np.testing.assert_array_equal(reader.read().frames[[0, -1]], [shown(path, 1), shown(path, 2)])
    np.testing.assert_array_equal(load_image(path), shown(path, 0))
    one = write_animation(tmp_path / "b.png", "PNG", [400, 300], default_image=True)
    assert media_kind(one) == "image"


def test_pages_are_no_animation(tmp_path: Path) -> None:
    path = write_animation(tmp_path / "pages.tif", "TIFF", [1, 1])
    assert media_kind(path) == "image"
    assert open_video(path).num_source_frames == 1


def test_pictures_back_to_back_are_a_film(tmp_path: Path) -> None:
    data = b"".join(write_picture(tmp_path / "a.jpg", "JPEG", n).read_bytes() for n in range(4))
    (tmp_path / "film").write_bytes(data)
    assert media_kind(tmp_path / "film") == "video"
    first, second = (Image.fromarray(picture(n)) for n in (1, 2))
    first.save(tmp_path / "stereo.jpg", format="MPO", save_all=True, append_images=[second])
    assert media_kind(tmp_path / "stereo.jpg") == "image"


def test_damaged_pictures_are_called_that(tmp_path: Path) -> None:
    for style in ("PNG", "GIF", "WEBP", "JPEG"):
        path = write_picture(tmp_path / "cut", style)
        path.write_bytes(path.read_bytes()[:60])
        assert media_kind(path) == "image"
        with pytest.raises(MediaError, match="cut: "):
            load_image(path)


@pytest.mark.parametrize("name", ["grid.heif", "grid", "grid.mp4", "grid.jpg"])
def test_tiles_of_a_heif_picture_are_one_picture(tmp_path: Path, name: str) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    path = Path(shutil.copy(GRID, tmp_path / name))
    assert media_kind(path) == media_kind(path, ISOLATED) == "image"
    expected = np.asarray(pillow_heif.open_heif(path).to_pillow().convert("RGB"))
    assert expected.shape == (112, 224, 3)
    np.testing.assert_array_equal(load_image(path), expected)
    np.testing.assert_array_equal(open_video(path, limits=ISOLATED).read().frames[0], expected)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heif_pictures_are_upright(tmp_path: Path, orientation: int) -> None:
    pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = load_image(write_picture(tmp_path / "plain.heic", "HEIF"))
    turned = load_image(write_picture(tmp_path / "turned.heic", "HEIF", exif=exif.tobytes()))
    turns = {1: 0, 3: 2, 6: 3, 8: 1}  # EXIF 2.3, anticlockwise
    np.testing.assert_array_equal(turned, np.rot90(stored, turns[orientation]))


def test_a_heif_picture_without_its_reader_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in ("a.heic", "b", "c.mp4"):
        shutil.copy(GRID, tmp_path / name)
        with pytest.raises(MediaError, match=r"pip install 'vl3edge\[heif\]'"):
            load_image(tmp_path / name)
        with pytest.raises(MediaError, match=r"pip install 'vl3edge\[heif\]'"):
            open_video(tmp_path / name)
    status, _, err = run(capsys, "caption", tmp_path, "--backend", "cpu", "--threads", "1")
    assert status == 1
    assert err.count("pillow-heif") == 3
    assert "no pictures" not in err


def test_an_avif_picture_without_its_reader_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(struct.pack(">I", 24) + b"ftypavif" + bytes(4) + b"avifmif1" + bytes(99))
    monkeypatch.setattr("PIL.features.check", lambda name: name != "avif")
    assert media_kind(tmp_path / "a.jpg") == "image"
    with pytest.raises(MediaError, match=r"needs Pillow 11\.3 or later: pip install -U pillow"):
        load_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("brand", ["hevc", "msf1"])
def test_a_sequence_of_hevc_pictures_is_a_film(tmp_path: Path, brand: str) -> None:
    path = write_clip(tmp_path / "burst.mp4", range(5), muxer={"brand": brand})
    path = path.rename(tmp_path / "burst.heics")
    assert path.read_bytes()[8:12] == brand.encode()
    assert media_kind(path) == "video"
    assert open_video(path).num_source_frames == 5


def test_the_model_sees_pictures_as_pictures(tmp_path: Path, model: VideoLlama3) -> None:
    paths = [write_picture(tmp_path / name, style) for name, style in (("a", "TGA"), ("b.mp4", "JPEG"))]
    moving = write_animation(tmp_path / "c.jpg", "PNG", [1000, 1000, 1000])
    assert [clip.kind for clip in model.encode_all([*paths, moving, FILM])] == ["image", "image", "video", "video"]
    assert model.encode(moving, kind="image").num_frames == 1
    assert [clip.kind for clip in model.encode_all(paths, kind="video")] == ["video", "video"]
    content = [{"type": "image", "image": moving}, {"type": "video", "video": paths[0]}, {"type": "text", "text": "?"}]
    items = model._encoder.begin_all([(item["type"], item[item["type"]]) for item in content[:2]], None, None)
    assert [(item.kind, item.num_frames) for item in items] == [("image", 1), ("video", 1)]


def test_as_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    moving = write_animation(tmp_path / "moving.webp", "WEBP", [1000] * 4)
    still = write_picture(tmp_path / "still", "PNG")
    options = ["--backend", "cpu", "--threads", "1", "--max-new-tokens", "2"]
    for path, kind, frames in [(moving, None, 4), (moving, "image", 1), (still, None, 1), (still, "video", 1)]:
        chosen = ["--as", kind] if kind else []
        status, _, err = run(capsys, "caption", path, *chosen, *options)
        assert (status, f"{frames} frame" in err) == (0, True)
        status, _, err = run(capsys, "ask", path, "-q", "What?", *chosen, *options)
        assert (status, f"{frames} frame" in err) == (0, True)
        status, _, err = run(capsys, "inspect", path, "-o", tmp_path / "report", *chosen)
        assert status == 0
        assert ("sampled" in err) == (kind == "video" or (kind is None and path is moving)), err
    assert run(capsys, "caption", FILM, "--as", "image", *options)[0] == 1


@pytest.mark.parametrize("style", ["PNG", "TGA", "WEBP"])
def test_a_picture_is_not_watched(tmp_path: Path, style: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_picture(tmp_path / "still.mp4", style)
    status, _, err = run(capsys, "watch", path, "-q", "What?", "--backend", "cpu", "--threads", "1")
    assert status == 1
    assert "still.mp4: this is a still picture" in err
