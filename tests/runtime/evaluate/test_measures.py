"""Measures against their definitions worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from vl3edge.runtime.captions.grounding import Span
from vl3edge.runtime.evaluate.item import EvalItem
from vl3edge.runtime.evaluate.measures import MEASURES, anls, judge, overlap, relaxed


def item(measure: str, *answers: str, **fields: Any) -> EvalItem:
    return EvalItem("1", ("a.mp4",), (0, "?"), fields.pop("question", "?"), measure, answers, **fields)


@pytest.mark.parametrize(
    ("answer", "wanted", "score"),
    [
        ("hello", "hello", 1.0),
        ("Hello  World", "hello world", 1.0),
        ("helo", "hello", 1 - 1 / 5),  # one letter inserted
        ("kitten", "sitting", 1 - 3 / 7),  # the textbook's example: two replaced, one inserted
        ("ab", "ac", 0.5),  # at the threshold
        ("abc", "xyc", 0.0),  # 1/3 is below it
        ("", "hello", 0.0),
        ("", "", 1.0),
        ("12 March", "12 may", 1 - 3 / 8),
    ],
)
def test_anls(answer: str, wanted: str, score: float) -> None:
    assert anls(answer, wanted) == pytest.approx(score)


def test_anls_takes_the_best_of_several_answers() -> None:
    assert judge(item("anls", "zzz", "hello", "help"), "helo").score == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("answer", "wanted", "right"),
    [
        ("104", "100", True),
        ("105", "100", True),
        ("105.1", "100", False),
        ("95", "100", True),
        ("94.9", "100", False),
        ("-98", "-100", True),
        ("98", "-100", False),
        ("25%", "0.25", True),
        ("25 ", "25", True),
        ("1,000", "1000", True),
        ("Blue.", "blue", True),
        ("dark blue", "blue", False),
        ("0.01", "0", False),  # no share of nothing
        ("0", "0", True),
        ("about 100", "100", False),
    ],
)
def test_relaxed_accuracy(answer: str, wanted: str, right: bool) -> None:
    assert relaxed(answer, wanted) is right


@pytest.mark.parametrize(
    ("spans", "wanted", "iou"),
    [
        ([(0, 10)], (0, 10), 1.0),
        ([(0, 5)], (0, 10), 0.5),
        ([(5, 15)], (0, 10), 5 / 15),
        ([(20, 30)], (0, 10), 0.0),
        ([(0, 2), (6, 8)], (0, 10), 0.4),
        ([(0, 10), (0, 10)], (0, 10), 1.0),  # said twice
        ([(0, 6), (4, 20)], (0, 10), 0.5),  # overlapping: together 0 to 20
        ([], (0, 10), 0.0),
        ([(5, 5)], (5, 5), 0.0),
        ([(2, 4)], (10, 0), 0.2),  # a span written backwards
    ],
)
def test_overlap_is_intersection_over_union(
    spans: list[tuple[float, float]], wanted: tuple[float, float], iou: float
) -> None:
    assert overlap([Span(*span) for span in spans], wanted) == pytest.approx(iou)


@pytest.mark.parametrize(
    ("one", "answer", "score"),
    [
        (item("choice", "B", options=("x", "y")), "(B)", 1.0),
        (item("choice", "B", options=("x", "y")), "y", 1.0),
        (item("choice", "B", options=("x", "y")), "A", 0.0),
        (item("choice", "C", question="?\n(A) x\n(B) y\n(C) z"), "z", 1.0),
        (item("nearest", "A", options=("blue", "green")), "bleu", 1.0),
        (item("exact", "yes"), " Yes. ", 1.0),
        (item("exact", "3"), "three", 1.0),
        (item("exact", "yes"), "yes it is", 0.0),
        (item("contains", "dog"), "There is a dog.", 1.0),
        (item("contains", "dog"), "doggy", 0.0),
        (item("starts", "Option 2"), "2: the man", 1.0),
        (item("starts", "Option 2"), "Option 2", 1.0),
        (item("starts", "Caption A"), "caption b", 0.0),
        (item("starts", "yes"), "Yes, it is", 1.0),
        (item("starts", "no"), "now", 0.0),
        (item("ocr", "CENTRE"), "the word is centre", 1.0),
        (item("ocr", "two words"), "two\nwords!", 1.0),
        (item("formula", "x ^ 2"), "y = x^2", 1.0),
        (item("formula", "X"), "x", 0.0),
        (item("number", "14", precision=0), "The answer is 14.", 1.0),
        (item("number", "1.2", precision=1), "1.23", 1.0),
        (item("number", "1.2", precision=1), "1.26", 0.0),
        (item("number", "5"), "no idea", 0.0),
        (item("open", "8.33"), "So the answer is 8.333 A", 1.0),
        (item("open", "8.33"), "8.3", 0.0),
        (item("open", "transformer", "T"), "It is a Transformer", 1.0),
        (item("open", "a"), "banana", 0.0),  # a character is no part of a word
        (item("open", "a"), "so it is a", 1.0),
        (item("open", "50%"), "50", 0.0),
        (item("open", "50%"), "about 50%", 1.0),
        (item("open", "1,000"), "1000.001", 1.0),
        (item("relaxed", "100", "7"), "7.1", 1.0),
        (item("grounding", span=(2.0, 4.0)), "from 2 to 3 seconds", 0.5),
        (item("grounding", span=(2.0, 4.0)), "never", 0.0),
    ],
)
def test_each_measure(one: EvalItem, answer: str, score: float) -> None:
    assert one.measure in MEASURES
    assert judge(one, answer).score == pytest.approx(score)


@pytest.mark.parametrize("measure", MEASURES)
def test_without_a_known_answer_there_is_no_score(measure: str) -> None:
    assert judge(item(measure), "A").score is None
