"""What is taken from an answer: letters, options' texts, numbers, and the distance between words."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl3edge.runtime.captions.grounding import read_spans
from vl3edge.runtime.evaluate.reading import (
    contains_words,
    edit_distance,
    final_part,
    numbers_in,
    options_in,
    read_letter,
)

OPTIONS = ("a red car", "a dog", "a red cart", "none of these")


@pytest.mark.parametrize("letter", "ABCD")
@pytest.mark.parametrize(
    "form",
    [
        *("{0}", "({0})", "{0}.", "{0})", " {0}\n", "**{0}**", "[{0}]", "{0}: it is so", "{0}. something else"),
        *("The answer is {0}.", "Answer: {0}", "The best option is ({0})", "The correct answer is {0} because of A."),
        *(
            "I think A or B is close. Therefore, the final answer is: {0}",
            "\\boxed{{{0}}}",
            "option {0}",
            "I'd say {0}",
        ),
    ],
)
def test_a_letter_is_read_in_any_form(form: str, letter: str) -> None:
    assert read_letter(form.format(letter), 4, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("b", "B"),
        ("(c) a red cart", "C"),
        ("A dog.", "B"),
        ("It is a red cart", "C"),  # not the car that is in it
        ("the answer is a dog", "B"),
        ("The answer is A because of it", "A"),
        ("None of these.", "D"),
        ("A man walks by", None),
        ("Dogs", None),
        ("a dog and a red car", None),
        ("E", None),
        ("", None),
    ],
)
def test_words_choose_an_option_where_they_can(answer: str, letter: str | None) -> None:
    assert read_letter(answer, 4, OPTIONS) == letter


def test_the_nearest_option_stands_for_an_answer_without_one() -> None:
    assert read_letter("a red cat", 4, OPTIONS, nearest=True) == "A"
    assert read_letter("B", 4, OPTIONS, nearest=True) == "B"
    assert read_letter("", 4, OPTIONS, nearest=True) is None


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("What?\n(A) x\n(B) y y\n(C) z", ("x", "y y", "z")),
        ("Which?\n\nA. 1\nB. 2\nPlease answer directly.", ("1", "2")),
        ("Mr A. went home.", ()),
        ("A. alone", ()),
        ("Order\nA. first\nC. third", ()),
        ("What is it?", ()),
    ],
)
def test_options_are_found_in_a_question(question: str, options: tuple[str, ...]) -> None:
    assert options_in(question) == options


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_the_edit_distance_is_the_recursive_definition(first: str, second: str) -> None:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = first[i - 1] == second[j - 1]
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (not same))

    assert edit_distance(first, second) == distance(len(first), len(second))


def test_numbers_are_read_with_signs_and_thousands() -> None:
    assert numbers_in("-1,234.5 and .5, then 7% of 2007-2008") == [-1234.5, 0.5, 7.0, 2007.0, -2008.0]
    assert numbers_in("none") == []


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ("We add. The answer is 14.", "14."),
        ("so \\boxed{3/4} it is", "3/4"),
        ("Therefore, the final answer is: 'Answer: Paris'", "Paris"),
        ("just words", "just words"),
    ],
)
def test_the_final_part_of_an_explanation(answer: str, part: str) -> None:
    assert final_part(answer) == part


def test_words_are_contained_as_words() -> None:
    assert contains_words("Yes, it is a cat.", "yes")
    assert contains_words("in the living  room", "Living room.")
    assert not contains_words("a caterpillar", "cat")
    assert not contains_words("anything", "")


@pytest.mark.parametrize(
    ("answer", "spans"),
    [
        ("from 3.2 to 7.5 seconds", [(3.2, 7.5)]),
        ("3.2 - 7.5", [(3.2, 7.5)]),
        ("24.3s to 30.4s.", [(24.3, 30.4)]),
        ("1 to 3 and 5 - 7", [(1, 3), (5, 7)]),
        ("9 to 4", [(4, 9)]),
        ("between 3 and 5 s", [(3, 5)]),
        ("0:03 - 0:07, then 0:10 to 0:12", [(3, 7), (10, 12)]),
        ("4.0 9.0", [(4, 9)]),
        ("7 4.0 9.0", [(4, 9)]),  # the first of an odd number goes, as in the release
        ("at 5 s", []),
        ("never", []),
    ],
)
def test_every_time_span_of_an_answer_is_read(answer: str, spans: list[tuple[float, float]]) -> None:
    assert [(span.start_s, span.end_s) for span in read_spans(answer)] == spans
