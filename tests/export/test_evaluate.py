"""A checkpoint's own answers: those of transformers' model, and what `vl3edge evaluate --against CHECKPOINT` makes of
them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from PIL import Image

from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE
from vl3edge.runtime.config import GenerationConfig, SamplingPlan
from vl3edge.runtime.evaluate.item import EvalItem
from vl3edge.runtime.evaluate.results import read_results
from vl3edge.runtime.model import VideoLlama3

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "models" / "demo" / "checkpoint"
CLIP = ROOT / "tests" / "fixtures" / "demo_clip.mp4"
QUESTIONS = ("What colour is it?", "When does it stop?", "Describe this video.")

pytestmark = pytest.mark.torch


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_reference_answers_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo bundle in 4 bits against its checkpoint: the same words; what cannot be read fails on both sides."""
    rows = [{"media": str(CLIP), "question": question, "answer": "x"} for question in QUESTIONS]
    data = write(tmp_path / "set.jsonl", [*rows, {"media": "missing.mp4", "question": "?"}])
    out = tmp_path / "out.jsonl"
    command = ("evaluate", DEMO_BUNDLE, "--data", data, "-o", out, "--against", CHECKPOINT)
    status, shown, _ = run(capsys, *command)
    assert status == 1
    assert "3 of 3 answers are the same, word for word" in shown
    settings, results = read_results(tmp_path / "out.against.jsonl")
    assert settings["model"].endswith("in PyTorch")
    assert results["line 4"].error == read_results(out)[1]["line 4"].error
    before = (tmp_path / "out.against.jsonl").read_bytes()
    assert run(capsys, *command, "--resume")[0] == 1
    assert (tmp_path / "out.against.jsonl").read_bytes() == before


def test_the_references_answers_are_those_of_a_float_bundle(any_layout_bundle: tuple[Path, Path]) -> None:
    """Random weights: every token is a close race, so equal answers say that all before them is equal, too. A video,
    a picture, and two pictures inside the text."""
    from vl3edge.export.evaluate import ReferenceAnswering
    from vl3edge.models.checkpoint import Checkpoint

    checkpoint, bundle = any_layout_bundle
    opened = Checkpoint.open(checkpoint)
    config = GenerationConfig(max_new_tokens=8, temperature=0.0)
    picture = bundle.parent / "picture.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (60, 80, 3), np.uint8)).save(picture)
    items = [
        EvalItem("1", (str(CLIP),), (0, "What is it?"), "What is it?", "exact"),
        EvalItem("2", (str(picture),), (0, "What is it?"), "What is it?", "exact"),
    ]
    if opened.layout == "transformers":
        items.append(EvalItem("3", (str(picture),), ("Look: ", 0, " - what is it?"), "What is it?", "exact"))
    reference = ReferenceAnswering(opened, SamplingPlan(max_frames=3), config)
    answers = {answer.item.id: answer for answer in reference.answers(items)}
    model = VideoLlama3.load(bundle)
    for item in items:
        kind = "video" if item.media[0] == str(CLIP) else "image"
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": kind, kind: item.media[part]}
            for part in item.parts
        ]
        wanted = model.generate([{"role": "user", "content": parts}], config, SamplingPlan(max_frames=3)).text
        assert answers[item.id].error is None
        assert answers[item.id].text == wanted


@pytest.fixture(params=["transformers", "authors"])
def any_layout_bundle(
    request: pytest.FixtureRequest, checkpoints: Any, tiny_bundle: Path, authors_bundle: Path
) -> tuple[Path, Path]:
    if request.param == "transformers":
        return checkpoints("tiny"), tiny_bundle
    return checkpoints("tiny", "authors"), authors_bundle


def test_without_torch_it_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    data = write(tmp_path / "set.jsonl", [{"media": str(CLIP), "question": "?"}])
    status, _, err = run(capsys, "evaluate", DEMO_BUNDLE, "--data", data, "--against", CHECKPOINT)
    assert status == 2
    assert "pip install 'vl3edge[export]'" in err.splitlines()[-1]
