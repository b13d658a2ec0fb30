"""`vl3edge caption` over folders of clips and long videos, as someone uses it who leaves it alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from extras import needs_parquet
from PIL import Image
from test_subtitles import as_played

from vl3edge.models.demo.clips import encode_mp4, write_clip
from vl3edge.models.demo.questions import ask_video
from vl3edge.models.demo.render import HELD_OUT_SEED, random_scene, source_frames
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.files import LockedFile
from vl3edge.runtime.model import VideoLlama3


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Clips and their right captions."""
    folder = tmp_path_factory.mktemp("stock")
    return {path: ask_video(write_clip(path, n), "caption").answer for n in range(4) if (path := folder / f"{n}.mp4")}


@pytest.fixture
def clips(stock: dict[Path, str], tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for path in stock:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def right(stock: dict[Path, str]) -> dict[str, str]:
    return {path.name: caption for path, caption in stock.items()}


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[int | None]]:
    """Scenes of 9 s one after the other, what each shows, and when it stops on the video's clock."""
    scenes = [random_scene(HELD_OUT_SEED + seed) for seed in range(200)]
    scenes = [scene for scene in scenes if scene.frames == 9 and scene.fps == 4][:5]
    frames = np.concatenate([source_frames(scene, 0.0, 0) for scene in scenes])
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    path.write_bytes(encode_mp4(frames, 4, preset="veryfast", repeatable=True))
    stops = [None if scene.stop_time is None else 9 * k + scene.stop_time for k, scene in enumerate(scenes)]
    return path, [ask_video(scene, "caption").answer for scene in scenes], stops


def caption(*arguments: object) -> int:
    return main(["caption", *map(str, arguments), "--threads", "1", "--backend", "cpu"])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def captions(path: Path) -> dict[str, str]:
    found = records(path)
    result = {Path(record["media"]).name: str(record.get("caption")) for record in found}
    assert len(result) == len(found)
    return result


@pytest.mark.parametrize("batch", [1, 3])
def test_a_run_that_broke_off_is_continued(clips: Path, right: dict[str, str], tmp_path: Path, batch: int) -> None:
    out = tmp_path / "out.jsonl"
    assert caption(clips / "1.mp4", "-o", out) == 0
    assert caption(clips, "-o", out, "--resume", "--batch", batch) == 0
    assert captions(out) == right
    before = out.read_bytes()
    assert caption(clips, "-o", out, "--resume") == 0
    assert out.read_bytes() == before


