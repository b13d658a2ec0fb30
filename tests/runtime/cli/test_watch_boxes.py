"""`vl3edge watch --boxes`: what is asked and written. What the model says is made up here."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clips import write_clip
from commands import run as run_command

from vl3edge.runtime import Chunk, GenerationStats, Session
from vl3edge.runtime.cli.boxes import boxes_problem
from vl3edge.runtime.live.output import AnswerWriter, WatchState
from vl3edge.runtime.live.watch import AnswerPart

FORM = "Answer in [[x0,y0,x1,y1]] format."
SAYS = "<ref>the dog</ref>[[250, 500, 500, 1000]]"
STATS = GenerationStats(1, 0, 1, 0.0, 0.0)


class Scripted:
    """Stands for the model's answers, but sees the frames."""

    def __init__(self) -> None:
        self.says = SAYS
        self.reason: Any = "stop"
        self.asked: list[str] = []

    def ask(self, _: Session, question: str, *rest: Any, **options: Any) -> Iterator[Chunk]:
        self.asked.append(question)
        return iter([Chunk(self.says[:9]), Chunk(self.says[9:], self.reason, STATS)])


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted()
    monkeypatch.setattr(Session, "ask", lambda *a, **k: scripted.ask(*a, **k))
    return scripted


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Two seconds, 96×64."""
    return write_clip(tmp_path / "film.mp4", range(50))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[list[str], str]:
    """What was written, by lines, and what was said beside it."""
    status, out, err = run_command(capsys, "watch", *arguments)
    assert status == 0, err
    return out.splitlines(), err


def test_boxes_are_asked_for_and_shown(capsys: pytest.CaptureFixture[str], model: Scripted, film: Path) -> None:
    out, err = run(capsys, film, "-q", "Where is it?", "-q", f"Where? {FORM}", "--boxes", "--speed", 50)
    assert model.asked == [f"Where is it? {FORM}", f"Where? {FORM}"]
    assert [line.partition("] ")[2] or line for line in out] == [
        f"Where is it? {FORM} {SAYS}",
        "the dog: 24,32,48,64",
        f"Where? {FORM} {SAYS}",
        "the dog: 24,32,48,64",
    ]
    assert "no box" not in err
    out, _ = run(capsys, film, "-q", "Where is it?", "--speed", 50)
    assert len(out) == 1
    assert out[0].endswith(f"] {SAYS}")
    assert model.asked[2] == "Where is it?"


@pytest.mark.parametrize("options", [(), ("--boxes",)])
def test_records_have_boxes_in_pixels_of_the_frames(
    capsys: pytest.CaptureFixture[str], model: Scripted, film: Path, options: tuple[str, ...]
) -> None:
    (line,), _ = run(capsys, film, "-q", "Where is it?", "--speed", 50, "--format", "jsonl", *options)
    record = json.loads(line)
    assert record["boxes"] == [{"label": "the dog", "x0": 24, "y0": 32, "x1": 48, "y1": 64}]
    assert (record["width_px"], record["height_px"]) == (96, 64)
    assert "boxes_note" not in record
    assert record["question"] == (f"Where is it? {FORM}" if options else "Where is it?")


@pytest.mark.parametrize(
    ("says", "reason", "words"),
    [
        ("[[1, 2, 3]]", "stop", "[1, 2, 3] is not four whole numbers"),
        ("[[1, 2, 3", "length", "the answer was cut off: raise --max-new-tokens"),
        ("There is none.", "stop", "the answer has no box"),
    ],
)
def test_what_is_no_box_is_said_so(
    capsys: pytest.CaptureFixture[str], model: Scripted, film: Path, says: str, reason: str, words: str
) -> None:
    model.says, model.reason = says, reason
    options = (film, "-q", "Where is it?", "--boxes", "--speed", 50, "--format", "jsonl")
    (line,), err = run(capsys, *options)
    record = json.loads(line)
    assert record["boxes"] == []
    assert ("boxes_note" in record) == says.startswith("[[")
    assert sum(words in said for said in err.splitlines()) == 1


def test_frames_of_several_sizes_give_no_boxes() -> None:
    """Of a camera that changes its size: while both are in the context, nobody knows whose pixels are meant."""
    written = io.StringIO()
    writer = AnswerWriter("camera", written, "jsonl", False, False)
    for chunk in (Chunk(SAYS[:9]), Chunk(SAYS[9:], "stop", STATS)):
        writer.write(AnswerPart(3.0, "Where is it?", "time", chunk, ((64, 96), (128, 96))), WatchState(2, 8, 0, 0))
    record = json.loads(written.getvalue())
    assert (record["boxes"], record["width_px"], record["height_px"]) == ([], 96, 128)
    assert "whose sizes differ" in record["boxes_note"]
    assert writer.answer is not None
    assert "whose sizes differ" in str(boxes_problem(writer.answer))
