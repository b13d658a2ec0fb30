"""What an answer says: the letter that it chooses, its last word on the matter, the numbers in it.

Letters are looked for where they stand as letters. The release's own evaluation takes the first capital that is one of
the letters, be it part of a word; for answers of a letter alone, which is what is asked for, that is the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .item import LETTERS

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")
_CONCLUSION = re.compile(r"(?:answer|option|choice)(?:\s+is)?\s*[:=]?\s*|\bboxed\s*(?=\{)", re.IGNORECASE)
_OPTION_LINE = re.compile(r"^\s*\(?([A-Z])[).:]\s*(\S.*?)\s*$", re.MULTILINE)
_BOXED = re.compile(r"boxed\s*\{([^{}]*)\}")
_FIGURES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {word: str(value) for value, word in enumerate(_FIGURES)}


def options_in(question: str) -> tuple[str, ...]:
    """The options that a question lists itself, as `A. …` or `(A) …` lines; empty if it has none."""
    found = _OPTION_LINE.findall(question)
    start = next((i for i in range(len(found) - 1, -1, -1) if found[i][0] == "A"), None)
    listed = found[start:] if start is not None else []
    in_order = [letter for letter, _ in listed] == list(LETTERS[: len(listed)])
    return tuple(text for _, text in listed) if in_order and len(listed) > 1 else ()


def read_letter(answer: str, count: int, options: Sequence[str] = (), nearest: bool = False) -> str | None:
    """The letter that an answer chooses among the first `count`; None if it chooses none.

    options: their texts, by which an answer without a letter may choose.
    nearest: the option whose text is closest to the answer stands for one that names none (MathVista's rule).
    """
    letters = LETTERS[:count]
    text = answer.strip()
    if not text or not letters:
        return None
    conclusions = _conclusions(text)
    for part in (*conclusions, text):
        if letter := _stated(part, letters):
            return letter
    for part in conclusions:
        if letter := _alone(part, letters, at_once=True):
            return letter
    if (found := _by_text(text, options)) is not None:
        return found
    if letter := _alone(text, letters):
        return letter
    for part in conclusions:
        if part[:2] == "A ":  # "the answer is A because …"
            return "A"
    if nearest and options:
        distances = [edit_distance(text.lower(), option.lower()) for option in options]
        return LETTERS[distances.index(min(distances))]
    return None


def _conclusions(text: str) -> list[str]:
    """What stands after "the answer is" and the like, the last one first."""
    return [text[match.end() :] for match in _CONCLUSION.finditer(text)][::-1]


def _stated(part: str, letters: str) -> str | None:
    """A letter at the beginning, alone, in brackets, or marked off from what follows."""
    match = re.match(rf"[\s*\"'`({{\[]*([{letters}])(?:\s*[)\].:,;*\"'`}}]|\s*$|\s*\n)", part, re.IGNORECASE)
    return match.group(1).upper() if match else None


def _alone(part: str, letters: str, at_once: bool = False) -> str | None:
    """A capital that is a word of its own, but not the article; at_once: where the part begins."""
    pattern = rf"(?<![\w'’])(?!A\s+[a-z])([{letters}])(?![\w'’])"
    match = re.match(pattern, part) if at_once else re.search(pattern, part)
    return match.group(1) if match else None


def _by_text(text: str, options: Sequence[str]) -> str | None:
    """The option that the answer is, or else the only longest one that stands in it as words."""
    said = normalized(text)
    wanted = [normalized(option) for option in options]
    if said in wanted:
        return LETTERS[wanted.index(said)]
    inside = [i for i, option in enumerate(wanted) if option and _stands_in(option, said)]
    if not inside:
        return None
    longest = max(len(wanted[i]) for i in inside)
    best = [i for i in inside if len(wanted[i]) == longest]
    others = [i for i in inside if i not in best and wanted[i] not in wanted[best[0]]]
    return LETTERS[best[0]] if len(best) == 1 and not others else None


def _stands_in(words: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def contains_words(answer: str, words: str) -> bool:
    """Whether the words stand in the answer, as whole words, whatever their case."""
    wanted = normalized(words)
    return bool(wanted) and _stands_in(wanted, normalized(answer))


def normalized(text: str) -> str:
    """Lower case, single spaces, without a full stop or quotes around; a number word as its figure."""
    plain = " ".join(text.lower().split()).strip(" .\"'`")
    return _WORDS.get(plain, plain)


def final_part(answer: str) -> str:
    """What an answer that explains itself comes to: what is boxed, else what stands after the last "answer is", else
    all of it."""
    if boxed := _BOXED.findall(answer):
        return str(boxed[-1]).strip()
    found = list(re.finditer(r"answer(?:\s+is)?\s*[:=]?\s*|answer\s+is\s+", answer, re.IGNORECASE))
    rest = answer[found[-1].end() :].strip() if found else ""
    return (rest or answer).strip().strip("'\"")


def numbers_in(text: str) -> list[float]:
    """All numbers, in order; 1,234.5 is one."""
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's distance: the fewest characters to insert, delete or replace."""
    before = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        row = [i]
        for j, b in enumerate(second, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
        before = row
    return before[-1]
