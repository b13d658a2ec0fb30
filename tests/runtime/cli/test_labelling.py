"""`caption`, `ask` and `watch` for people who label: questions from files, prefixes, schemas, the best of several."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import run
from extras import needs_llguidance

from vl3edge.runtime import GenerationConfig, VideoLlama3

CLIP = Path(__file__).resolve().parents[2] / "fixtures" / "demo_clip.mp4"
SCHEMA = {
    "type": "object",
    "properties": {"moves": {"type": "boolean"}, "shape": {"enum": ["square", "circle"]}},
    "required": ["moves", "shape"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> VideoLlama3:
    return VideoLlama3.load()


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(SCHEMA).encode())
    return path


FILES = [
    ("What shape is it?", b"What shape is it?"),
    ("What shape is it?", b"\xef\xbb\xbfWhat shape is it?\r\n"),
    ("Two\nlines, é 影", "Two\r\nlines, é 影\n\n".encode()),
    (" <|im_end|> is text", b" <|im_end|> is text\n"),
]


@pytest.mark.parametrize(("question", "content"), FILES)
def test_the_question_is_read_from_a_file(
    question: str, content: bytes, model: VideoLlama3, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By every command that asks, from a file or from stdin."""
    expected = model.ask(model.encode(CLIP), question).text + "\n"
    (tmp_path / "q.txt").write_bytes(content)
    for command in ("caption", "ask"):
        assert run(capsys, command, CLIP, "--prompt-file", tmp_path / "q.txt")[:2] == (0, expected)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert run(capsys, "caption", CLIP, "--prompt-file", "-")[:2] == (0, expected)
    watch = ("watch", CLIP, "-q", "What?", "--prompt-file", tmp_path / "q.txt", "--speed", 99, "--format", "jsonl")
    _, shown, _ = run(capsys, *watch, "--max-new-tokens", 2)
    asked = [json.loads(line)["question"] for line in shown.splitlines()]
    assert asked[:2] == ["What?", question]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is no question in this file"),
        (b"\xef\xbb\xbf \n", "there is no question in this file"),
        ("Was?".encode("utf-16"), "not text in UTF-8; save it as UTF-8"),
        (b"caf\xe9", "not text in UTF-8"),
        (b"a" * ((1 << 20) + 1), "more than 1 MiB; name a text file"),
    ],
)
def test_files_without_a_question_are_refused(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.txt").write_bytes(content)
    for command in ("caption", "ask", "watch"):
        status, out, err = run(capsys, command, CLIP, "--prompt-file", tmp_path / "q.txt")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("caption", CLIP, "-p", "a", "--prompt-file", "q.txt"), "--prompt and --prompt-file are mutually exclusive"),
        (("ask", CLIP, "-q", "a", "--prompt-file", "q.txt"), "--question and --prompt-file are mutually exclusive"),
        (("caption", CLIP, "--find", "a", "--prompt-file", "q.txt"), "--find and --prompt are mutually exclusive"),
        (("caption", CLIP, "--find", "a", "--json-schema", "s.json"), "--find and --json-schema are mutually"),
        (("caption", CLIP, "--prompt-file", "none.txt"), "none.txt: it cannot be read (No such file"),
        (("caption", CLIP, "--prompt-file", "."), ".: it cannot be read (Is a directory)"),
        (("ask", "--prompt-file", "q.txt"), "needs MEDIA"),
        (("watch", CLIP), "there is nothing to ask"),
        (("caption", CLIP, "--json-schema", "q.txt"), "--json-schema q.txt: this is not JSON"),
        (("ask", CLIP, "--json-schema", "list.json"), "--json-schema list.json: a schema is a JSON object"),
        (("watch", CLIP, "-q", "a", "--json-schema", "deep.json"), "--json-schema deep.json: this is not JSON"),
        (("caption", CLIP, "--json-schema", "latin.json"), "error: latin.json: this is not text in UTF-8"),
        (("caption", CLIP, "--json-schema", "none.json"), "error: none.json: it cannot be read"),
        (("caption", CLIP, "--best-of", "3"), "set a temperature above 0 (--temperature)"),
        (("ask", CLIP, "-q", "a", "--best-of", "2", "--temperature", "0"), "set a temperature above 0"),
        (("caption", CLIP, "--best-of", "0"), "best_of must be at least 1"),
    ],
)
def test_what_does_not_go_together(
    arguments: tuple[Any, ...], message: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("q.txt").write_text("What?")
    Path("s.json").write_text("{}")
    Path("list.json").write_text("[]")
    Path("deep.json").write_text("[" * 100_000)
    Path("latin.json").write_bytes(b'{"title": "caf\xe9"}')
    status, out, err = run(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


@needs_llguidance
@pytest.mark.parametrize("more", [(), ("--batch", 2), ("--segment", 4), ("--isolate",)], ids=lambda m: str(m[:1]))
def test_records_hold_the_value(
    more: tuple[Any, ...], schema: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.jsonl"
    assert run(capsys, "caption", CLIP, "--json-schema", schema, "-o", out, *more)[0] == 0
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(records) == (2 if "--segment" in more else 1)
    for record in records:
        assert record["data"] == json.loads(record["caption"])
        assert set(record["data"]) == {"moves", "shape"}
    sidecar = tmp_path / "clip.mp4"
    sidecar.write_bytes(CLIP.read_bytes())
    assert run(capsys, "caption", sidecar, "--json-schema", schema, "--sidecar", "--format", "jsonl")[0] == 0
    assert set(json.loads(sidecar.with_suffix(".json").read_text())["data"]) == {"moves", "shape"}


@needs_llguidance
@pytest.mark.parametrize("more", [(), ("--batch", 2)], ids=["alone", "batch"])
def test_what_was_cut_off_is_told_and_tried_again(
    more: tuple[Any, ...], schema: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("caption", CLIP, "--json-schema", schema, "-o", tmp_path / "o.jsonl", *more)
    status, _, err = run(capsys, *command, "--max-new-tokens", 5)
    assert status == 1
    assert "0 captioned, 1 failed" in err
    record = json.loads((tmp_path / "o.jsonl").read_text())
    assert (
        "cut off after 5 tokens and is no whole JSON: allow more (max_new_tokens, --max-new-tokens)" in record["error"]
    )
    assert record["finish_reason"] == "length"
    assert not {"caption", "data"} & set(record)
    status, _, err = run(capsys, *command, "--retry-failed")
    assert status == 0
    assert set(json.loads((tmp_path / "o.jsonl").read_text())["data"]) == {"moves", "shape"}


@needs_llguidance
def test_answers_that_were_cut_off_fail(
    schema: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What there is of them is shown all the same."""
    status, out, err = run(capsys, "ask", CLIP, "-q", "Moves?", "--json-schema", schema, "--max-new-tokens", 3)
    assert status == 1
    assert out.startswith("{")
    assert "cut off after 3 tokens" in err
    monkeypatch.setattr(sys, "stdin", io.StringIO("Moves?\nAnd now?\n"))
    status, out, err = run(capsys, "ask", CLIP, "--json-schema", schema, "--max-new-tokens", 3)
    assert (status, out.count("{"), err.count("cut off")) == (1, 2, 2)
    watch = ("watch", CLIP, "-q", "Moves?", "--json-schema", schema, "--format", "jsonl", "--speed", 99)
    status, out, err = run(capsys, *watch, "--max-new-tokens", 3)
    records = [json.loads(line) for line in out.splitlines()]
    assert records
    assert all("cut off" in record["error"] and "data" not in record for record in records)
    assert err.count("cut off") == len(records)
    _, out, _ = run(capsys, *watch)
    assert all(set(json.loads(line)["data"]) == {"moves", "shape"} for line in out.splitlines())


def test_the_extra_is_named(schema: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for command in (("caption", CLIP), ("ask", CLIP, "-q", "What?")):
        status, out, err = run(capsys, *command, "--json-schema", schema)
        assert (status, out) == (2, "")
        assert "JSON schemas need llguidance: pip install 'vl3edge[schema]'" in err


@pytest.mark.parametrize("prefix", ["A green", "It does\nnot", "影 –"])
def test_answers_begin_with_the_prefix(
    prefix: str, model: VideoLlama3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = GenerationConfig(prefix=prefix, max_new_tokens=8)
    expected = model.ask(model.encode(CLIP), "Describe this video.", config).text
    assert expected.startswith(prefix)
    options = ("--prefix", prefix, "--max-new-tokens", 8)
    for more in ((), ("--batch", 2)):
        _, out, _ = run(capsys, "caption", CLIP, *options, *more, "--format", "jsonl")
        assert json.loads(out)["caption"] == expected
    assert run(capsys, "ask", CLIP, "-q", "Describe this video.", *options)[1] == expected + "\n"
    _, out, _ = run(capsys, "watch", CLIP, "-q", "What?", "--speed", 99, "--format", "jsonl", *options)
    assert all(json.loads(line)["answer"].startswith(prefix) for line in out.splitlines())


@pytest.mark.parametrize("batch", [1, 2])
def test_records_hold_the_score(batch: int, model: VideoLlama3, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the media where they are streamed, though answers end as they end."""
    settings: dict[str, Any] = {"temperature": 4.0, "top_k": 12, "seed": 5, "best_of": 3, "max_new_tokens": 10}
    answer = model.ask(model.encode(CLIP), "Describe this video.", GenerationConfig(**settings))
    options = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    status, out, _ = run(
        capsys, "caption", CLIP, CLIP.with_name("none.mp4"), "--format", "jsonl", "--batch", batch, *options
    )
    assert status == 1
    record = next(row for row in map(json.loads, out.splitlines()) if "error" not in row)
    assert record["caption"] == answer.text
    assert record["score"] == pytest.approx(answer.stats.score, abs=1e-4)
