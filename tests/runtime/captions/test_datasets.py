"""Data sets, read back as their trainers read them: sd-scripts, musubi-tuner and LLaVA."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import run
from PIL import Image

from vl3edge.runtime.captions.datasets import DATASETS, dataset
from vl3edge.runtime.jobs import CaptionResult

CLIP = Path(__file__).resolve().parents[2] / "fixtures" / "demo_clip.mp4"
CAPTION = "A red square on a checkered ground. It waits, moves right, turns down and stops."
DESCRIBE = {"video": "Describe this video.", "image": "Describe this image."}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two videos, one of them in a folder, a picture, and a file that is none."""
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(CLIP, folder / "a.mp4")
    shutil.copy(CLIP, folder / "deep" / "tür 影.mp4")
    Image.fromarray(np.full((112, 112, 3), (200, 30, 30), np.uint8)).save(folder / "photo.png")
    (folder / "broken.mp4").write_bytes(b"no film")
    return folder


def sd_scripts(path: Path) -> dict[str, str]:
    """As its FineTuningDataset: the image's path by its key, and a caption that is not empty."""
    found = {}
    for key, entry in json.loads(path.read_text(encoding="utf-8")).items():
        assert os.path.exists(key)
        assert entry["caption"]
        found[key] = entry["caption"]
    return found


