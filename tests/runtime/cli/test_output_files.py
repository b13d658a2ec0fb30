"""Files to be written: what they cannot be is said before any work, and what is read is never written over."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from commands import run
from PIL import Image

from vl3edge.runtime.cli.output_files import check_output
from vl3edge.runtime.errors import ConfigError

CLIP = Path(__file__).resolve().parents[2] / "fixtures" / "demo_clip.mp4"


@pytest.fixture
def media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a photo, a link to it, a clip and a set of questions."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((56, 84, 3), 90, np.uint8)).save("my photo.png")
    os.symlink("my photo.png", "link.png")
    shutil.copy(CLIP, "clip.mp4")
    Path("set.jsonl").write_text('{"media": "clip.mp4", "question": "What?", "answer": "a"}\n')
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "my photo.png", "-q", "What?", "--json", "./my photo.png"),
        ("ask", "my photo.png", "-q", "What?", "--json", "link.png"),
        ("ask", "link.png", "-q", "What?", "-o", "my photo.png"),
        ("ask", "my photo.png", "clip.mp4", "-q", "What?", "--json", "clip.mp4"),
        ("caption", "my photo.png", "-o", "my photo.png", "--force"),
        ("caption", "my photo.png", "clip.mp4", "-o", "clip.mp4", "--format", "llava", "--force"),
        ("caption", ".", "-o", "link.png", "--format", "jsonl", "--force"),
        ("embed", "--like", "my photo.png", "--in", "films.npy", "--json", "my photo.png"),
        ("embed", "--like", "my photo.png", "--in", "films.npy", "--json", "films.npy"),
        ("embed", "--like", "my photo.png", "--in", "films.npy", "--json", "films.npy.jsonl"),
        ("watch", "clip.mp4", "-q", "What?", "-o", "clip.mp4"),
        ("evaluate", "none", "--data", "set.jsonl", "--json", "set.jsonl"),
        ("evaluate", "none", "--data", "set.jsonl", "--page", "./set.jsonl"),
        ("bench", "none", "--media", "clip.mp4", "--json", "clip.mp4"),
        pytest.param(
            ("inspect", "my photo.png", "-o", "my photo"),
            marks=pytest.mark.skipif(find_spec("matplotlib") is None, reason="inspect needs matplotlib"),
        ),
    ],
    ids=" ".join,
)
def test_what_is_read_is_not_written_over(
    media: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    for name in ("films.npy", "films.npy.jsonl"):
        Path(name).write_bytes(b"an index")
    before = {path: path.read_bytes() for path in media.iterdir()}
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert "would overwrite" in err
    assert {path: path.read_bytes() for path in media.iterdir()} == before


@pytest.mark.parametrize("name", ["", ".", "..", "folder.png"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("caption", "my photo.png", "--format", "llava", "-o"),
        ("caption", "my photo.png", "--format", "parquet", "--force", "-o"),
        ("caption", "my photo.png", "--format", "jsonl", "-o"),
        ("ask", "my photo.png", "-q", "What?", "-o"),
        ("ask", "my photo.png", "-q", "What?", "--json"),
        ("evaluate", "none", "--data", "set.jsonl", "--page"),
        ("watch", "clip.mp4", "-q", "What?", "-o"),
    ],
    ids=" ".join,
)
def test_a_folder_is_no_file(
    media: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], name: str
) -> None:
    if "parquet" in arguments:
        pytest.importorskip("pyarrow")
    Path("folder.png").mkdir()
    before = sorted(media.iterdir())
    status, _, err = run(capsys, *arguments, name)
    assert status == 2
    assert "this is a folder; name a file" in err
    assert sorted(media.iterdir()) == before


def test_a_frame_is_read_too(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for name in ("1.png", "records.jsonl"):
        (frames / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match="would overwrite"):
        check_output("-o", frames / "1.png", [frames])
    check_output("-o", frames / "records.jsonl", [frames])  # beside the frames, as a run that continues has it
    check_output("-o", frames / "2.png", [frames, "http://127.0.0.1/1.png", None])
    check_output("-o", Path("-"), [frames])
    check_output("-o", None)