def test_failed_clips_are_tried_again_when_asked(
    clips: Path, right: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    whole = (clips / "2.mp4").read_bytes()
    (clips / "2.mp4").write_bytes(b"damaged")
    arguments = (clips, tmp_path / "later.mp4", tmp_path / "later*.mp4", "-o", out)
    assert caption(*arguments) == 1
    assert "3 captioned, 3 failed, 0 skipped" in capsys.readouterr().err
    errors = {Path(r["media"]).name: r["error"] for r in records(out) if "error" in r}
    assert set(errors) == {"2.mp4", "later.mp4", "later*.mp4"}
    assert all(name in error for name, error in errors.items())
    assert caption(*arguments, "--resume") == 1
    assert "0 captioned, 0 failed, 6 skipped (3 failed before; --retry-failed retries them)" in capsys.readouterr().err
    (clips / "2.mp4").write_bytes(whole)
    shutil.copy(clips / "1.mp4", tmp_path / "later.mp4")
    shutil.copy(clips / "1.mp4", tmp_path / "later2.mp4")
    assert caption(*arguments, "--retry-failed") == 0
    assert captions(out) == {**right, "later.mp4": right["1.mp4"], "later2.mp4": right["1.mp4"]}


def test_one_clip_with_several_names_is_captioned_once(
    clips: Path, right: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("clips", "./clips", clips, "clips/1.mp4", "clips/../clips/1.mp4", "clips/*.mp4")
    assert caption(*names, "-o", "out.jsonl") == 0
    assert captions(tmp_path / "out.jsonl") == right
    assert caption(*reversed(names), "-o", "out.jsonl", "--resume") == 0
    assert captions(tmp_path / "out.jsonl") == right


def test_a_clip_that_vanishes_costs_its_own_record(
    clips: Path, right: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    real = VideoLlama3.open

    def vanishing(self: VideoLlama3, media: Any, *arguments: Any, **options: Any) -> Any:
        if str(media).endswith("1.mp4"):
            os.unlink(media)
        if str(media).endswith("2.mp4"):
            raise ZeroDivisionError("a mistake of ours")
        return real(self, media, *arguments, **options)

    monkeypatch.setattr(VideoLlama3, "open", vanishing)
    assert caption(clips, "-o", out) == 1
    errors = {Path(r["media"]).name: r["error"] for r in records(out) if "error" in r}
    assert "no such file" in errors["1.mp4"]
    assert "ZeroDivisionError: a mistake of ours" in errors["2.mp4"]
    assert {name: text for name, text in captions(out).items() if name not in errors} == {
        name: right[name] for name in ("0.mp4", "3.mp4")
    }


def test_a_second_run_on_the_same_output_is_refused(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("out.jsonl", "out.txt"):
        other = LockedFile(tmp_path / name)
        assert caption(clips, "-o", tmp_path / name, *(["--resume"] if name == "out.jsonl" else [])) == 1
        assert "another process is writing to it" in capsys.readouterr().err.splitlines()[-1]
        other.close()


@pytest.mark.parametrize(
    "name", ["out.jsonl", "out.txt", "out.srt", "out.vtt", pytest.param("out.parquet", marks=needs_parquet)]
)
def test_a_file_that_exists_is_not_lost(clips: Path, name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    out.write_text("precious\n")
    assert caption(clips / "1.mp4", "-o", out) in (1, 2)
    assert caption(clips / "1.mp4", "-o", out, "--force", "-m", tmp_path / "no bundle") == 1
    assert out.read_text() == "precious\n"
    assert caption(clips / "1.mp4", "-o", out, "--force") == 0
    assert b"precious" not in out.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} <= {"clips", name, "out.parquet.jsonl"}


@pytest.mark.parametrize("name", ["out.jsonl", "out.txt", pytest.param("out.parquet", marks=needs_parquet)])
def test_a_bundle_that_is_none_leaves_no_output(clips: Path, tmp_path: Path, name: str) -> None:
    assert caption(clips, "-o", tmp_path / name, "-m", tmp_path / "nothing") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption(clips, "-o", "/dev/full", "--format", "jsonl") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "vl3edge: error: /dev/full: No space left on device"


def test_sidecars(clips: Path, right: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    (clips / "2.txt").write_text("somebody's own notes")
    assert caption(clips, "--sidecar") == 2
    assert "--resume skips" in capsys.readouterr().err
    assert caption(clips, "--sidecar", "--resume") == 0
    texts = {path.with_suffix(".mp4").name: path.read_text().rstrip("\n") for path in clips.glob("*.txt")}
    assert texts == {**right, "2.mp4": "somebody's own notes"}
    assert caption(clips / "2.mp4", "--sidecar", "--force") == 0
    assert (clips / "2.txt").read_text() == right["2.mp4"] + "\n"
    assert caption(clips, "--sidecar", ".caption.json", "--format", "jsonl") == 0
    assert json.loads((clips / "1.caption.json").read_text())["caption"] == right["1.mp4"]
    assert not [path for path in clips.iterdir() if path.name.startswith(".")]


def test_a_sidecar_that_cannot_be_written_costs_its_clip_only(
    clips: Path, right: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "1.mp4").rename(clips / f"1{'x' * 250}.mp4")
    assert caption(clips, "--sidecar", ".caption") == 1
    assert "3 captioned, 1 failed" in capsys.readouterr().err
    assert {path.stem for path in clips.glob("*.caption")} == {"0", "2", "3"}
    assert caption(clips, "--sidecar") == 0
    assert (clips / f"1{'x' * 250}.txt").read_text().rstrip("\n") == right["1.mp4"]


def test_sidecars_that_cannot_be(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(clips.iterdir())
    for arguments, message in [
        (["--sidecar", ".mp4"], "could be overwritten"),
        (["--sidecar", "txt"], "not 'txt'"),
        (["--sidecar", ".a/b"], "not '.a/b'"),
        (["--sidecar", "-o", "x"], "--sidecar and -o are mutually exclusive"),
        (["--sidecar", "--format", "parquet"], "not parquet"),
        (["rtsp://camera/1", "--sidecar"], "is not a file"),
    ]:
        assert caption(clips, *arguments) == 2
        assert message in capsys.readouterr().err
    frames = clips / "1"  # a folder has no stem: its file is 1.txt
    frames.mkdir()
    for number in (1, 2):
        Image.fromarray(np.zeros((112, 112, 3), np.uint8)).save(frames / f"{number}.png")
    shutil.copy(clips / "1.mp4", clips / "1.txt")
    assert caption(frames, clips / "1.txt", "--sidecar", "--force") == 2
    assert "1.txt is a clip" in capsys.readouterr().err
    assert sorted(clips.iterdir()) == sorted([*before, frames, clips / "1.txt"])


PAIRS = {  # names, their files, and how many more than the first few are told as a number
    "a photo and its film": (["a.jpg", "a.mp4"], {"a.jpg.txt", "a.mp4.txt"}, 0),
    "three": (["a.jpg", "a.mkv", "a.mp4"], {"a.jpg.txt", "a.mkv.txt", "a.mp4.txt"}, 0),
    "a whole name that is a stem": (["a.jpg", "a.mp4", "a.mp4.mkv"], {"a.jpg.txt", "a.mp4.txt", "a.mp4.mkv.txt"}, 1),
    "two pairs": (["a.jpg", "a.mp4", "b.jpg", "b.mp4"], {f"{n}.{e}.txt" for n in "ab" for e in ("jpg", "mp4")}, 2),
}


@pytest.mark.parametrize("case", PAIRS)
def test_clips_of_one_stem_have_their_whole_names(
    clips: Path, right: dict[str, str], case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, files, others = PAIRS[case]
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in names:
        if name.endswith(".jpg"):
            Image.fromarray(np.full((112, 112, 3), 90, np.uint8)).save(folder / name)
        else:
            shutil.copy(clips / "1.mp4", folder / name)
    shutil.copy(clips / "0.mp4", folder / "alone.mp4")
    assert caption(folder, "--sidecar") == 0
    written = {path.name: path.read_text() for path in folder.glob("*.txt")}
    assert set(written) == {*files, "alone.txt"}
    assert written["alone.txt"] == right["0.mp4"] + "\n"
    assert written["a.mp4.txt"] == right["1.mp4"] + "\n"
    said = [line for line in capsys.readouterr().err.splitlines() if "would belong to more than one clip" in line]
    assert len(said) == 1
    assert all(name in said[0] for name in names[:2])
    assert said[0].endswith(f", and so on for {others} more") == (others > 0)
    assert caption(folder, "--sidecar", "--resume") == 0
    assert f"{len(names) + 1} of {len(names) + 1} already have a record" in capsys.readouterr().err


DOTTED = {
    "versions": (["v1.2.mp4", "v1.3.mp4"], {"v1.2.txt", "v1.3.txt"}),
    "versions without suffix": (["v1.2", "v1.3"], {"v1.2.txt", "v1.3.txt"}),
    "one without suffix": (["v1.2", "v1.2.mp4"], {"v1.txt", "v1.2.txt"}),
    "two films": (["a.b.mp4", "a.b.mkv", "a.c.mp4"], {"a.b.mp4.txt", "a.b.mkv.txt", "a.c.txt"}),
}


@pytest.mark.parametrize("case", DOTTED)
def test_names_with_dots_have_files_of_their_own(clips: Path, case: str, tmp_path: Path) -> None:
    names, files = DOTTED[case]
    for name in names:
        shutil.copy(clips / "1.mp4", tmp_path / name)
    media = [tmp_path / name for name in names]
    assert caption(*media, "--sidecar") == 0
    assert {path.name for path in tmp_path.glob("*.txt")} == files
    assert caption(*media, "--sidecar", "--resume") == 0


def test_a_sidecar_never_is_a_clip(clips: Path, right: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(clips / "1.mp4", tmp_path / "a.txt")
    shutil.copy(clips / "0.mp4", tmp_path / "a.mp4")
    assert caption(tmp_path / "a.txt", tmp_path / "a.mp4", "--sidecar", "--force") == 0
    assert (tmp_path / "a.txt").read_bytes() == (clips / "1.mp4").read_bytes()
    assert (tmp_path / "a.txt.txt").read_text() == right["1.mp4"] + "\n"
    assert (tmp_path / "a.mp4.txt").read_text() == right["0.mp4"] + "\n"


def test_a_name_that_is_nothing_costs_itself_only(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption(clips, "-", "gone.mp4", "--sidecar") == 1
    assert caption(clips, "-", "gone.mp4", "--sidecar", "--resume") == 1
    out = capsys.readouterr()
    assert "-: media cannot be read from stdin" in out.err
    assert "gone.mp4: there is no such file" in out.err
    assert len(list(clips.glob("*.txt"))) == 4


@pytest.mark.parametrize("style", ["srt", "vtt"])
def test_a_long_video_becomes_subtitles(
    long_video: tuple[Path, list[str], list[int | None]], style: str, tmp_path: Path
) -> None:
    video, right, _ = long_video
    out = tmp_path / f"out.{style}"
    assert caption(video, "--segment", "9", "-o", out, "--batch", "2") == 0
    assert as_played(out) == [(9.0 * k, 9.0 * k + 9.0, text) for k, text in enumerate(right)]
    assert list(tmp_path.iterdir()) == [out]
    before = out.stat().st_mtime_ns
    assert caption(video, "--segment", "9", "-o", out, "--resume") == 0
    assert out.stat().st_mtime_ns == before
    shutil.copy(video, tmp_path)
    assert caption(tmp_path / "long.mp4", "--segment", "9", "--sidecar", "--format", style) == 0
    assert (tmp_path / f"long.{style}").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("style", ["srt", "vtt"])
@pytest.mark.parametrize(("begin", "length"), [(5.0, 0.1), (5.0, 0.37), (5.9, 0.01), (0.0, 5.0)])
def test_cues_of_tiny_segments_follow_one_another(
    clips: Path, style: str, begin: float, length: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = 6.0  # of the film
    options = ["--start", begin, "--segment", length]
    out = tmp_path / f"out.{style}"
    assert caption(clips / "0.mp4", *options, "-o", out, "--max-new-tokens", "1", "--batch", "4") == 0
    capsys.readouterr()
    assert caption(clips / "0.mp4", *options, "--format", style, "--max-new-tokens", "1") == 0
    streamed = tmp_path / f"streamed.{style}"
    streamed.write_text(capsys.readouterr().out)
    for cues in (as_played(out), as_played(streamed)):
        ends = [begin, *(cue[1] for cue in cues)]
        assert [cue[0] for cue in cues] == pytest.approx(ends[:-1], abs=1e-6)
        assert ends == sorted(set(ends))
        assert ends[-1] == pytest.approx(end, abs=1e-6)
        assert len(cues) == round((end - begin) / length)


def test_segments_are_continued(long_video: tuple[Path, list[str], list[int | None]], tmp_path: Path) -> None:
    video, right, _ = long_video
    out = tmp_path / "out.jsonl"
    assert caption(video, "--segment", "9", "-o", out) == 0
    whole = records(out)
    assert [(r["segment"], r["segments"], r["start_s"], r["end_s"]) for r in whole] == [
        (k + 1, 5, 9.0 * k, 9.0 * k + 9.0) for k in range(5)
    ]
    assert [r["caption"] for r in whole] == right
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(lines[0] + lines[3] + lines[4][:30])
    assert caption(video, "--segment", "9", "-o", out, "--resume") == 0
    assert {r["segment"]: r["caption"] for r in records(out)} == dict(enumerate(right, 1))
    out.write_bytes(lines[0] + lines[3])
    assert caption(video, "--segment", "12", "-o", out, "--resume") == 2
    assert out.read_bytes() == lines[0] + lines[3]


def test_an_event_is_found_in_a_long_video(
    long_video: tuple[Path, list[str], list[int | None]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, _, stops = long_video
    out = tmp_path / "found.jsonl"
    assert caption(video, "--segment", "9", "--find", "When does it stop?", "-o", out) == 0
    assert [r.get("start_s") for r in records(out)] == stops
    found = len(stops) - stops.count(None)
    assert f"5 searched, {found} with the event" in capsys.readouterr().err
    assert caption(video, "--segment", "9", "--find", "When does it stop?") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"0:00:{time:02}.0 - 0:00:{time:02}.0" for time in stops if time is not None
    ]


def test_a_collection_becomes_a_table(clips: Path, right: dict[str, str], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out.parquet"
    (clips / "text.mp4").write_text("no video")
    assert caption(clips, "-o", out) == 1
    table = {Path(row["media"]).name: row for row in parquet.read_table(out).to_pylist()}
    assert {name: row["caption"] for name, row in table.items() if row["error"] is None} == right
    assert "text.mp4" in table["text.mp4"]["error"]
    shutil.copy(clips / "1.mp4", clips / "text.mp4")
    assert caption(clips, "-o", out, "--retry-failed") == 0
    table = {Path(row["media"]).name: row["caption"] for row in parquet.read_table(out).to_pylist()}
    assert table == {**right, "text.mp4": right["1.mp4"]}


USAGE = {
    "two questions": (["--find", "x", "-p", "y"], "--find and --prompt are mutually exclusive"),
    "an empty event": (["--find", " "], "needs an event"),
    "no length": (["--segment", "0"], "positive number of seconds"),
    "an endless length": (["--segment", "inf"], "positive number of seconds"),
    "both": (["-o", "out.jsonl", "--resume", "--force"], "mutually exclusive"),
    "text to continue": (["-o", "out.txt", "--resume"], "--resume needs"),
    "a table to stdout": (["--format", "parquet"], "needs -o FILE"),
    "no batch": (["--batch", "0"], "batch must be at least 1"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_parquet) if "table" in name else name for name in USAGE]
)
def test_options_that_do_not_go_together(
    name: str, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clips.parent)
    arguments, message = USAGE[name]
    assert caption(clips, *arguments) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(".") == ["clips"]


def torment(folder: Path, kinds: tuple[str, ...], kills: int, num_clips: int) -> Iterator[tuple[str, int, int]]:
    for kind, tally in faults.measure(folder, kinds, kills, num_clips, seed=1):
        yield kind, tally.kills, tally.faults


def test_killed_runs_lose_nothing(tmp_path: Path) -> None:
    assert list(torment(tmp_path, ("resume",), 6, 10)) == [("resume", 6, 0)]


@pytest.mark.long
def test_runs_killed_often_lose_nothing(tmp_path: Path) -> None:
    assert list(torment(tmp_path, faults.KINDS, 90, 12)) == [(kind, 15, 0) for kind in faults.KINDS]
