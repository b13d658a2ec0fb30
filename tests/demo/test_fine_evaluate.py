"""The fine evaluation: its arithmetic with predictors whose answers are known, and the ways to prune."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.demo.fine.clips import write_clip
from vl3edge.models.demo.fine.evaluate import ALL, answer, summarize
from vl3edge.models.demo.fine.layout import random_world
from vl3edge.models.demo.fine.model import fine_config
from vl3edge.models.demo.fine.questions import KINDS, ask_all
from vl3edge.models.demo.fine.tokenizer import fine_processor, train_tokenizer
from vl3edge.models.demo.fine.ways import drawn_half, make_way
from vl3edge.models.demo.model import make_model
from vl3edge.models.demo.predictors import Prediction
from vl3edge.models.demo.questions import Question
from vl3edge.models.demo.render import HELD_OUT_SEED
from vl3edge.models.demo.tokenizer import special_ids
from vl3edge.models.demo.train import save_checkpoint

TOKENIZER = train_tokenizer()


class Parrot:
    """Answers rightly but for some kinds in clips of even numbers; its logits are flat."""

    def __init__(self, *wrong: str) -> None:
        self.wrong = wrong
        self.asked: list[Question] = []

    def predict(self, media: Path, questions: list[Question]) -> list[Prediction]:
        assert media.stat().st_size > 0
        self.asked += questions
        predictions = []
        for question in questions:
            count = len(TOKENIZER.encode(f"{question.answer}<|im_end|>").ids)
            miss = question.kind in self.wrong and int(media.stem) % 2 == 0
            text = "Nothing." if miss else question.answer
            predictions.append(Prediction(text, np.zeros((count, 448), np.float32)))
        return predictions


def test_differences_are_paired_with_the_first_way() -> None:
    ways = [Parrot("sign"), Parrot("count", "cut"), Parrot("sign")]
    first, second, third = summarize(answer(ways, TOKENIZER, range(4)))
    assert ways[0].asked == ways[1].asked
    assert ways[0].asked == [
        q for number in range(4) for q in ask_all(random_world(HELD_OUT_SEED + number), HELD_OUT_SEED + number)
    ]
    assert first["sign"].exact == second["count"].exact == second["cut"].exact == 0.5
    assert first["count"].exact == second["sign"].exact == 1.0
    assert first[ALL].difference is None
    difference = second[ALL].difference
    assert difference is not None
    assert (difference.count, difference.lost, difference.gained) == (first[ALL].count, 4, 2)
    assert difference.p == pytest.approx(0.5)  # two clips of four changed, each by one answer: 2 of 4 signs
    same = third[ALL].difference
    assert same is not None
    assert (same.lost, same.gained, same.p) == (0, 0, 1.0)
    assert first[ALL].nll == pytest.approx(np.log(448))
    assert list(first) == [kind for kind in KINDS if kind in first] + [ALL]


def test_the_drawn_half_follows_from_the_clip_alone() -> None:
    keep = drawn_half(Path("somewhere/7.mp4"), 5)
    np.testing.assert_array_equal(keep, drawn_half(Path("elsewhere/7.mp4"), 5))
    assert keep.sum(axis=(1, 2)).tolist() == [12] * 5
    assert (keep != drawn_half(Path("8.mp4"), 5)).any()


@pytest.mark.parametrize("way", ["torch:quarter", "somewhere:half"])
def test_unknown_prunings_are_refused(way: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'random' or a threshold"):
        make_way(way, tmp_path)


def test_a_bundle_answers_as_torch_does_from_the_same_tokens(tmp_path: Path) -> None:
    """Random weights, exported: the same logits with all tokens, with DiffFP's, and with the drawn half."""
    model = make_model(fine_config(special_ids(TOKENIZER)), seed=5)
    save_checkpoint(model, fine_processor(TOKENIZER), tmp_path / "checkpoint")
    export_bundle(Checkpoint.open(tmp_path / "checkpoint"), tmp_path / "bundle")
    questions = ask_all(write_clip(tmp_path / "6.mp4", 6), HELD_OUT_SEED + 6)[:1]
    logits = {}
    for pruning in ("full", "2", "random"):
        torch_way = make_way(f"torch:{pruning}", tmp_path / "checkpoint")
        bundle_way = make_way(f"{tmp_path / 'bundle'}:{pruning}", tmp_path / "checkpoint")
        mine, theirs = (way.predict(tmp_path / "6.mp4", questions) for way in (torch_way, bundle_way))
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a.logits, b.logits, atol=2e-3, err_msg=pruning)
        logits[pruning] = mine[0].logits
    assert np.abs(logits["full"] - logits["random"]).max() > 0.01
    assert np.abs(logits["full"] - logits["2"]).max() > 0.01
