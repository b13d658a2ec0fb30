"""What a model is asked, in the words of the VideoLLaMA3 release's own evaluation.

A model trained to answer with a letter does so for the wording it knows, so wordings are data here, to the last space
and line end. Each benchmark's file says which one it has (`formats/`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..captions.grounding import grounding_question
from .item import LETTERS, Part

LETTER = "Answer with the option's letter from the given choices directly."
BEST = "Answer with the option's letter from the given choices directly and only give the best option."
_SELECT = "Select the best answer to the following multiple-choice question based on the video."
WORD = "Answer the question with a single word or phrase."
WORD_USING = "Answer the question using a single word or phrase."
SPAN = "Please output the start and end timestamps in seconds."
_REASON = (
    "step by step. Begin by explaining your reasoning process clearly. Conclude by stating the final answer using the "
    "following format: 'Therefore, the final answer is: "
)
_MARK = re.compile(r"<(?:image|video) (\d+)>")


def bracketed(options: Sequence[str]) -> str:
    """(A) a red car, one a line, each with its line end."""
    return "".join(f"({letter}) {option}\n" for letter, option in zip(LETTERS, options, strict=False))


def dotted(options: Sequence[str]) -> str:
    """A. a red car, one a line, each with its line end."""
    return "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False))


def choice(question: str, options: Sequence[str]) -> str:
    """The release's usual form: MVBench, MLVU, PerceptionTest, NextQA."""
    return f"Question: {question}\nOptions:\n{bracketed(options)}{BEST}"


def choice_of_best(question: str, options: Sequence[str]) -> str:
    """EgoSchema's, which ends in a space."""
    return f"{_SELECT}\n{question}\nOptions:\n{bracketed(options)}{BEST} The best answer is: "


def choice_of_four(question: str, options: Sequence[str]) -> str:
    """Video-MME's."""
    only = "Respond with only the letter (A, B, C, or D) of the correct option."
    return f"{_SELECT} {only}\n{question}\n{dotted(options)}{BEST} The best answer is:"


def choice_dotted(question: str, options: Sequence[str]) -> str:
    """AI2D's."""
    return f"{question}\n{dotted(options)}{LETTER}"


def choice_in_colons(question: str, options: Sequence[str]) -> str:
    """MMMU's."""
    lines = "\n".join(f"({letter}):{option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question}\n\n{lines}\n\n{LETTER}"


def reasoned_choice(question: str, options: Sequence[str]) -> str:
    """MMVU's, which wants the reasoning first."""
    lines = "\n".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=False))
    form = "$LETTER' (without quotes), where $LETTER is one of the options. Think step by\nstep before answering."
    return f"\nQuestion: {question}\n{lines}\n\nAnswer the given multiple-choice question {_REASON}{form}"


def reasoned(question: str) -> str:
    """MMVU's, of an open question."""
    form = "'Answer: $ANSWER' (without quotes), where $ANSWER is the final answer of the question. "
    last = f"{_REASON}{form}Think step by step\nbefore answering."
    return f"\nQuestion: {question}\n\nAnswer the given question {last}"


def in_words(question: str) -> str:
    """ActivityNet-QA's."""
    return f"Question: {question}\nPlease watch the video and answer the question clearly and concisely.\n"


def grounding(event: str) -> str:
    """When an event happens; a question is asked as it stands, with the request for seconds."""
    asked = grounding_question(event)
    return asked if SPAN in asked else f"{asked} {SPAN}"


def placed(text: str, count: int) -> tuple[Part, ...]:
    """The message's parts: media where the text marks them (`<image 1>`, `<video 2>`), those not marked before it.

    count: of the media. Raises ValueError for a mark beyond them.
    """
    parts: list[Part] = []
    for number, piece in enumerate(_MARK.split(text)):
        if number % 2:
            parts.append(int(piece) - 1)
        elif piece:
            parts.append(piece)
    named = {part for part in parts if isinstance(part, int)}
    if any(not 0 <= part < count for part in named):
        raise ValueError(f"the question names picture {max(named) + 1}, but there are {count}")
    return (*(number for number in range(count) if number not in named), *parts)
