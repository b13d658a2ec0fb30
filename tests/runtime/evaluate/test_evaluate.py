"""`vl3edge evaluate` with the demo bundle: asked, scored, killed and resumed, compared, shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from PIL import Image

from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE
from vl3edge.runtime.config import GenerationConfig
from vl3edge.runtime.evaluate.report import compare, report_on
from vl3edge.runtime.evaluate.results import EvalResult, read_results
from vl3edge.runtime.model import VideoLlama3

CLIP = Path(__file__).resolve().parents[2] / "fixtures" / "demo_clip.mp4"


@pytest.fixture(scope="module")
def model() -> VideoLlama3:
    return VideoLlama3.load()


@pytest.fixture(scope="module")
def said(model: VideoLlama3) -> dict[str, str]:
    """What the demo model answers about the clip, by question."""
    questions = ("What colour is it?", "What shape is it?", "Does it stop?", "Which way does it move?")
    greedy = GenerationConfig(temperature=0.0)
    return {question: model.ask(model.encode(CLIP), question, greedy).text for question in questions}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path, said: dict[str, str]) -> Path:
    """Four questions with right answers, one with a wrong one, one without."""
    rows = [{"media": str(CLIP), "question": q, "answer": a, "group": q.split()[0]} for q, a in said.items()]
    rows += [{"media": str(CLIP), "question": "What shape is it?", "answer": "A teapot.", "group": "What"}]
    rows += [{"media": str(CLIP), "question": "Describe it."}]
    return write(tmp_path / "set.jsonl", rows)


def test_a_set_is_scored(data: Path, said: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "evaluate", DEMO_BUNDLE, "--data", data)
    assert status == 0
    assert "80.00 %" in out
    assert "of 5 questions" in out
    assert "1 without a known answer: not in the score" in out
    assert "line 5: wrong" in err
    status, out, _ = run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "--json", "-")
    report = json.loads(out)["runs"]["vl3edge-demo"]
    assert report["score"]["value"] == pytest.approx(0.8)
    assert report["groups"]["What"]["value"] == pytest.approx(2 / 3)
    assert report["unscored"] == 1


def test_batched_answers_are_those_of_one_at_a_time(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outs = [data.with_name(f"{batch}.jsonl") for batch in (1, 3)]
    for batch, out in zip((1, 3), outs, strict=True):
        assert run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "--batch", batch, "-o", out)[0] == 0
    first, second = (read_results(out)[1] for out in outs)
    assert {id: result.answer for id, result in first.items()} == {id: r.answer for id, r in second.items()}


def test_files_of_earlier_versions_are_continued(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings of answers that this command has no options for are not among those that have to be the same."""
    out = data.with_name("out.jsonl")
    assert run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "-o", out)[0] == 0
    generation = read_results(out)[0]["generation"]
    names = {"max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "draft_tokens"}
    assert set(generation) == names


def test_what_is_bad_costs_itself_only(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row without a question, a clip that is missing, a file that is none, a span beyond the clip."""
    broken = data.with_name("broken.mp4")
    broken.write_bytes(b"no film")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[1:1] = [
        {"media": str(CLIP)},
        {"media": "missing.mp4", "question": "?", "answer": "x"},
        {"media": str(broken), "question": "?", "answer": "x"},
        {"media": str(broken), "question": "again?", "answer": "x"},
        {"media": str(CLIP), "question": "?", "answer": "x", "start": 900, "end": 901},
        {"media": [str(CLIP), "missing.png"], "question": "?", "answer": "x"},
    ]
    for batch in (1, 3):
        out = data.with_name(f"out{batch}.jsonl")
        status, shown, err = run(
            capsys, "evaluate", DEMO_BUNDLE, "--data", write(data, rows), "--batch", batch, "-o", out
        )
        assert status == 1
        assert "80.00 %" in shown
        assert "6 failed" in shown
        errors = {id: result.error for id, result in read_results(out)[1].items() if result.error}
        assert set(errors) == {f"line {n}" for n in range(2, 8)}
        assert all(error and "\n" not in error for error in errors.values())
        assert all(err.count(str(error)) >= 1 for error in errors.values())


def test_failures_are_retried_when_asked_for(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late, out = data.with_name("late.mp4"), data.with_name("out.jsonl")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    write(data, [*rows, {"media": "late.mp4", "question": "Does it stop?", "answer": "x"}])
    assert run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "-o", out)[0] == 1
    late.write_bytes(CLIP.read_bytes())
    status, _, err = run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "-o", out, "--resume")
    assert status == 1
    assert "with ONNX Runtime" not in err  # all is known: nothing is loaded
    status, _, err = run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "-o", out, "--retry-failed")
    assert status == 0
    assert "[1/1] line 7: wrong" in err
    assert read_results(out)[1]["line 7"].error is None


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_run_goes_on(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL after the second answer; the resumed file holds what a run in one piece does."""
    whole, out = data.with_name("whole.jsonl"), data.with_name("out.jsonl")
    assert run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "-o", whole)[0] == 0
    command = [sys.executable, "-m", "vl3edge", "evaluate", str(DEMO_BUNDLE), "--data", str(data), "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert out.read_bytes().count(b"\n") >= 3
    status, _, err = run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "-o", out, "--resume")
    assert status == 0
    wanted, got = (read_results(path)[1] for path in (whole, out))
    assert {id: (r.answer, r.score) for id, r in got.items()} == {id: (r.answer, r.score) for id, r in wanted.items()}
    status, _, err = run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "-o", out, "--resume", "--max-frames", 2)
    assert status == 2
    assert "sampling max frames 180; now it is 2" in err