def musubi(path: Path, kind: str) -> dict[str, str]:
    """As its JSONL data sources: a path and a caption on each line, of one kind."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return {row[f"{kind}_path"]: row["caption"] for row in rows}


def llava(path: Path, media_folder: Path) -> dict[str, tuple[str, str, str]]:
    """As its LazySupervisedDataset: the file joined to the media folder, turns by turns, one placeholder first."""
    found = {}
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert len({entry["id"] for entry in entries}) == len(entries)
    for entry in entries:
        kind = "video" if "video" in entry else "image"
        file = os.path.join(media_folder, entry[kind])
        assert os.path.exists(file)
        human, gpt = entry["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        assert human["value"].startswith(f"<{kind}>\n")
        assert human["value"].count(f"<{kind}>") == 1
        found[os.path.abspath(file)] = kind, human["value"].removeprefix(f"<{kind}>\n"), gpt["value"]
    return found


def test_sd_scripts_reads_its_metadata(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "meta_cap.json"
    status, _, err = run(capsys, "caption", clips, "--format", "sd-scripts", "-o", out)
    assert status == 1
    assert "3 captioned, 1 failed" in err
    found = sd_scripts(out)
    assert set(found) == {str(clips / "a.mp4"), str(clips / "deep" / "tür 影.mp4"), str(clips / "photo.png")}
    assert found[str(clips / "a.mp4")] == CAPTION
    assert "影" in out.read_text(encoding="utf-8")


def test_musubi_tuner_reads_a_file_of_each_kind(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "videos.jsonl"
    command = ("caption", clips / "*.mp4", clips / "deep", "--format", "musubi-tuner", "-o", out, "--batch", 2)
    status, _, err = run(capsys, *command)
    assert status == 1
    assert "both" not in err
    assert musubi(out, "video") == dict.fromkeys([str(clips / "a.mp4"), str(clips / "deep" / "tür 影.mp4")], CAPTION)
    pictures = tmp_path / "pictures.jsonl"
    assert run(capsys, "caption", clips / "photo.png", "--format", "musubi-tuner", "-o", pictures)[0] == 0
    assert list(musubi(pictures, "image")) == [str(clips / "photo.png")]
    status, _, err = run(capsys, "caption", clips, "--format", "musubi-tuner", "-o", tmp_path / "both.jsonl")
    assert "this has both: caption them separately" in err


def test_llava_reads_questions_and_answers(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = clips / "train.json"
    assert run(capsys, "caption", clips, "--format", "llava", "-o", out)[0] == 1
    found = llava(out, clips)
    assert len(found) == 3
    assert found[str(clips / "a.mp4")] == ("video", DESCRIBE["video"], CAPTION)
    assert found[str(clips / "photo.png")][:2] == ("image", DESCRIBE["image"])
    assert json.loads(out.read_text(encoding="utf-8"))[0]["video"] == "a.mp4"  # beneath the data set: relative
    other = clips.parent / "elsewhere.json"
    question = "Is <video> in <image>?"  # placeholders of the trainer
    command = ("caption", clips / "a.mp4", "-p", question, "--prefix", "The <video> is", "--format", "llava", "-o")
    assert run(capsys, *command, other)[0] == 0
    ((_, asked, answered),) = llava(other, clips.parent).values()
    assert asked == "Is video in image?"
    assert answered.startswith("The video is")


@pytest.mark.parametrize("format", ["sd-scripts", "musubi-tuner", "llava"])
def test_what_is_known_is_kept_and_more_is_added(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    """A later run adds clips, with the question that each was asked; one that failed is tried again."""
    out = tmp_path / "set.json"
    first = ("caption", clips / "a.mp4", clips / "broken.mp4", "--format", format, "-o", out)
    assert run(capsys, *first)[0] == 1
    shutil.copy(CLIP, clips / "broken.mp4")
    second = ("caption", clips / "*.mp4", clips / "deep", "-p", "What moves?", "--format", format, "-o", out)
    status, _, err = run(capsys, *second)
    assert (status, "exists" in err) == (2, True)
    status, _, err = run(capsys, *second, "--retry-failed")
    assert status == 0
    assert "2 captioned, 0 failed, 1 skipped" in err
    paths = {str(clips / name) for name in ("a.mp4", "broken.mp4", "deep/tür 影.mp4")}
    if format == "llava":
        found = llava(out, tmp_path)
        assert set(found) == paths
        assert sorted(question for _, question, _ in found.values()) == [
            DESCRIBE["video"],
            "What moves?",
            "What moves?",
        ]
    else:
        assert set(sd_scripts(out) if format == "sd-scripts" else musubi(out, "video")) == paths


def test_a_killed_run_continues(clips: Path, tmp_path: Path) -> None:
    for number in range(12):
        shutil.copy(CLIP, clips / f"more{number:02}.mp4")
    out = tmp_path / "set.json"
    command = [sys.executable, "-m", "vl3edge", "caption", str(clips), "--format", "llava", "-o", str(out), "--resume"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    journal = tmp_path / "set.json.jsonl"
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    known = journal.read_bytes().count(b"\n")
    assert not out.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{known} of 16 already have a record" in done.stderr
    assert len(llava(out, tmp_path)) == 15


@pytest.mark.parametrize("form", ["sd-scripts", "llava"])
def test_an_empty_set_is_whole_json(form: str, tmp_path: Path) -> None:
    failed = [CaptionResult("a.mp4", error="broken"), CaptionResult("b.mp4", caption="", kind="image")]
    assert not json.loads(b"".join(dataset(failed, form, tmp_path)))


def test_lines_and_quotes_survive(tmp_path: Path) -> None:
    """And names that are not UTF-8; what steers a terminal is written as an escape."""
    said, name = 'one\n"two"\u2028\x1b[31m {3}', "/x/a\udcff.png"
    record = CaptionResult(name, caption=said, kind="image", question="?")
    texts = {form: b"".join(dataset([record], form, tmp_path)).decode() for form in DATASETS}
    assert not any(character in text for text in texts.values() for character in "\x1b\u2028")
    values = {form: json.loads(text) for form, text in texts.items()}
    assert values["sd-scripts"] == {name: {"caption": said}}
    assert values["musubi-tuner"] == {"image_path": name, "caption": said}
    assert values["llava"][0]["image"] == name
    assert values["llava"][0]["conversations"][1]["value"] == said


@pytest.mark.parametrize("format", ["sd-scripts", "musubi-tuner"])
def test_sidecars_are_one_line(clips: Path, capsys: pytest.CaptureFixture[str], format: str) -> None:
    """sd-scripts takes the first line alone."""
    command = ("caption", clips / "a.mp4", "--prefix", "first\nsecond", "--max-new-tokens", 3, "--format", format)
    assert run(capsys, *command, "--sidecar")[0] == 0
    text = (clips / "a.txt").read_text(encoding="utf-8")
    assert text.startswith("first second")
    assert text.count("\n") == 1
    assert run(capsys, *command, "--sidecar", ".caption")[0] == 0
    assert (clips / "a.caption").read_text(encoding="utf-8") == text


def test_sidecars_in_a_folder(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "captions"
    assert run(capsys, "caption", clips, "--sidecar-folder", out)[0] == 1
    assert {path.name for path in out.iterdir()} == {"a.txt", "tür 影.txt", "photo.txt"}
    assert (out / "a.txt").read_text(encoding="utf-8").strip() == CAPTION
    assert not list(clips.rglob("*.txt"))
    status, _, err = run(capsys, "caption", clips / "a.mp4", "--sidecar-folder", out, "--resume")
    assert (status, "1 skipped" in err) == (0, True)
    status, _, err = run(capsys, "caption", clips / "a.mp4", "--sidecar-folder", out)
    assert (status, "--resume skips" in err) == (2, True)
    shutil.copy(CLIP, clips / "deep" / "a.mp4")
    status, _, err = run(capsys, "caption", clips, "--sidecar-folder", tmp_path / "flat")
    assert (status, "would both have" in err) == (2, True)
    assert not (tmp_path / "flat").exists()
    shutil.copy(clips / "photo.png", clips / "a.png")  # one folder, one stem: the whole names tell them apart
    status, _, _ = run(capsys, "caption", clips / "a.mp4", clips / "a.png", "--sidecar-folder", tmp_path / "whole")
    assert status == 0
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {"a.mp4.txt", "a.png.txt"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "llava"), "--format llava needs -o FILE"),
        (("--format", "llava", "--sidecar"), "--sidecar writes"),
        (("--format", "sd-scripts", "--segment", "3", "-o", "x.json"), "leave out --segment and --find"),
        (("--format", "musubi-tuner", "--find", "it stops", "-o", "x.json"), "leave out --segment and --find"),
        (("rtsp://host/live", "--format", "llava", "-o", "x.json"), "is not a file"),
        (("--sidecar-folder", "x", "-o", "y.txt"), "mutually exclusive"),
    ],
)
def test_what_does_not_go_together(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "caption", CLIP, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())


def test_paths_below_the_data_set_however_it_is_named(
    clips: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips / "deep")
    for out in ("../one.json", "./../deep/../two.json", str(clips / "deep" / ".." / "three.json")):
        status, *_ = run(capsys, "caption", "../photo.png", "tür 影.mp4", "--format", "llava", "-o", out)
        assert status == 0
        entries = json.loads(Path(out).read_text(encoding="utf-8"))
        assert [entry["id"] for entry in entries] == ["photo.png", "deep/tür 影.mp4"], out


@pytest.mark.parametrize("format", DATASETS)
def test_a_run_goes_on_from_another_folder(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """Names that were relative to the first folder are not taken for those of the second."""
    out = tmp_path / "out.json"
    monkeypatch.chdir(clips)
    run(capsys, "caption", "photo.png", "broken.mp4", "--format", format, "-o", out)
    (clips / "deep" / "photo.png").write_bytes((clips / "photo.png").read_bytes())
    monkeypatch.chdir(clips / "deep")
    status, _, err = run(capsys, "caption", "photo.png", "../photo.png", "--resume", "--format", format, "-o", out)
    assert status == 0
    assert "1 captioned, 0 failed, 1 skipped" in err
    if format == "sd-scripts":
        found = set(sd_scripts(out))
    elif format == "musubi-tuner":
        found = set(musubi(out, "image"))
    else:
        found = set(llava(out, tmp_path))
    assert found == {str(clips / "photo.png"), str(clips / "deep" / "photo.png")}


def test_sd_scripts_trains_on_pictures(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for media, videos in ((["photo.png"], 0), (["a.mp4"], 1), (["a.mp4", "photo.png", "deep"], 2)):
        out = tmp_path / f"{videos}.json"
        _, _, err = run(capsys, "caption", *(clips / name for name in media), "--format", "sd-scripts", "-o", out)
        assert (f"sd-scripts trains on pictures, and {videos} of these are videos" in err) == (videos > 0)
        assert len(sd_scripts(out)) == len(media)


@pytest.mark.parametrize("format", DATASETS)
def test_records_of_something_else_are_not_continued(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    out = tmp_path / "out"
    run(capsys, "caption", clips / "photo.png", "--format", "jsonl", "-o", f"{out}.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    status, _, err = run(capsys, "caption", clips / "photo.png", "--resume", "--format", format, "-o", out)
    assert (status, f"does not say what {format} needs to know" in err) == (2, True)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert not out.exists()
