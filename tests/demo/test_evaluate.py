"""The evaluation's arithmetic, with predictors whose right and wrong answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vl3edge.models.demo.evaluate import evaluate, log_softmax, report_kind, score, summarize, write_media
from vl3edge.models.demo.predictors import Prediction
from vl3edge.models.demo.questions import IMAGE_KINDS, VIDEO_KINDS, Question
from vl3edge.models.demo.render import HELD_OUT_SEED, random_scene
from vl3edge.models.demo.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer()


class Parrot:
    """Answers rightly but for the kinds in `wrong`; its logits are flat, or `peak` higher at the right token."""

    def __init__(self, wrong: frozenset[str] = frozenset(), peak: float = 0.0) -> None:
        self.wrong = wrong
        self.peak = peak
        self.asked: list[tuple[str, list[str]]] = []

    def predict(self, media: Path, questions: list[Question]) -> list[Prediction]:
        assert media.stat().st_size > 0
        self.asked.append((media.suffix, [question.kind for question in questions]))
        predictions = []
        for question in questions:
            ids = TOKENIZER.encode(f"{question.answer}<|im_end|>").ids
            logits = np.zeros((len(ids), 448), np.float32)
            logits[np.arange(len(ids)), ids] = self.peak
            text = f"{question.answer} " if question.kind in self.wrong else question.answer
            predictions.append(Prediction(text, logits))
        return predictions


def test_exact_match_per_kind_counts_wrong_answers() -> None:
    predictor = Parrot(wrong=frozenset({"colour", "stop"}))
    lines = summarize(list(evaluate(predictor, TOKENIZER, range(2))))
    assert predictor.asked == [(".mp4", list(VIDEO_KINDS)), (".png", list(IMAGE_KINDS))] * 2
    assert lines["caption"].exact == 1.0
    assert lines["colour"].exact == 0.0
    assert lines["image colour"].exact == 0.0
    assert lines["image shape"].exact == 1.0
    assert lines["[attributes]"].exact == 0.75
    assert lines["[all]"].count == 2 * (len(VIDEO_KINDS) + len(IMAGE_KINDS))
    assert lines["[all]"].nll == pytest.approx(np.log(448))
    assert lines["[all]"].kl == 0.0


def test_times_without_event_are_counted_apart() -> None:
    lines = summarize(list(evaluate(Parrot(wrong=frozenset({"stop"})), TOKENIZER, range(6))))
    stops = sum(random_scene(HELD_OUT_SEED + seed).stop_time is not None for seed in range(6))
    assert 0 < stops < 6
    assert (lines["stop"].count, lines["stop, never"].count) == (stops, 6 - stops)
    assert lines["stop"].exact == lines["stop, never"].exact == 0.0
    timed = sum(lines[kind].count for kind in ("start", "turn", "stop") if kind in lines)
    assert lines["[times, with event]"].count == timed
    assert lines["[times, with event]"].count + lines["[times, never]"].count == 18


def test_flips_and_divergence_against_the_reference() -> None:
    reference, candidate = Parrot(frozenset({"turn"}), peak=2.0), Parrot(frozenset({"shape"}), peak=0.0)
    lines = summarize(list(evaluate(candidate, TOKENIZER, range(2), reference)))
    assert (lines["shape"].lost, lines["shape"].gained) == (2, 0)
    turns = [lines[kind] for kind in ("turn", "turn, never") if kind in lines]
    assert sum(line.gained for line in turns) == 2
    assert lines["caption"].lost == lines["caption"].gained == 0
    p = np.exp(2.0) / (np.exp(2.0) + 447)  # of the right token, by the reference
    q = 1 / 448
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / 447 / q)
    assert lines["[all]"].kl == pytest.approx(expected, rel=1e-6)


def test_score_refuses_logits_of_another_length() -> None:
    question = Question("colour", "What colour is it?", "Red.")
    prediction = Prediction("Red.", np.zeros((2, 448), np.float32))
    with pytest.raises(ValueError, match="2 rows of logits for 3 tokens"):
        score(question, [1, 2, 3], prediction)


def test_score_of_one_answer() -> None:
    question = Question("stop", "When does it stop?", "It never stops.", event=False)
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]], np.float32))
    result = score(question, [0, 2], Prediction("It never stops", logits))
    assert result.kind == "stop, never"
    assert not result.right
    np.testing.assert_allclose(result.nll, [-np.log(0.7), -np.log(0.25)], rtol=1e-6)
    assert report_kind(Question("colour", "", ""), image=True) == "image colour"


def test_log_softmax_does_not_overflow() -> None:
    result = log_softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], np.float32))
    np.testing.assert_allclose(result, [[0.0, -1e4], [-np.log(2), -np.log(2)]], atol=1e-9)


def test_media_are_written_the_same_every_time(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    scene, clip, still = write_media(tmp_path / "a", 4, noise=None)
    again, other_clip, other_still = write_media(tmp_path / "b", 4, noise=None)
    assert scene == again
    assert clip.read_bytes() == other_clip.read_bytes()
    assert still.read_bytes() == other_still.read_bytes()
    quiet = write_media(tmp_path / "a", 4, noise=0.0)[1].stat().st_size
    noisy = write_media(tmp_path / "b", 4, noise=4.0)[1].stat().st_size
    assert noisy > quiet, f"{noisy} bytes with noise, {quiet} without"
