"""Files of records: whole lines, one record of each clip, one writer, and nothing lost by a full disk or a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vl3edge.runtime.captions.jsonl import RecordFile, State
from vl3edge.runtime.captions.records import json_line
from vl3edge.runtime.errors import ConfigError, OutputError
from vl3edge.runtime.files import LockedFile, write_whole
from vl3edge.runtime.jobs import CaptionResult
from vl3edge.runtime.media.addresses import clip_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def filled(path: Path, *records: CaptionResult) -> None:
    file = RecordFile(path)
    for record in records:
        file.write(record)
    file.close()


def test_a_record_replaces_the_error_of_its_clip_and_no_other(path: Path) -> None:
    filled(
        path,
        CaptionResult("a.mp4", error="broken"),
        CaptionResult("b.mp4", caption="two"),
        CaptionResult("c.mp4", error="broken"),
    )
    file = RecordFile(path, keep=True)
    assert [file.state(name) for name in ("a.mp4", "b.mp4", "d.mp4")] == [State.FAILED, State.DONE, State.WAITING]
    file.write(CaptionResult("a.mp4", caption="one"))
    assert [line["media"] for line in lines(path)] == ["b.mp4", "c.mp4", "a.mp4"]
    file.write(CaptionResult("c.mp4", error="still broken"))
    assert [line.get("error") for line in lines(path)] == [None, None, "still broken"]
    file.write(CaptionResult("d.mp4", caption="new"))
    assert [line["media"] for line in lines(path)] == ["b.mp4", "a.mp4", "c.mp4", "d.mp4"]
    file.forget("c.mp4")
    file.forget("b.mp4")
    assert [line["media"] for line in lines(path)] == ["b.mp4", "a.mp4", "d.mp4"]
    file.close()
    assert [name for name in os.listdir(path.parent) if name != path.name] == []


def test_names_of_one_clip_are_one_clip(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    filled(path, CaptionResult("./a.mp4", caption="one"), CaptionResult("rtsp://camera/./b", caption="two"))
    file = RecordFile(path, keep=True)
    assert file.state("a.mp4") is State.DONE
    assert file.state(str(path.parent / "a.mp4")) is State.DONE
    assert file.state("rtsp://camera/b") is State.WAITING
    file.close()
    assert clip_key(os.fsdecode(b"caf\xe9")) == os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9")


def test_a_line_holds_no_control_character_and_comes_back() -> None:
    record = CaptionResult("a\n\x1b[2J\x7f\x9b\udce9.mp4", caption="ü\x85\r\u2028")
    line = json_line(record)
    assert not [c for c in line.decode().rstrip("\n") if c < " " or "\x7f" <= c <= "\x9f"]
    assert CaptionResult.from_json(json.loads(line)) == record


def test_segments_are_counted(path: Path) -> None:
    filled(
        path,
        CaptionResult("a.mp4", error="could not be opened"),
        CaptionResult("a.mp4", caption="one", segment=1, segments=3),
    )
    assert [line.get("segment") for line in lines(path)] == [1]
    file = RecordFile(path, keep=True)
    assert file.state("a.mp4") is State.WAITING
    file.write(CaptionResult("a.mp4", caption="three", segment=3, segments=3))
    file.write(CaptionResult("a.mp4", error="broken", segment=2, segments=3))
    assert file.state("a.mp4") is State.FAILED
    assert [file.segment_state("a.mp4", n, 3) for n in (1, 2, 3)] == [State.DONE, State.FAILED, State.DONE]
    with pytest.raises(ConfigError, match="in 3 segments, not 4"):
        file.segment_state("a.mp4", 1, 4)
    file.write(CaptionResult("a.mp4", caption="two", segment=2, segments=3))
    assert file.state("a.mp4") is State.DONE
    assert sorted(str(line["caption"]) for line in lines(path)) == ["one", "three", "two"]
    file.close()


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_cut_short_is_removed(path: Path, cut: int) -> None:
    filled(path, CaptionResult("a.mp4", caption="one"), CaptionResult("b.mp4", caption="two"))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + min(cut, len(whole) - first - 1)])
    file = RecordFile(path, keep=True)
    assert path.read_bytes() == whole[:first]
    assert file.state("b.mp4") is State.WAITING
    file.write(CaptionResult("b.mp4", caption="two"))
    file.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", ["something else\n", "{}\n", "[1]\n", "3\n", '{"media": 1, "caption": ""}\n', "\n"])
def test_other_files_are_left_alone(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(ConfigError, match="line 1 is not a record"):
        RecordFile(path, keep=True)
    with pytest.raises(ConfigError, match="--resume"):
        RecordFile(path)
    assert path.read_text() == content


def test_force_replaces_with_the_first_record_and_not_before(path: Path) -> None:
    path.write_text("precious\n")
    file = RecordFile(path, force=True)
    assert path.read_text() == "precious\n"
    assert list(file.records()) == []
    file.write(CaptionResult("a.mp4", caption="one"))
    assert [line["caption"] for line in lines(path)] == ["one"]
    file.close()


def test_a_second_process_is_refused_until_the_first_dies(path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from vl3edge.runtime.captions.jsonl import RecordFile
from vl3edge.runtime.jobs import CaptionResult
file = RecordFile(Path({str(path)!r}))
file.write(CaptionResult("a.mp4", error="broken"))
file.write(CaptionResult("a.mp4", caption="one"))  # the file has been replaced: the lock must have moved along
print("locked", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(OutputError, match=r"out\.jsonl: another process is writing to it"):
            RecordFile(path, keep=True)
        other.send_signal(signal.SIGKILL)
    file = RecordFile(path, keep=True)
    assert file.state("a.mp4") is State.DONE
    file.close()


@pytest.mark.parametrize("room", [0, 1, 150, 299])
def test_a_full_disk_leaves_whole_lines(path: Path, room: int) -> None:
    """A limit on the file's size stands for the disk: the write that passes it is cut short, then fails."""
    filled(path, CaptionResult("a.mp4", caption="x" * 200))
    before = path.read_bytes()
    code = f"""
import errno, resource
from pathlib import Path
from vl3edge.runtime.captions.jsonl import RecordFile
from vl3edge.runtime.jobs import CaptionResult
path = Path({str(path)!r})
file = RecordFile(path, keep=True)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + room},) * 2)
try:
    file.write(CaptionResult("b.mp4", caption="y" * 300))
except OSError as e:
    print(errno.errorcode[e.errno], e.filename)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["EFBIG", str(path)]
    assert path.read_bytes() == before
    file = RecordFile(path, keep=True)
    file.write(CaptionResult("b.mp4", caption="y" * 300))
    file.close()
    assert [line["media"] for line in lines(path)] == ["a.mp4", "b.mp4"]


def test_a_replacement_that_fails_changes_nothing(path: Path) -> None:
    path.write_text("old")

    def parts() -> Iterator[bytes]:
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(path, parts())
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == [path.name]
    (left,) = _left_by_a_killed_process(path)
    left.write_text("of a killed process, and longer")
    write_whole(path, [b"ne", b"w"])
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == [path.name]


def _left_by_a_killed_process(path: Path) -> list[Path]:
    code = f"""
import os
from pathlib import Path
from vl3edge.runtime.files import write_whole
write_whole(Path({str(path)!r}), (os.kill(os.getpid(), 9) for _ in range(1)))
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    return [other for other in path.parent.iterdir() if other != path]


def test_a_link_stays_a_link(path: Path) -> None:
    link = path.with_name("link")
    path.write_text("old")
    link.symlink_to(path)
    write_whole(link, [b"new"])
    file = LockedFile(link)
    file.replace([b"newer\n"])
    file.append(b"still\n")
    file.close()
    assert link.is_symlink()
    assert path.read_text() == "newer\nstill\n"


def test_devices_are_written_without_a_lock() -> None:
    first, second = LockedFile(Path("/dev/null")), LockedFile(Path("/dev/null"))
    first.append(b"a")
    second.append(b"b")
    first.close()
    second.close()
