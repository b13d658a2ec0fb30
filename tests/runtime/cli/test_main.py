"""The command line as a user meets it: results on stdout, one clear line per problem on stderr, exit statuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from commands import run
from PIL import Image


@pytest.fixture(autouse=True)
def restored_warnings() -> Iterator[None]:
    """The command installs its own way of showing warnings."""
    with warnings.catch_warnings():
        yield


@pytest.fixture
def clips(media: Path, tmp_path: Path) -> Path:
    """A folder with one sound clip, one image, and everything that can be wrong with a file."""
    folder = tmp_path / "clips"
    folder.mkdir()
    shutil.copy(media / "h265_video.mp4", folder / "good.mp4")
    shutil.copy(media / "cat.jpg", folder / "good.jpg")
    whole = (media / "nasa_13013.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "broken.jpg").write_bytes((media / "cat.jpg").read_bytes()[:2000])
    audio_only(folder / "audio.mp4")
    return folder


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


SHORT = ("--max-frames", "2", "--max-new-tokens", "4")


def test_captions_of_a_mixed_folder(capsys: pytest.CaptureFixture[str], bundle: Path, clips: Path) -> None:
    status, out, err = run(capsys, "caption", clips, "-m", bundle, "--format", "jsonl", *SHORT)
    assert status == 1
    records = {Path(r["media"]).name: r for r in map(json.loads, out.splitlines())}
    assert {name for name, record in records.items() if "caption" in record} == {"good.mp4", "good.jpg"}
    for name, record in records.items():
        if "error" in record:
            assert set(record) == {"media", "error"}
            assert name in record["error"]
            assert "\n" not in record["error"]
    good = records["good.mp4"]
    assert good["num_frames"] == 1
    assert good["num_tokens"] == 25
    assert good["finish_reason"] in ("stop", "length")
    assert (good["start_s"], good["end_s"]) == (0.0, 1.0)
    assert good["seconds"] > 0
    assert "start_s" not in records["good.jpg"]
    assert "2 captioned, 5 failed, 0 skipped" in err


@pytest.mark.parametrize("name", ["empty.mp4", "text.mp4", "truncated.mp4", "audio.mp4", "broken.jpg"])
def test_one_bad_file(capsys: pytest.CaptureFixture[str], bundle: Path, clips: Path, name: str) -> None:
    status, out, err = run(capsys, "caption", clips / name, "-m", bundle, *SHORT)
    assert status == 1
    assert out == ""
    assert len([line for line in err.splitlines() if name in line]) == 1
    status, out, err = run(capsys, "ask", clips / name, "-q", "what?", "-m", bundle, *SHORT)
    assert status == 1
    assert err.splitlines()[-1].startswith("vl3edge: error: ")
    assert name in err.splitlines()[-1]


def test_text_srt_and_output_file(
    capsys: pytest.CaptureFixture[str], bundle: Path, clips: Path, tmp_path: Path
) -> None:
    status, text, _ = run(capsys, "caption", clips / "good.mp4", "-m", bundle, *SHORT)
    assert status == 0
    target = tmp_path / "out.srt"
    status, out, _ = run(capsys, "caption", clips / "good.mp4", "-m", bundle, "--format", "srt", "-o", target, *SHORT)
    assert (status, out) == (0, "")
    lines = target.read_text().splitlines()
    assert lines[:2] == ["1", "00:00:00,000 --> 00:00:01,000"]
    assert lines[2].split() == text.split()
    status, out, _ = run(capsys, "caption", clips / "good.mp4", clips / "good.jpg", "-m", bundle, *SHORT)
    assert status == 0
    assert out.startswith(f"{clips / 'good.mp4'}: ")
    status, _, err = run(capsys, "caption", clips / "good.mp4", clips / "good.jpg", "-m", bundle, "--format", "srt")
    assert status == 2
    assert "srt holds the captions of one video" in err


def test_resume_does_each_clip_once(
    capsys: pytest.CaptureFixture[str], bundle: Path, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ("-m", bundle, "--format", "jsonl", "-o", out, "--resume", *SHORT)
    assert run(capsys, "caption", clips / "good.mp4", *arguments)[0] == 0
    first = out.read_text()
    with out.open("a") as file:
        file.write('{"media": "half a rec')  # a run that was killed while writing
    status, _, err = run(capsys, "caption", clips / "good.mp4", clips / "good.jpg", *arguments)
    assert status == 0
    assert "1 of 2 already have a record" in err
    lines = out.read_text().splitlines()
    assert lines[0] + "\n" == first
    assert [Path(json.loads(line)["media"]).name for line in lines] == ["good.mp4", "good.jpg"]
    out.write_text("something else\n")
    status, _, err = run(capsys, "caption", clips / "good.mp4", *arguments)
    assert status == 2
    assert out.read_text() == "something else\n"


USAGE = {
    "unknown command": (["captoin", "x"], "captoin"),
    "unknown option": (["caption", "x", "--fsp", "3"], "--fsp"),
    "unknown format": (["caption", "GOOD", "--format", "xml"], "xml"),
    "unknown backend": (["caption", "GOOD", "--backend", "tpu"], "tpu"),
    "fps zero": (["caption", "GOOD", "--fps", "0"], "fps must be a positive number"),
    "fps not finite": (["caption", "GOOD", "--fps", "nan"], "fps must be a positive number"),
    "no frames": (["caption", "GOOD", "--max-frames", "0"], "max_frames must be at least 1"),
    "end before start": (["caption", "GOOD", "--start", "5", "--end", "2"], "must be after start_s"),
    "negative threshold": (["caption", "GOOD", "--threshold", "-1"], "threshold must be"),
    "no tokens": (["caption", "GOOD", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
    "top_p": (["ask", "GOOD", "-q", "x", "--top-p", "1.5"], "top_p must be"),
    "no batch": (["caption", "GOOD", "--batch", "0"], "batch must be at least 1"),
    "no batch of nothing": (["caption", "nowhere.mp4", "--batch", "0"], "batch must be at least 1"),
    "watch without pruning": (["watch", "GOOD", "-q", "x", "--threshold", "3", "--no-pruning"], "mutually exclusive"),
    "resume without a file": (["caption", "GOOD", "--resume"], "--resume needs"),
    "a question about nothing": (["ask", "-q", "x"], "needs MEDIA"),
}


@pytest.mark.parametrize("name", USAGE)
def test_bad_usage(capsys: pytest.CaptureFixture[str], bundle: Path, clips: Path, name: str) -> None:
    arguments, message = USAGE[name]
    arguments = [str(clips / "good.mp4") if argument == "GOOD" else argument for argument in arguments]
    model = ["-m", str(bundle)] if arguments[0] in ("caption", "ask") else []
    status, out, err = run(capsys, *arguments, *model)
    assert (status, out) == (2, "")
    assert message in err
    assert " on cpu with ONNX Runtime" not in err  # no model was loaded for it


def test_missing_things_are_named(capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path) -> None:
    status, _, err = run(capsys, "caption", tmp_path / "a.mp4", tmp_path / "b*.mp4", "-m", bundle)
    assert status == 1
    assert "a.mp4" in err
    assert "b*.mp4" in err
    status, _, err = run(capsys, "caption", bundle / "bundle.json", "-m", tmp_path / "none")
    assert status == 1
    assert str(tmp_path / "none") in err
    status, _, err = run(capsys, "info", tmp_path)
    assert status == 1
    assert "bundle.json" in err


def test_a_damaged_clip_is_captioned_with_a_count(
    capsys: pytest.CaptureFixture[str], bundle: Path, media: Path
) -> None:
    status, out, err = run(
        capsys, "caption", media / "corrupted.mp4", "-m", bundle, "--fps", "25", "--max-new-tokens", "4"
    )
    assert status == 0
    assert out.strip()
    warned = [line for line in err.splitlines() if line.startswith("vl3edge: warning: ")]
    assert len(warned) == 1
    assert "corrupted.mp4" in warned[0]
    assert any(word.isdigit() and int(word) > 0 for word in warned[0].split())


def test_folder_of_frames_is_one_clip(capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path) -> None:
    for index in range(12):
        Image.fromarray(np.full((64, 64, 3), index * 20, np.uint8)).save(tmp_path / f"frame{index}.png")
    status, out, _ = run(capsys, "caption", tmp_path, "-m", bundle, "--format", "jsonl", "--max-new-tokens", "2")
    assert status == 0
    record = json.loads(out)
    assert record["media"] == str(tmp_path)
    assert record["num_frames"] == 4  # 12 frames at 3 a second


@pytest.mark.parametrize("broken", [[0], [5], [2, 3], [11]])
def test_a_folder_with_unreadable_pictures_is_captioned_with_a_count(
    capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path, broken: list[int]
) -> None:
    for index in range(12):
        Image.fromarray(np.full((64, 64, 3), index * 20, np.uint8)).save(tmp_path / f"frame{index}.png")
    for index in broken:
        (tmp_path / f"frame{index}.png").write_bytes(b"no picture")
    status, out, err = run(
        capsys, "caption", tmp_path, "-m", bundle, "--format", "jsonl", "--fps", "3", "--max-new-tokens", "2"
    )
    assert status == 0
    assert json.loads(out)["num_frames"] == 12
    assert f"{len(broken)} of the 12 frames sampled are damaged" in err
    for index in range(12):
        (tmp_path / f"frame{index}.png").write_bytes(b"no picture")
    status, out, err = run(capsys, "caption", tmp_path, "-m", bundle)
    assert status == 1
    assert "not an image" in err


def test_info_names_versions_and_measurements(capsys: pytest.CaptureFixture[str], bundle: Path) -> None:
    status, out, _ = run(capsys, "info", bundle)
    assert status == 0
    for word in ("onnxruntime", "CPUExecutionProvider", "all files present", "projector-video", "decoder.onnx.data"):
        assert word in out


def test_control_characters_do_not_reach_the_terminal() -> None:
    from vl3edge.runtime.terminal import printable

    assert printable("a\x1b[31mb\x07\x9bc\r\n\td\u200d🙂") == "a[31mbc\n\td\u200d🙂"


def test_reader_that_goes_away_is_no_error(bundle: Path, clips: Path) -> None:
    command = f"{sys.executable} -m vl3edge.runtime.cli.main info {bundle} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
