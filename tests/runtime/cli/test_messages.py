"""What is said of a prompt that is too long, and of media from stdin: what is wrong, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run

from vl3edge.runtime import PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.errors import ContextLengthError
from vl3edge.runtime.jobs import CaptionJob

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
LONG = "word " * 5000
SHORTEN, FEWER = "shorten the question", "use fewer frames"


@pytest.fixture(scope="module")
def demo() -> VideoLlama3:
    return VideoLlama3.load(num_threads=1)


def refused(call: object, *arguments: object, **options: object) -> str:
    with pytest.raises(ContextLengthError) as caught:
        call(*arguments, **options)  # type: ignore[operator]
    return str(caught.value)


def test_the_question_is_blamed_where_it_is_too_long(demo: VideoLlama3) -> None:
    clip = demo.encode(CLIP)
    messages = [
        refused(demo.ask, clip, LONG),
        refused(demo.ask, demo.begin(CLIP), LONG),
        refused(demo.ask, clip, "What is it?", system=LONG),
        refused(demo.chat().ask, LONG, CLIP),
        refused(demo.generate, [{"role": "user", "content": LONG}]),
    ]
    for batch in (1, 2):
        (result,) = demo.caption_all([CaptionJob(CLIP, LONG)], batch=batch)
        assert isinstance(result.exception, ContextLengthError)
        messages.append(str(result.exception))
    for message in messages:
        assert SHORTEN in message
        assert FEWER not in message
    assert "of media and 20,0" in messages[0]
    session = refused(demo.open_session().ask, LONG)
    assert "use a shorter question" in session
    assert "frames" not in session


def test_frames_are_blamed_where_they_are_too_many(demo: VideoLlama3) -> None:
    dense, whole = SamplingPlan(fps=4.0), PruningConfig(enabled=False)  # 300 tokens or more
    clips = [demo.encode(CLIP, dense, whole) for _ in range(16)]
    for message in (
        refused(demo.ask, clips, "What is it?"),
        refused(demo.ask, [demo.begin(CLIP, dense, whole) for _ in range(16)], "What is it?"),
    ):
        assert FEWER in message
        assert SHORTEN not in message


@pytest.mark.parametrize(
    "arguments",
    [["caption", "-"], ["caption", "-", "--isolate"], ["ask", "-", "-q", "x"], ["watch", "-", "-q", "x"]],
)
def test_media_from_stdin(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    assert "-: media cannot be read from stdin" in err


def test_inspect_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    status, _, err = run(capsys, "inspect", "-", "-o", tmp_path / "report")
    assert status == 1
    assert "-: media cannot be read from stdin" in err
    status, _, err = run(capsys, "inspect", CLIP, "-q", LONG, "-o", tmp_path / "report")
    assert SHORTEN in err


def test_a_file_called_so_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_bytes(CLIP.read_bytes())
    status, out, _ = run(capsys, "caption", "-", "--max-new-tokens", 1)
    assert (status, out) == (0, "A\n")
