"""`vl3edge compare`: the page and the lines of two bundles' answers, what fails, what is killed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from PIL import Image

from vl3edge.runtime import VideoLlama3
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE
from vl3edge.runtime.bundle.manifest import sealed
from vl3edge.runtime.compare.difference import marked_words, pairs, summary
from vl3edge.runtime.evaluate.results import EvalResult
from vl3edge.runtime.media.addresses import clip_key

CLIP = Path(__file__).resolve().parents[2] / "fixtures" / "demo_clip.mp4"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle, which here never says a word twice."""
    folder = tmp_path_factory.mktemp("bundles") / "other"
    shutil.copytree(DEMO_BUNDLE, folder)
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    manifest["name"] = "never <twice>"
    manifest["generation"]["repetition_penalty"] = 40.0
    (folder / "bundle.json").write_text(json.dumps(sealed(manifest)), encoding="utf-8")
    return folder


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    shutil.copy(CLIP, folder / "a.mp4")
    Image.fromarray(np.full((112, 112, 3), (200, 30, 30), np.uint8)).save(folder / "<img src=x onerror=alert(1)>.png")
    (folder / "broken.mp4").write_bytes(b"no film")
    return folder


class Seen(HTMLParser):
    """A page: its text, its pictures, what is marked in it, and the elements that are open at its end."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.pictures, self.marked = "", 0, list[str]()
        self.tags: Counter[str] = Counter()
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "href", "srcset") or str(value).startswith("data:image/jpeg;base64,")
        self.pictures += tag == "img"
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if "mark" in self._open:
            self.marked.append(data)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_are_those_of_each_bundle(
    clips: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each clip that can be read has two; the others are told, and stop nothing."""
    out = tmp_path / "out"
    status, shown, _ = run(capsys, "compare", DEMO_BUNDLE, other, clips, tmp_path / "none.mp4", "-o", out)
    assert status == 1
    assert "2 without two answers" in shown
    found = {Path(row["media"]).name: row for row in lines(out / "compare.jsonl")}
    assert len(found) == 4
    for bundle, side in ((DEMO_BUNDLE, "a"), (other, "b")):
        model = VideoLlama3.load(bundle, num_threads=1)
        answer = model.ask(model.encode(CLIP), "Describe this video.")
        assert found["a.mp4"][side]["answer"] == answer.text
        assert found["a.mp4"][side]["answer_tokens"] == answer.stats.generated_tokens
        assert "FFmpeg" in found["broken.mp4"][side]["error"]
        assert "there is no such file" in found["none.mp4"][side]["error"]
    assert found["a.mp4"]["equal"] is False
    assert 0 < found["a.mp4"]["similarity"] < 1
    assert found["broken.mp4"]["equal"] is None
    assert re.search(r"0 of 2 answers are the same \(0.0%\)", shown)
    page = Seen((out / "index.html").read_text(encoding="utf-8"))
    assert page.pictures == 2
    assert not {"script", "twice"} & set(page.tags)
    for text in ("never <twice>", "<img src=x onerror=alert(1)>.png", found["a.mp4"]["b"]["answer"][:20]):
        assert text in page.text
    assert page.marked
    assert page.text.index("none.mp4") > page.text.index("a.mp4")  # failures come last


def test_the_same_bundle_twice_differs_in_nothing(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    command = ("compare", DEMO_BUNDLE, DEMO_BUNDLE, clips / "a.mp4", "-p", "What shape is it?", "-o", out, "--batch", 2)
    status, shown, _ = run(capsys, *command)
    assert status == 0
    assert "1 of 1 answers are the same (100.0%); 100.0% of words in common" in shown
    page = Seen(out.read_text(encoding="utf-8"))
    assert not page.marked
    assert "the same answer" in page.text
    assert "Asked: What shape is it?" in page.text
    assert {path.name for path in tmp_path.iterdir()} == {
        "clips", "page.html", "page.jsonl", "page.a.jsonl", "page.b.jsonl"}  # fmt: skip
    status, _, err = run(capsys, *command)
    assert (status, "page.html exists; continue with --resume" in err) == (2, True)
    status, _, err = run(capsys, *command[:4], "-p", "What colour is it?", "-o", out, "--resume")
    assert (status, "prompt What shape is it?; now it is What colour is it?" in err) == (2, True)
    status, _, err = run(capsys, *command, "--resume")
    assert (status, "ONNX Runtime" in err) == (0, False)  # nothing is loaded where nothing is left to ask


def test_a_killed_comparison_continues(
    clips: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        shutil.copy(CLIP, clips / f"more{number}.mp4")
    out = tmp_path / "out"
    arguments = ["compare", str(DEMO_BUNDLE), str(other), str(clips), "-o", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "vl3edge", *arguments], stderr=subprocess.DEVNULL)
    second = out / "b.jsonl"
    while not (second.exists() and second.read_bytes().count(b"\n") >= 3) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "index.html").exists()
    before = second.read_bytes().splitlines()[:3]
    status, _, err = run(capsys, *arguments, "--resume")
    assert status == 1
    assert err.count("ONNX Runtime") == 1  # of the second bundle alone
    assert second.read_bytes().splitlines()[:3] == before
    assert len(lines(out / "compare.jsonl")) == 9
    shutil.copy(CLIP, clips / "broken.mp4")
    assert run(capsys, *arguments, "--resume")[0] == 1
    assert run(capsys, *arguments, "--retry-failed")[0] == 0


