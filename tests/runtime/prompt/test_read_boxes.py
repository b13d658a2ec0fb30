"""Boxes in answers and in questions: what is one, where it is in pixels, and what is said of what is none."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl3edge.runtime import Box, ConfigError
from vl3edge.runtime.prompt.boxes import boxes_question, question_with_regions, read_boxes, region

SIZE = (480, 640)
WHITE_CAR = Box("the white car", 36, 20, 250, 232)


@pytest.mark.parametrize(
    ("answer", "boxes"),
    [
        ("<ref>the white car</ref>[[56, 42, 390, 484]]", [WHITE_CAR]),
        ("<ref>the white car</ref>[[56,42,390,484]]", [WHITE_CAR]),
        ("It is <ref> the\nwhite  car </ref>\n [ [ 56 ,\n42, 390, 484 ] ].", [WHITE_CAR]),
        ("[[56, 42, 390, 484]]", [Box(None, 36, 20, 250, 232)]),
        ("[[0, 0, 1000, 1000]]", [Box(None, 0, 0, 640, 480)]),
        (
            "<ref>two cats</ref>[[0,0,500,500],[500, 500, 1000, 1000]]",
            [Box("two cats", 0, 0, 320, 240), Box("two cats", 320, 240, 640, 480)],
        ),
        (
            "<ref>猫</ref>[[0,0,500,500]] is beside <ref>a dog</ref>[[500,0,1000,500]]",
            [Box("猫", 0, 0, 320, 240), Box("a dog", 320, 0, 640, 240)],
        ),
        ("<ref></ref>[[0,0,500,500]]", [Box(None, 0, 0, 320, 240)]),
        ("The plate of [234, 117, 828, 707] is [8E56].", []),
        ("At 3.0s.", []),
        ("", []),
    ],
)
def test_boxes(answer: str, boxes: list[Box]) -> None:
    read = read_boxes(answer, [SIZE])
    assert list(read.boxes) == boxes
    assert read.note is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("<ref>a</ref>[[56, 42, 390]]", "[56, 42, 390] is not four whole numbers"),
        ("[[56, 42, 390, 484, 5]]", "not four whole numbers"),
        ("[[5.6, 4.2, 39.0, 48.4]]", "not four whole numbers"),
        ("[[-56, 42, 390, 484]]", "not four whole numbers"),
        ("[[٥٦, 42, 390, 484]]", "not four whole numbers"),
        ("[[x0,y0,x1,y1]]", "not four whole numbers"),
        ("[[]]", "not four whole numbers"),
        ("[[[1, 2, 3, 4]]]", ""),
        ("[[56, 42, 1001, 484]]", "not within 0 to 1000"),
        ("[[390, 42, 56, 484]]", "wrong order"),
        ("[[56, 484, 390, 42]]", "wrong order"),
        ("[[56, 42, 56, 484]]", "wrong order"),
        ("<ref>a</ref>[[56, 42, 390, 4", "not complete"),
        ("<ref>a</ref>[[56, 42, 390, 484", "not complete"),
        ("<ref>a</ref>[[56, 42, 390, 484]", "not complete"),
        ("<ref>a</ref>[[", "not complete"),
        ("<ref>a</ref>", "no box after it"),
        ("<ref>the white c", "no box after it"),
        ("<ref>a</ref>[56, 42, 390, 484]", "no box after it"),
    ],
)
def test_what_is_no_box_gives_none_and_says_so(answer: str, why: str) -> None:
    read = read_boxes(answer, [SIZE])
    assert read.boxes == ()
    assert read.note is not None
    assert read.note.startswith("1 of 1 box cannot be used: ")
    assert why in read.note
    assert "\n" not in read.note


@pytest.mark.parametrize(
    "answer",
    [
        "<ref>a</ref>[[1,2,3] and <ref>the white car</ref>[[56, 42, 390, 484]]",
        "<ref>a</ref> is left of <ref>the white car</ref>[[56, 42, 390, 484]]",
        "<ref>the white car</ref>[[56, 42, 390, 484],[1,2",
        "<ref>the white car</ref>[[56, 42, 390, 484],[9,8,7,6]]",
        "[[1,2,\x1b[31m]] <ref>the \x1b[1mwhite car</ref>[[56, 42, 390, 484]]",
    ],
)
def test_the_others_of_an_answer_stay(answer: str) -> None:
    read = read_boxes(answer, [SIZE])
    assert [(box.x0, box.y0, box.x1, box.y1) for box in read.boxes] == [(36, 20, 250, 232)]
    assert read.note is not None
    assert "of 2 boxes cannot be used: " in read.note
    assert "\x1b" not in read.note + str(read.boxes[0].label)


def test_boxes_need_one_size() -> None:
    answer = "[[0, 0, 500, 500]]"
    assert len(read_boxes(answer, [SIZE, SIZE]).boxes) == 1
    several = read_boxes(answer, [SIZE, (640, 480)])
    assert several.boxes == ()
    assert "sizes differ" in str(several.note)
    assert read_boxes(answer, []).note == "the answer does not say of what picture its boxes are"
    assert read_boxes("Red.", []).note is None


@given(st.text(alphabet="<ref>/[], \n0159.x", max_size=80))
def test_no_text_breaks_the_reading(answer: str) -> None:
    for box in read_boxes(answer, [(31, 57)]).boxes:
        assert 0 <= box.x0 < box.x1 <= 57
        assert 0 <= box.y0 < box.y1 <= 31


@settings(max_examples=1000)
@given(st.data(), st.integers(1, 9000), st.integers(1, 9000))
def test_from_pixels_to_a_question_and_back(data: st.DataObject, width: int, height: int) -> None:
    """Within a thousandth, and a pixel for rounding: half of each where the box is not thinner than that."""
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    text = region((x0, y0, x1, y1), (height, width))
    assert re.fullmatch(r"\[\[\d+, \d+, \d+, \d+\]\]", text)
    (box,) = read_boxes(text, [(height, width)]).boxes
    assert max(abs(box.x0 - x0), abs(box.x1 - x1)) <= 1 + width / 1000
    assert max(abs(box.y0 - y0), abs(box.y1 - y1)) <= 1 + height / 1000


def test_a_box_thinner_than_a_thousandth_lies_within_the_one_that_is_asked_about() -> None:
    text = region((9, 3, 10, 4), (5500, 5500))
    assert text == "[[1, 0, 2, 1]]"
    assert read_boxes(text, [(5500, 5500)]).boxes == (Box(None, 6, 0, 11, 6),)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((-1, 0, 10, 10), "X must be 0 to 640, Y 0 to 480"),
        ((0, 0, 641, 10), "not within the picture"),
        ((0, 0, 10, 480.5), "not within the picture"),
        ((float("nan"), 0, 10, 10), "not within the picture"),
        ((10, 0, 10, 10), "X0 must be less than X1"),
        ((0, 10, 10, 5), "Y0 less than Y1"),
    ],
)
def test_a_box_that_is_none_cannot_be_asked_about(box: tuple[float, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        region(box, SIZE)


def test_questions() -> None:
    assert boxes_question("Where is it?") == "Where is it? Answer in [[x0,y0,x1,y1]] format."
    for asked in ("Where? answer in [[x0, y0, x1, y1]] format", boxes_question("Where is it?")):
        assert boxes_question(asked) == asked
    assert question_with_regions("What is {box} near {box}?", ["[[1]]", "[[2]]"]) == "What is [[1]] near [[2]]?"
    assert question_with_regions("What is it?", ["[[1]]"]) == "What is it? The region is [[1]]."
    assert question_with_regions("Do they match?", ["a", "b"]) == "Do they match? The regions are a and b."
    assert question_with_regions("What is it?", []) == "What is it?"
    with pytest.raises(ConfigError, match="2 times"):
        question_with_regions("{box} or {box}?", ["[[1]]"])
    with pytest.raises(ConfigError, match="--box"):
        question_with_regions("What is {box}?", [])
