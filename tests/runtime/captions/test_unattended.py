"""The command as others start it: with streams closed or full, and folders that may not be read."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from extras import needs_parquet

from vl3edge.runtime import VideoLlama3
from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.files import LockedFile

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
COMMAND = [sys.executable, "-m", "vl3edge.runtime.cli.main"]
OPTIONS = ["--threads", "1", "--backend", "cpu", "--max-frames", "2", "--max-new-tokens", "4"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /dev/full and capabilities")


def run(*arguments: object, start: Callable[[], None] | None = None, **streams: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a process; `start` is called in it before the command."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    done = subprocess.run([*COMMAND, *map(str, arguments)], text=True, check=False, preexec_fn=start, **streams)  # type: ignore[call-overload]
    return done.returncode, done.stdout or "", done.stderr or ""


def obey_permissions() -> None:
    """Takes from root, who tests run as in containers, the right to read what may not be read."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: lost by the next exec


@pytest.mark.parametrize("command", [["caption", CLIP, *OPTIONS], ["ask", CLIP, "-q", "What?", *OPTIONS], ["info"]])
@pytest.mark.parametrize("how", ["full", "closed"])
def test_answers_that_go_nowhere_are_one_line_and_a_failure(command: list[object], how: str) -> None:
    with open("/dev/full", "w") as full:
        if how == "full":
            status, _, err = run(*command, stdout=full)
        else:
            status, _, err = run(*command, start=lambda: os.close(1), stdout=None)
    assert status == 1
    assert err.splitlines()[-1].startswith("vl3edge: error: ")
    assert sum("error" in line.lower() for line in err.splitlines()) == 1
    assert ("No space left" if how == "full" else "Bad file descriptor") in err


@pytest.mark.parametrize("how", ["full", "closed", "gone"])
def test_progress_that_cannot_be_written_costs_no_caption(tmp_path: Path, how: str) -> None:
    out = tmp_path / "out.jsonl"
    command = ("caption", CLIP, *OPTIONS, "-o", out)
    if how == "closed":
        status, printed, _ = run(*command, start=lambda: os.close(2), stderr=None)
    elif how == "full":
        with open("/dev/full", "w") as full:
            status, printed, _ = run(*command, stderr=full)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        status, printed, _ = run(*command, stderr=writer)
        os.close(writer)
    assert (status, printed) == (0, "")
    assert [json.loads(line)["media"] for line in out.read_text().splitlines()] == [str(CLIP)]


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library writes to number 2 must not end up in the captions."""
    code = f"""
import os, sys
for number in (0, 1, 2):
    os.close(number)
sys.stdin = sys.stdout = sys.stderr = None
from vl3edge.runtime.cli.main import main
status = main(["caption", {str(CLIP)!r}, "-o", {str(tmp_path / "out.jsonl")!r}, *{OPTIONS!r}])
os.write(2, b"a library complains")
os._exit(status)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert len([json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]) == 1


