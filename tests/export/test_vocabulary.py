"""`export --vocabulary`: which tokens a head keeps, what the report says is lost, and a bundle that says no others."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from resealing import reseal
from tokenizers import Tokenizer

from vl3edge.export import cli
from vl3edge.export.errors import ExportError
from vl3edge.export.options import ExportOptions
from vl3edge.export.pipeline import ExportReport, export_bundle
from vl3edge.export.verify.verify import VerifyOptions, verify_bundle
from vl3edge.export.vocabulary import head_vocabulary as vocabulary
from vl3edge.export.vocabulary.texts import texts
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.demo.evaluate import CHECKPOINT
from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.file_names import HEAD_TOKENS
from vl3edge.runtime.bundle.head_tokens import HeadTokens
from vl3edge.runtime.bundle.slim import slim
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.errors import BundleError

SAID = "The circle is red.\nA green square moves to the left.\nThe square stops.\nNothing happens here.\n"


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return Checkpoint.open(CHECKPOINT)


def test_what_is_said_can_be_said_and_all_else_spelled(demo: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "said.txt").write_text(SAID)
    kept = vocabulary.head_vocabulary(demo, str(tmp_path / "said.txt"))
    assert kept.ids is not None
    ids = set(kept.ids.tolist())
    assert len(ids) == len(kept.ids)
    assert len(ids) % vocabulary.MULTIPLE == 0
    assert len(ids) < demo.config.text.vocab_size
    assert kept.ids.tolist() == sorted(ids)
    tokenizer = Tokenizer.from_str(demo.tokenizer_json())
    for line in (*SAID.splitlines(), "square", " Square", "The square", "left", "0123456789", "[[0.5, 1]]", '{"a"'):
        assert set(tokenizer.encode(line, add_special_tokens=False).ids) <= ids, line
    added = {token["id"] for token in json.loads(demo.tokenizer_json())["added_tokens"]}
    single = {id_ for name, id_ in tokenizer.get_vocab().items() if len(name) == 1}
    assert len(single) == 256
    assert {0, *demo.config.eos_token_ids, *added, *single} <= ids


def test_the_report_counts_what_every_other_line_loses(demo: Checkpoint, tmp_path: Path) -> None:
    """Against the definition: a head of the even lines alone, and the fewest of its tokens that have the same bytes."""
    path = tmp_path / "said.txt"
    path.write_text(SAID)
    spec = vocabulary.head_vocabulary(demo, str(path)).spec
    path.write_text("".join(SAID.splitlines(keepends=True)[::2]))
    half = vocabulary.head_vocabulary(demo, str(path)).ids
    assert half is not None
    tokenizer = Tokenizer.from_str(demo.tokenizer_json())
    pieces = {tokenizer.id_to_token(int(id_)) for id_ in half}

    def fewest(name: str) -> int:
        return min(
            1 + (fewest(name[end:]) if name[end:] else 0) for end in range(1, len(name) + 1) if name[:end] in pieces
        )

    others = [tokenizer.encode(line, add_special_tokens=False).ids for line in SAID.splitlines()[1::2]]
    said = [id_ for line in others for id_ in line]
    lost = [id_ for id_ in said if id_ not in half]
    assert (spec.held_out_tokens, spec.held_out_lost) == (len(said), len(lost))
    assert lost
    assert spec.held_out_spelled == sum(fewest(tokenizer.id_to_token(id_)) for id_ in lost)
    assert spec.source == "said.txt"


def test_the_corpus_keeps_english_words(demo: Checkpoint) -> None:
    tokenizer = Tokenizer.from_str(demo.tokenizer_json())
    ids = vocabulary.head_vocabulary(demo, "corpus").ids
    kept = set(range(demo.config.text.vocab_size)) if ids is None else set(ids.tolist())
    for name, id_ in tokenizer.get_vocab().items():
        if re.fullmatch("Ġ?[a-z]+", name):
            assert id_ in kept, name


def test_texts_of_json_lines_are_their_strings(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    path.write_text('{"caption": "A cat.\\nIt sits.", "n": 3, "more": [{"x": "Two"}]}\n\n"plain"\n', encoding="utf-8")
    assert texts(str(path)) == ["caption", "A cat.", "It sits.", "n", "more", "x", "Two", "plain"]
    path.with_suffix(".srt").write_bytes("\ufeff1\r\n00:00:01,000 --> 00:00:02,000\r\nUn café.\r\n".encode())
    assert texts(str(path.with_suffix(".srt")))[-1] == "Un café."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "there is no such file; give a text file of what will be said, or 'corpus'"),
        ("empty.txt", b"", "there is no text in it"),
        ("blank.txt", b" \n\t\n", "there is no text in it"),
        ("numbers.jsonl", b"[1, 2]\n", "there is no text in it"),
        ("latin.txt", b"caf\xe9", "it is not UTF-8 text"),
        ("broken.jsonl", b'{"a": "b"}\n{"a"\n', "line 2: it is not a line of JSON"),
        (".", None, "it cannot be read"),
    ],
)
def test_texts_that_cannot_be_used_are_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    command = [str(CHECKPOINT), "-o", str(tmp_path / "bundle"), "--vocabulary", str(tmp_path / name)]
    assert cli.main(command) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "bundle").exists()


def test_a_tokenizer_without_bytes_is_refused(demo: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    source = json.loads(demo.tokenizer_json())
    source["model"]["vocab"] = {f"\u2581{name}": id_ for name, id_ in source["model"]["vocab"].items()}
    source["model"]["merges"] = []
    monkeypatch.setattr(Checkpoint, "tokenizer_json", lambda self: json.dumps(source))
    with pytest.raises(ExportError, match="needs a tokenizer of bytes"):
        vocabulary.head_vocabulary(demo, "corpus")


def test_a_list_of_everything_leaves_nothing_out(
    demo: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer.from_str(demo.tokenizer_json())
    words = [tokenizer.decode([id_]) for id_ in range(demo.config.text.vocab_size)]
    (tmp_path / "all.txt").write_text("\n".join(words))
    assert vocabulary.head_vocabulary(demo, str(tmp_path / "all.txt")) == vocabulary.WHOLE
    report = ExportReport(tmp_path, open_bundle(DEMO_BUNDLE).manifest)
    monkeypatch.setattr(cli, "export_bundle", lambda *arguments: report)
    assert cli.main([str(CHECKPOINT), "-o", str(tmp_path / "b"), "--vocabulary", str(tmp_path / "all.txt")]) == 0
    assert "--vocabulary leaves nothing out: the output head has all tokens" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cut(checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny checkpoint, whose tokenizer is almost nothing but bytes, with few rows left out."""
    folder = tmp_path_factory.mktemp("cut")
    (folder / "said.txt").write_text("a cat is in the video\nthe cat\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "MULTIPLE", 1)
        options = ExportOptions(targets=("cpu", "cuda"), precision="fp16", vocabulary=str(folder / "said.txt"))
        export_bundle(Checkpoint.open(checkpoints("tiny")), folder / "bundle", options)
    return folder / "bundle"


def test_an_export_says_what_it_left_out_and_verifies(
    cut: Path, checkpoints: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = open_bundle(cut)
    text, head = bundle.manifest.text, HeadTokens.of(bundle)
    assert head is not None
    assert 256 < text.head_rows == len(head.ids) < text.vocab_size
    checkpoint = Checkpoint.open(checkpoints("tiny"))
    report = verify_bundle(cut, checkpoint, VerifyOptions(frames=2, tokens=5, threads=1))
    assert report.first_failure is None, report.table()
    assert main(["info", str(cut)]) == 0
    shown = capsys.readouterr().out
    assert f"of {text.head_rows} of {text.vocab_size} tokens; words outside cannot be said as they are" in shown
    assert f"output head: {text.head_rows} of {text.vocab_size} tokens, by said.txt" in shown
    assert "every other line" in shown


def test_answers_are_made_of_the_tokens_kept(cut: Path) -> None:
    head = HeadTokens.of(open_bundle(cut))
    assert head is not None
    model = VideoLlama3.load(cut, backend="cpu", num_threads=1)
    clip = model.encode(np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8))
    for config in (
        GenerationConfig(max_new_tokens=24),
        GenerationConfig(max_new_tokens=24, temperature=2.0, seed=1),
        GenerationConfig(max_new_tokens=24, repetition_penalty=1.5),
    ):
        said = model.ask(clip, "What is the Time?", config).token_ids
        assert said
        assert set(said) <= set(head.ids.tolist())


def test_a_slim_bundle_keeps_the_list(cut: Path, tmp_path: Path) -> None:
    for target in ("cpu", "cuda"):
        copy = tmp_path / target
        shutil.copytree(cut, copy)
        slim(copy, target)  # type: ignore[arg-type]
        assert HEAD_TOKENS in open_bundle(copy).manifest.files
    assert VideoLlama3.load(tmp_path / "cpu", backend="cpu", num_threads=1)


@pytest.mark.parametrize("change", ["unsorted", "no end token", "beyond", "short", "wrong type", "no array"])
def test_a_list_that_does_not_fit_is_refused(cut: Path, tmp_path: Path, change: str) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(cut, copy)
    ids = np.load(copy / HEAD_TOKENS)
    eos = open_bundle(cut).manifest.tokens.eos_ids[0]
    changed = {
        "unsorted": np.concatenate([ids[:1], ids[2:3], ids[1:2], ids[3:]]),
        "no end token": np.append(ids[ids != eos], 319 if 319 not in ids else eos + 1).astype(np.int32),
        "beyond": np.append(ids[:-1], 320).astype(np.int32),
        "short": ids[:-1],
        "wrong type": ids.astype(np.float32),
        "no array": None,
    }[change]
    if changed is None:
        (copy / HEAD_TOKENS).write_bytes(b"\x93NUMPY nothing")
    else:
        np.save(copy / HEAD_TOKENS, changed)
    reseal(copy)
    with pytest.raises(BundleError, match=r"head-tokens\.npy (does not fit|cannot be read)"):
        VideoLlama3.load(copy, backend="cpu", num_threads=1)


def test_the_manifest_and_the_list_must_agree(cut: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(cut, copy)
    data = json.loads((copy / "bundle.json").read_text())
    data["text"]["head_rows"] = 0
    del data["sha256"]
    (copy / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"text\.head_rows is 0 of 320, and head-tokens\.npy is listed"):
        open_bundle(copy)
