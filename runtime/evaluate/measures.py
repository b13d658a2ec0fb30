"""How right an answer is, from 0 to 1, by each benchmark's own measure.

| measure | 1 for | used by |
| --- | --- | --- |
| choice | the right letter | all multiple choice |
| nearest | the same; an answer that names no option counts as the one closest to it | MathVista |
| exact | the answer itself, but for case, spaces and a full stop | GQA, RealWorldQA |
| contains | the answer in it, as whole words | ActivityNet-QA, MMVU's open questions (the paper asks a judge model) |
| starts | an answer that begins with it | TempCompass |
| relaxed | a number within 5 %, else as exact (Masry et al. 2022) | ChartQA |
| anls | 1 - distance / length where that is at least 0.5, else 0 (Biten et al. 2019) | DocVQA, InfoVQA |
| ocr | the answer anywhere in it; case does not count | OCRBench |
| formula | the answer anywhere in it; spaces do not count | OCRBench's formulas (HME100k) |
| number | the same number, rounded to `precision` decimals | MathVista |
| open | a number or words of the answer's final part (Yue et al. 2024) | MMMU's open questions |
| grounding | the overlap of the times: intersection over union | Charades-STA |

A judge model is never asked. An item without a known answer has no score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..captions.grounding import Span, read_spans
from .item import EvalItem
from .reading import contains_words, edit_distance, final_part, normalized, numbers_in, options_in, read_letter

_ANLS_FLOOR = 0.5
_TOLERANCE = 0.05
OVERLAPS = (0.3, 0.5, 0.7)
"""Of which grounding's recall is told."""


@dataclass(frozen=True)
class Verdict:
    """score: from 0 to 1, None where no answer is known. read: what was taken from the answer."""

    score: float | None
    read: str


def judge(item: EvalItem, answer: str) -> Verdict:
    """What an answer is worth by the item's measure."""
    if item.measure == "grounding":
        spans = read_spans(answer)
        read = ", ".join(f"{span.start_s:g} - {span.end_s:g}" for span in spans)
        return Verdict(None if item.span is None else overlap(spans, item.span), read)
    read = _READ.get(item.measure, _stripped)(item, answer)
    if not item.answers:
        return Verdict(None, read)
    right = _RIGHT[item.measure]
    return Verdict(max(float(right(item, answer, read, wanted)) for wanted in item.answers), read)


def overlap(spans: Sequence[Span], wanted: tuple[float, float]) -> float:
    """Intersection over union in time of the spans, together, with the one wanted; 0 for nothing."""
    merged: list[list[float]] = []
    for start, end in sorted((span.start_s, span.end_s) for span in spans):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    low, high = min(wanted), max(wanted)
    common = sum(max(0.0, min(end, high) - max(start, low)) for start, end in merged)
    union = high - low + sum(end - start for start, end in merged) - common
    return common / union if union > 0 else 0.0


def anls(answer: str, wanted: str) -> float:
    """Average Normalized Levenshtein Similarity of one answer with one that is right."""
    said, right = (" ".join(text.lower().split()) for text in (answer, wanted))
    length = max(len(said), len(right))
    similarity = 1.0 if not length else 1 - edit_distance(said, right) / length
    return similarity if similarity >= _ANLS_FLOOR else 0.0


def relaxed(answer: str, wanted: str) -> bool:
    """ChartQA's relaxed accuracy; a percentage is its share: 25% is 0.25."""
    said, right = _value(answer), _value(wanted)
    if said is not None and right:
        return abs(said - right) / abs(right) <= _TOLERANCE
    return normalized(answer) == normalized(wanted)


def _value(text: str) -> float | None:
    plain = text.strip().rstrip(".").replace(",", "")
    try:
        return float(plain[:-1]) / 100 if plain.endswith("%") else float(plain)
    except ValueError:
        return None


def _open(read: str, wanted: str) -> bool:
    """MMMU's: numbers to two decimals, words as a part of the answer, a single character as a word."""
    numbers, words = numbers_in(wanted), normalized(wanted)
    if len(numbers) == 1 and _value(wanted) is not None and not words.endswith("%"):
        return round(numbers[0], 2) in [round(number, 2) for number in numbers_in(read)]
    return contains_words(read, wanted) if len(words) == 1 else words in normalized(read)


def _number(item: EvalItem, read: str, wanted: str) -> bool:
    said, right = numbers_in(read), numbers_in(wanted)
    if not said or not right:
        return False
    digits = item.precision or 0
    return round(said[-1], digits) == round(right[-1], digits)


def _without_spaces(text: str) -> str:
    return "".join(text.split())


def _letter(item: EvalItem, answer: str) -> str:
    options = item.options or options_in(item.question)
    return read_letter(answer, len(options) or 5, options, item.measure == "nearest") or ""


def _stripped(item: EvalItem, answer: str) -> str:
    return answer.strip()


def _started(read: str, wanted: str) -> bool:
    """TempCompass': what names the kind of the answer ("Option", "Sentence", "Caption") may be there or not."""
    said, right = (text.lower() for text in (read, wanted))
    for name in ("option", "sentence", "caption"):
        said, right = said.replace(name, ""), right.replace(name, "")
    said, right = said.strip(" :.,"), right.strip(" :.,")
    return bool(right) and said.startswith(right) and not said[len(right) : len(right) + 1].isalnum()


_READ: dict[str, Callable[[EvalItem, str], str]] = {
    "choice": _letter,
    "nearest": _letter,
    "number": lambda item, answer: final_part(answer),
    "open": lambda item, answer: final_part(answer),
    "contains": lambda item, answer: final_part(answer),
}
_RIGHT: dict[str, Callable[[EvalItem, str, str, str], float | bool]] = {
    "choice": lambda item, answer, read, wanted: read == wanted,
    "nearest": lambda item, answer, read, wanted: read == wanted,
    "exact": lambda item, answer, read, wanted: normalized(read) == normalized(wanted),
    "contains": lambda item, answer, read, wanted: contains_words(read, wanted),
    "starts": lambda item, answer, read, wanted: _started(read, wanted),
    "relaxed": lambda item, answer, read, wanted: relaxed(read, wanted),
    "anls": lambda item, answer, read, wanted: anls(read, wanted),
    "ocr": lambda item, answer, read, wanted: " ".join(wanted.lower().split()) in " ".join(read.lower().split()),
    "formula": lambda item, answer, read, wanted: _without_spaces(wanted) in _without_spaces(read),
    "number": lambda item, answer, read, wanted: _number(item, read, wanted),
    "open": lambda item, answer, read, wanted: _open(read, wanted),
}
MEASURES = (*_RIGHT, "grounding")