def test_what_may_not_be_read_in_a_folder_is_a_failed_clip(tmp_path: Path) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out.jsonl"
    for place in ("a.mp4", "closed/b.mp4", ".hidden/c.mp4"):
        (clips / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CLIP, clips / place)
    (clips / "gone.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(clips / "pipe.mp4")
    for folder in ("closed", ".hidden"):
        (clips / folder).chmod(0)
    try:
        status, _, err = run("caption", clips, *OPTIONS, "-o", out, start=obey_permissions)
    finally:
        (clips / "closed").chmod(0o755)
    found = {Path(r["media"]).name: r.get("error", "") for r in map(json.loads, out.read_text().splitlines())}
    assert set(found) == {"a.mp4", "closed", "gone.mp4", "pipe.mp4"}
    assert found["a.mp4"] == ""
    assert "no permission" in found["closed"]
    assert "no such file" in found["gone.mp4"]
    assert "pipe" in found["pipe.mp4"]
    assert status == 1
    assert "1 captioned, 3 failed" in err
    assert run("caption", clips, *OPTIONS, "-o", out, "--retry-failed")[0] == 1
    names = [Path(json.loads(line)["media"]).name for line in out.read_text().splitlines()]
    assert sorted(names) == ["a.mp4", "b.mp4", "gone.mp4", "pipe.mp4"]


@pytest.mark.parametrize("extra", [[], ["--isolate"]])
def test_a_clip_in_a_closed_folder_costs_its_own_record(tmp_path: Path, extra: list[str]) -> None:
    closed, out = tmp_path / "closed", tmp_path / "out.jsonl"
    closed.mkdir()
    for name in ("a.mp4", "i.png"):
        shutil.copy(CLIP, closed / name)
    closed.chmod(0)
    too_long = "a" * 300 + ".mp4"
    try:
        media = (closed / "a.mp4", closed / "i.png", too_long, CLIP)
        status, _, _ = run("caption", *media, *OPTIONS, *extra, "-o", out, start=obey_permissions)
    finally:
        closed.chmod(0o755)
    found = {Path(r["media"]).name: r.get("error", "") for r in map(json.loads, out.read_text().splitlines())}
    assert status == 1
    assert found["demo_clip.mp4"] == ""
    assert "no permission" in found["a.mp4"]
    assert "no permission" in found["i.png"]
    assert "no such file" in found[too_long]


def test_a_folder_on_the_way_that_is_closed_is_a_media_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the API: `Path.is_dir` raises PermissionError there."""

    def closed(path: object, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    model = VideoLlama3.load(backend="cpu", num_threads=1)
    for name in ("a.mp4", "a.png"):
        shutil.copy(CLIP, tmp_path / name)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", closed)
        patch.setattr(Path, "stat", closed)  # Python 3.10 has its own hold of os.stat
        for name in ("a.mp4", "a.png"):
            with pytest.raises(MediaError, match="no permission"):
                model.encode(tmp_path / name)


@pytest.mark.unwatched
@pytest.mark.parametrize("name", ["out.jsonl", pytest.param("out.parquet", marks=needs_parquet)])
def test_a_disk_that_fills_up_loses_the_clip_at_hand_alone(tmp_path: Path, name: str) -> None:
    """The limit on a file's size cuts a write short in its middle, as a full disk does."""
    for number in range(9):
        shutil.copy(CLIP, tmp_path / f"{number}.mp4")
    out = tmp_path / name
    records = out if name == "out.jsonl" else tmp_path / "out.parquet.jsonl"
    command = ("caption", tmp_path, *OPTIONS, "-o", out, "--resume")
    status, _, err = run(*command, start=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)))
    assert status == 1
    assert err.splitlines()[-1] == f"vl3edge: error: {records}: File too large"
    content = records.read_bytes()
    kept = [json.loads(line) for line in content.splitlines()]
    assert 1 <= len(kept) < 9
    assert content.endswith(b"\n")
    assert run(*command)[0] == 0
    found = [json.loads(line) for line in records.read_text().splitlines()]
    assert found[: len(kept)] == kept
    assert sorted(Path(record["media"]).name for record in found) == [f"{number}.mp4" for number in range(9)]


def test_a_file_system_without_locks_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("vl3edge.runtime.files.fcntl.flock", no_locks)
    with pytest.warns(UserWarning, match="out cannot be locked .*: do not start a second run on it"):
        file = LockedFile(tmp_path / "out")
    file.append(b"line\n")
    file.close()
    assert (tmp_path / "out").read_bytes() == b"line\n"


@pytest.mark.parametrize("style", ["srt", "vtt"])
def test_subtitles_on_stdout_are_those_of_a_file(tmp_path: Path, style: str) -> None:
    out = tmp_path / f"out.{style}"
    command = ("caption", CLIP, *OPTIONS, "--segment", "3", "--format", style)
    assert run(*command, "-o", out)[0] == 0
    status, printed, _ = run(*command)
    assert (status, printed) == (0, out.read_text())
    assert printed.count(" --> ") == 3