def test_against_a_bundle_and_against_results(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same bundle twice differs in nothing; with answers of one token it does, and the page shows it."""
    out, short = data.with_name("out.jsonl"), data.with_name("short.jsonl")
    status, shown, _ = run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "-o", out, "--against", DEMO_BUNDLE)
    assert status == 0
    assert "vl3edge-demo (against)" in shown
    assert "+0.00 points" in shown
    assert "5 of 5 answers are the same" in shown
    assert set(read_results(data.with_name("out.against.jsonl"))[1]) == set(read_results(out)[1])
    command = ("evaluate", DEMO_BUNDLE, "--data", data, "-o", short, "--max-new-tokens", 1, "--against", out)
    page = data.with_name("page.html")
    status, shown, err = run(capsys, *command, "--page", page, "--json", data.with_name("r.json"))
    assert "generation max new tokens None; now it is 1" in err
    compared = json.loads(data.with_name("r.json").read_text())["comparison"]
    assert compared["difference"]["lost"] == 3  # the colour is one token
    assert compared["difference"]["gained"] == 0
    assert len(compared["changed"]) == 3
    assert "-60.00 points" in shown
    seen = Page(page.read_text(encoding="utf-8"))
    assert seen.pictures == 3
    assert seen.text.count("lost · ") == 3
    assert "What shape is it?" in seen.text


class Page(HTMLParser):
    """What a page says; only data URIs are loaded, and every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.pictures = "", 0
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag not in ("script", "link", "iframe")
        assert "href" not in values
        assert (values.get("src") or "data:image/jpeg").startswith("data:image/jpeg")
        self.pictures += tag == "img"
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_of_one_run_shows_what_is_wrong_and_escapes_it(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"media": str(CLIP), "question": "<b>What shape</b> is it?", "answer": "<script>alert(1)</script>"}]
    page = data.with_name("page.html")
    write(data, [*rows, {"media": "missing.mp4", "question": "?"}])
    assert run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "--page", page)[0] == 1
    seen = Page(page.read_text(encoding="utf-8"))
    assert "<b>What shape</b> is it?" in seen.text
    assert "<script>alert(1)</script>" in seen.text
    assert "missing.mp4" in seen.text
    assert seen.pictures == 1


