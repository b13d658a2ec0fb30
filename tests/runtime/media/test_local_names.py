"""Names with colons: files here, whatever FFmpeg would take for a protocol or a pattern; addresses stay addresses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import assert_refused

from vl3edge.runtime.cli.main import main
from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.live.reader import LiveReader
from vl3edge.runtime.media.addresses import clip_key, is_address
from vl3edge.runtime.media.limits import MediaLimits
from vl3edge.runtime.media.video import open_video

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
NAMES = [
    "2024-01-01T12:30:00.mp4",
    "a:b.mp4",
    "concat:x.mp4",
    "file:x.mp4",
    "http:x.mp4",
    "subfile,,start,0,end,0,:x.mp4",
    "shot%03d.mp4",
    "a[1]*?.mp4",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [*NAMES, "http://h/x.mp4"])
def test_a_file_that_exists_is_read(here: Path, name: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(CLIP, name)
    whole = open_video(CLIP)
    for limits in (MediaLimits(), MediaLimits(isolate=True)):
        reader = open_video(name, limits=limits)
        assert (reader.num_source_frames, reader.duration_s) == (whole.num_source_frames, whole.duration_s)
    with LiveReader(name, speed=100.0) as reader:
        while not reader.ended:
            reader.take(timeout_s=5.0)
    assert reader.counts.received == whole.num_source_frames


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_does_not_exist_is_missed(here: Path, name: str) -> None:
    with pytest.raises(MediaError, match="there is no such file"):
        open_video(name)


@pytest.mark.parametrize("suffix", [".mp4", ".jpg", ""])
def test_a_name_that_cannot_be_opened_is_not_called_damaged(here: Path, suffix: str) -> None:
    Path(f"loop{suffix}").symlink_to(f"loop{suffix}")
    Path("file").write_bytes(b"x")
    cases = {
        f"loop{suffix}": "Too many levels of symbolic links",
        f"file/clip{suffix}": "Not a directory",
        f"{'n' * 300}{suffix}": "File name too long",
    }
    for name, why in cases.items():
        assert_refused(name, rf"{name}: it cannot be opened \({why}\)$")


def test_the_commands(here: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        shutil.copy(CLIP, name)
    model = ["-m", str(bundle), "--max-new-tokens", "2"]
    assert main(["caption", ".", "-o", "out.jsonl", *model]) == 0
    records = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert sorted(record["media"] for record in records) == sorted(NAMES)
    assert main(["caption", ".", "-o", "out.jsonl", "--resume", *model]) == 0
    assert "8 of 8 already have a record" in capsys.readouterr().err
    assert main(["caption", "--isolate", *NAMES[:3], "--sidecar", *model]) == 0
    assert Path("2024-01-01T12:30:00.txt").exists()
    assert Path("concat:x.txt").exists()
    assert main(["ask", NAMES[0], "a:*.mp4", "-q", "What?", *model]) == 0


def test_what_is_an_address(here: Path) -> None:
    for name in ("http://h/a.mp4", "https://h/a", "rtsp://u:p@h:554/s", "rtmp://h/a", "udp://@:1234", "file:///a.mp4"):
        assert is_address(name)
        assert clip_key(name) == name.removeprefix("file://")  # the address of a file is another name of it
    for name in (*NAMES, "/a://b.mp4", "a/b://c.mp4", "://a.mp4"):
        assert not is_address(name)
        assert clip_key(name).startswith("/")


def test_addresses_of_files_are_read(here: Path) -> None:
    assert open_video(f"file://{CLIP}").num_frames == open_video(CLIP).num_frames