def test_a_form_of_the_answer_is_asked_of_both(
    clips: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.txt").write_bytes(b"\xef\xbb\xbfWhat is it?\r\n")
    command = ("compare", DEMO_BUNDLE, other, clips / "a.mp4", "--prompt-file", tmp_path / "q.txt", "--prefix", "It is")
    assert run(capsys, *command, "-o", tmp_path / "o")[0] == 0
    (row,) = lines(tmp_path / "o" / "compare.jsonl")
    assert row["question"] == "What is it?"
    assert all(row[side]["answer"].startswith("It is") for side in "ab")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "none/page.html"), "no such folder"),
        (("-o", "a.txt"), "is a file; -o names a folder, or a page"),
        (("-o", "x", "--force", "--resume"), "mutually exclusive"),
        (("-o", "x", "--best-of", "2"), "set a temperature"),
        (("-o", "x", "-p", "a", "--prompt-file", "a.txt"), "--prompt and --prompt-file are mutually exclusive"),
        ((), "-o/--output"),
    ],
)
def test_what_cannot_be_compared(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("text")
    status, out, err = run(capsys, "compare", DEMO_BUNDLE, DEMO_BUNDLE, CLIP, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_bundle_that_is_none_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "compare", DEMO_BUNDLE, tmp_path / "none", CLIP, "-o", tmp_path / "out")
    assert (status, "none" in err) == (1, True)
    assert not list(tmp_path.iterdir())


WORDS = [
    ("A red square.", "A blue square.", ["red"], ["blue"], 6 / 8),
    ("A red square", "A red square", [], [], 1.0),
    ("It waits, then moves.", "It moves.", [" waits, then"], [], 6 / 9),
    ("一个红色方块", "一个蓝色方块", ["红"], ["蓝"], 10 / 12),
    ("", "Words", [], ["Words"], 0.0),
    ("", "", [], [], 1.0),
    ("one\ntwo", "one two", ["\n"], [" "], 1.0),
]


@pytest.mark.parametrize(("first", "second", "left", "right", "similarity"), WORDS)
def test_words_that_differ_are_marked(
    first: str, second: str, left: list[str], right: list[str], similarity: float
) -> None:
    marked = marked_words(first, second)
    assert "".join(text for text, _ in marked[0]) == first
    assert "".join(text for text, _ in marked[1]) == second
    assert [text for text, changed in marked[0] if changed] == left
    assert [text for text, changed in marked[1] if changed] == right
    assert marked[2] == pytest.approx(similarity)


def test_the_summary_counts_what_both_answered() -> None:
    def said(name: str, text: str, tokens: int) -> tuple[str, EvalResult]:
        key = clip_key(name)
        return key, EvalResult(key, "?", text, num_tokens=10 * tokens, answer_tokens=tokens, seconds=tokens / 2)

    first = dict([said("a", "x y", 2), said("b", "x", 4), said("c", "z", 100)])
    second = dict([said("a", "x z", 3), said("b", "x", 5)])
    second[clip_key("c")] = EvalResult(clip_key("c"), error="broken")
    found = pairs(["a", "b", "c", "d", "./a"], first, second)
    assert [pair.is_equal for pair in found] == [False, True, False, False]
    total = summary(found)
    assert (total.answered, total.equal, total.failed, total.similarity) == (2, 1, 2, 0.75)
    assert total.first is not None
    assert total.second is not None
    assert (total.first.answer_tokens, total.first.visual_tokens, total.first.seconds) == (3, 30, 1.5)
    assert total.second.answer_tokens == 4
