"""Folders on the command line: photographs or frames, links, files without a suffix; what was assumed is said."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from clips import picture
from commands import run
from pictures import write_animation, write_picture
from PIL import Image

from vl3edge.runtime.errors import MediaWarning
from vl3edge.runtime.media.discovery import expand
from vl3edge.runtime.media.limits import MediaLimits
from vl3edge.runtime.media.photographs import have_running_numbers, why_photographs
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.model import VideoLlama3

FILM = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
ISOLATED = MediaLimits(isolate=True)


def frames_in(folder: Path, count: int = 4, name: str = "frame_{:03}.png", **options: object) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name.format(n) for n in range(count)]
    for n, path in enumerate(paths):
        Image.fromarray(picture(n)).save(path, **options)
    return paths


def dated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x8769] = {0x9003: "2024:01:01 12:30:00"}
    return exif


def listed(*arguments: object, kind: str | None = None, limits: MediaLimits = MediaLimits()) -> list[str]:  # noqa: B008
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)
        return expand(map(str, arguments), kind, limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [MediaLimits(), ISOLATED], ids=["here", "isolated"])
def test_frames_are_one_clip(tmp_path: Path, limits: MediaLimits) -> None:
    pictures = frames_in(tmp_path / "frames")
    with pytest.warns(
        MediaWarning, match=r"frames: its 4 pictures .* 3 per second \(change with --source-fps.*--as image"
    ):
        assert expand([str(tmp_path / "frames")], None, limits) == [str(tmp_path / "frames")]
    assert listed(tmp_path / "frames", kind="image", limits=limits) == list(map(str, pictures))
    assert listed(tmp_path / "frames", kind="video", limits=limits) == [str(tmp_path / "frames")]


def photographs(folder: Path, why: str) -> list[Path]:
    if why == "sizes differ":
        paths = frames_in(folder, name="IMG_{:03}.jpg")
        Image.fromarray(picture(1, 96, 64)).save(paths[1])
    elif why == "not numbered":
        folder.mkdir()
        paths = [write_picture(folder / name, "JPEG") for name in ("anna.jpg", "beach.jpg", "cat.jpg")]
    elif why == "camera dated":
        paths = frames_in(folder, name="IMG_{:03}.jpg", exif=dated())
    elif why == "animations":
        paths = frames_in(folder, name="{}.webp")
        write_animation(paths[0], "WEBP", [100, 100])
    else:
        paths = frames_in(folder, 1)
    return paths


@pytest.mark.parametrize("limits", [MediaLimits(), ISOLATED], ids=["here", "isolated"])
@pytest.mark.parametrize("why", ["sizes differ", "not numbered", "camera dated", "animations", "only one"])
def test_photographs_are_clips_of_their_own(tmp_path: Path, why: str, limits: MediaLimits) -> None:
    folder = tmp_path / "photos"
    paths = photographs(folder, why)
    assert set(why.split()) <= set((why_photographs(paths, limits) or "").split())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert expand([str(folder)], None, limits) == list(map(str, paths))
    assert [w.message.args[0].split(";")[1] for w in said] == (  # type: ignore[union-attr]
        [" use --as video if they are the frames of one video"] if len(paths) > 1 else []
    )
    assert listed(folder, kind="video") == [str(folder)]
    with pytest.warns(MediaWarning, match="photographs"):
        VideoLlama3.load(backend="cpu", num_threads=1).open(folder)


def test_running_numbers() -> None:
    for stems in (["1", "2", "10"], ["frame_0001", "frame_0002"], ["f_01_t_0.3", "f_02_t_0.7"], ["a 8", "a 9", "a 10"]):
        assert have_running_numbers(stems)
    for stems in (["a", "b"], ["a1", "b2"], ["2024-01-01 a", "2024-01-01 b"], ["1", "01"], ["x1", "x2", "xy"]):
        assert not have_running_numbers(stems)


def test_each_folder_is_what_its_own_files_say(tmp_path: Path) -> None:
    shots = [tmp_path / "set" / name for name in ("shot1", "shot2")]
    for shot in shots:
        frames_in(shot)
    stills = photographs(tmp_path / "set" / "stills", "sizes differ")
    (tmp_path / "set" / "films").mkdir()
    shutil.copy(FILM, tmp_path / "set" / "films" / "a.mp4")
    write_picture(tmp_path / "set" / "films" / "poster.png", "PNG")
    (tmp_path / "set" / "notes.txt").write_text("P5 nothing\n")
    expected = {*shots, *stills, tmp_path / "set" / "films" / "a.mp4", tmp_path / "set" / "films" / "poster.png"}
    assert set(map(Path, listed(tmp_path / "set"))) == expected
    assert listed(tmp_path / "set" / "films", kind="image") == [str(tmp_path / "set" / "films" / "poster.png")]


def test_pictures_without_a_suffix_are_found_in_folders(tmp_path: Path) -> None:
    for n, style in enumerate(("PNG", "JPEG", "WEBP", "TIFF")):
        write_picture(tmp_path / f"{n}", style, n)
    (tmp_path / "5").write_text("BM is how a bitmap begins")
    assert open_video(tmp_path).num_source_frames == 4
    assert listed(tmp_path, kind="image") == [str(tmp_path / f"{n}") for n in range(4)]


def test_folders_behind_links_are_followed_once(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    frames_in(outside / "a" / "deep")
    top = tmp_path / "top"
    films = top / "films"
    films.mkdir(parents=True)
    shutil.copy(FILM, films / "1.mp4")
    (top / "again").symlink_to(films)
    (top / "also").symlink_to(outside)
    (top / "also too").symlink_to(outside / "a")
    (films / "up").symlink_to(top)
    (outside / "back").symlink_to(top, target_is_directory=True)
    (top / "broken").symlink_to(tmp_path / "nowhere")
    assert sorted(listed(top)) == sorted([str(films / "1.mp4"), str(top / "also" / "a" / "deep")])
    assert listed(top / "again") == [str(top / "again" / "1.mp4"), str(top / "again" / "up" / "also" / "a" / "deep")]


def test_a_folder_of_photographs_is_captioned_and_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out.jsonl"
    paths = photographs(folder, "not numbered")
    options = ["-o", out, "--backend", "cpu", "--threads", "1", "--max-new-tokens", "2"]
    status, _, err = run(capsys, "caption", folder, *options)
    assert (status, err.count("treated as separate photographs")) == (0, 1)
    status, _, err = run(capsys, "caption", folder, *options, "--resume")
    assert (status, "3 of 3 already have a record" in err) == (0, True)
    assert [json.loads(line)["media"] for line in out.read_text().splitlines()] == list(map(str, paths))
    status, _, err = run(capsys, "caption", folder, "--as", "video", "--sidecar", *options[2:])
    assert (status, "treated" in err) == (0, False)
    assert (tmp_path / "photos.txt").exists()


def test_frames_are_as_pillow_gives_them(tmp_path: Path) -> None:
    paths = frames_in(tmp_path / "frames", 3, "{}.jp2", irreversible=False)
    frames = [np.asarray(Image.open(path)) for path in paths]
    np.testing.assert_array_equal(open_video(tmp_path / "frames").read().frames, frames[2:])