def test_pictures_inside_a_question_and_several_of_them(
    tmp_path: Path, model: VideoLlama3, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked as the message that their parts are."""
    names = [tmp_path / f"{n}.png" for n in range(2)]
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 255, (112, 112, 3), np.uint8)
        Image.fromarray(pixels).save(name)
    content = [
        {"type": "text", "text": "Is "},
        {"type": "image", "image": str(names[1])},
        {"type": "text", "text": " like "},
        {"type": "image", "image": str(names[0])},
        {"type": "text", "text": "?"},
    ]
    wanted = model.generate([{"role": "user", "content": content}], GenerationConfig(temperature=0.0)).text
    rows = [{"media": [str(name) for name in names], "question": "Is <image 2> like <image 1>?", "answer": wanted}]
    status, out, _ = run(capsys, "evaluate", DEMO_BUNDLE, "--data", write(tmp_path / "set.jsonl", rows))
    assert status == 0
    assert "100.00 %" in out


def test_part_of_a_clip_is_shown(tmp_path: Path, model: VideoLlama3, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    rows = [{"media": str(CLIP), "question": "What colour is it?", **span} for span in ({}, {"start": 1, "end": 3})]
    run(capsys, "evaluate", DEMO_BUNDLE, "--data", write(tmp_path / "set.jsonl", rows), "-o", out, "--no-pruning")
    tokens = [result.num_tokens for result in read_results(out)[1].values()]
    frames = model.encode(CLIP).num_frames
    assert tokens[0] is not None
    assert tokens[1] == tokens[0] * 2 // frames


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume",), "-o FILE"),
        (("-o", "x.jsonl", "--resume", "--force"), "mutually exclusive"),
        (("--against-output", "x.jsonl"), "needs --against"),
        (("-o", "none/x.jsonl"), "no such folder"),
        (("--page", "none/x.html"), "no such folder"),
        (("--batch", "0"), "at least 1"),
        (("--fps", "0"), "positive"),
        (("--format", "lottery"), "invalid choice"),
        (("--limit", "0"), "at least 1"),
        (("--no-pruning", "--threshold", "1"), "mutually exclusive"),
    ],
)
def test_bad_usage_is_told_before_anything_is_loaded(
    options: tuple[str, ...], message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, *options)
    assert status == 2
    assert message in err
    assert out == ""
    assert "with ONNX Runtime" not in err


def test_the_other_may_not_be_the_same_file(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = data.with_name("out.jsonl")
    for options in (("--against", DEMO_BUNDLE, "--against-output", out), ("--against", data, "-o", data)):
        status, _, err = run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "-o", out, *options)
        assert status == 2
        assert "choose another" in err
    status, _, err = run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "--against", data.parent / "none")
    assert status == 1
    assert "none" in err


@pytest.mark.parametrize(
    "kind", ["no results", "no folder", "no bundle", "results in the way", "a checkpoint's results"]
)
def test_what_cannot_be_compared_with_is_told_before_anything_is_loaded(
    kind: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This run's own answers may take hours; and the same command, mended, begins as if nothing had been."""
    out, folder = data.with_name("out.jsonl"), data.with_name("folder")
    folder.mkdir()
    against = {"no results": data, "no folder": data.with_name("none"), "no bundle": folder}.get(kind, DEMO_BUNDLE)
    if kind == "results in the way":
        data.with_name("out.against.jsonl").write_text("mine\n")
    if kind == "a checkpoint's results":
        pytest.importorskip("torch")
        (folder / "config.json").write_text("{}")
        data.with_name("out.against.jsonl").write_text("mine\n")
        against = folder
    command = ("evaluate", DEMO_BUNDLE, "--data", data, "--limit", 1, "-o", out)
    status, shown, err = run(capsys, *command, "--against", against)
    assert status in (1, 2)
    assert shown == ""
    assert "error: " in err
    assert "with ONNX Runtime" not in err
    assert run(capsys, *command)[0] == 0


def test_one_question_is_not_several(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    err = run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "--limit", 1)[2]
    assert "1 question of our own form" in err


def result(id: str, score: float, group: str = "", clip: str = "c", measure: str = "choice") -> EvalResult:
    return EvalResult(id, "?", "x", score=score, group=group, clip=clip, measure=measure)


def test_recall_and_groups_of_a_report() -> None:
    overlaps = [0.2, 0.3, 0.5, 0.69, 0.7, 1.0]
    report = report_on(result(str(n), iou, "ab"[n % 2], str(n), "grounding") for n, iou in enumerate(overlaps))
    assert report.name == "mIoU"
    assert report.recalls == pytest.approx({"R@0.3": 5 / 6, "R@0.5": 4 / 6, "R@0.7": 2 / 6})
    assert report.score is not None
    assert report.score.value == pytest.approx(sum(overlaps) / 6)
    assert report.score.low <= report.score.value <= report.score.high
    assert report.group_mean == pytest.approx((sum(overlaps[::2]) / 3 + sum(overlaps[1::2]) / 3) / 2)


def test_only_questions_of_both_are_compared() -> None:
    first = {"1": result("1", 1.0), "2": result("2", 0.0), "3": EvalResult("3", "?", error="x"), "4": result("4", 1.0)}
    second = {"1": result("1", 0.0), "2": result("2", 0.0), "3": result("3", 1.0)}
    second["4"] = EvalResult("4", "another question", "x", score=0.0)
    compared = compare(first, second)
    assert compared is not None
    assert compared.difference.count == 2
    assert [b.id for _, b in compared.changed] == ["1"]
    assert compare(first, {"9": result("9", 1.0)}) is None
