"""When something happens: the question that asks a model for it, and the times read from its answer.

The released models are trained on temporal grounding and answer "from 3.2 to 7.5 seconds", "3.2 - 7.5" and the like;
the wording of the request for start and end is that of the authors' own evaluation (Charades-STA). Models also write
clock times, units in words, lists in brackets, or a single time. Times are told from other numbers by their form: a
range, a unit, a clock; bare numbers count only if the answer holds nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CLOCK = r"\d+:[0-5]?\d(?::[0-5]?\d)?(?:[.,]\d+)?"
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_HOURS = rf"{_NUMBER}\s*h(?:ou)?r?s?(?![a-z])"
_MINUTES = rf"{_NUMBER}\s*m(?:in(?:ute)?)?s?(?![a-z])"
_SECONDS = rf"(?:\d+,\d+|{_NUMBER})\s*-?s(?:ec(?:ond)?)?s?(?![a-z])"
_SURE = rf"(?:{_CLOCK}|(?:{_HOURS}\s*)?(?:{_MINUTES}\s*(?:and\s+)?)?{_SECONDS}|(?:{_HOURS}\s*)?{_MINUTES}|{_HOURS})"
_TIME = rf"(?:{_SURE}|{_NUMBER})"  # `_SURE` is a time by its form, a bare number only by what stands around it
_BEFORE = r"(?<![\w.,:])"
_LEAD = r"(?:the\s+)?(?:seconds?\s+)?(?:at\s+)?"
_NAMED = rf"\w*[\"'\s]*(?:time|timestamp)?[\"']?\s*(?:[:=]|is|at)\s*[\"']?({_TIME})"
_RANGES = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"\b(?:from|between)\s+{_LEAD}({_TIME})(?:\s+mark)?\s*(?:to|until|till|through|and|[-–—])\s*{_LEAD}({_TIME})",
        rf"[\[(]\s*({_TIME})\s*[,;–—-]\s*({_TIME})\s*[\])]",
        rf"\bstart{_NAMED}.{{0,40}}?\bend{_NAMED}",
        rf"{_BEFORE}({_TIME})\s*(?:to|until|till|[-–—])\s*({_TIME})",
    )
)
_SINGLE = re.compile(rf"{_BEFORE}({_SURE})", re.IGNORECASE)
_BARE = re.compile(rf"(?:at\s+)?{_NUMBER}(?:[\s,;]+{_NUMBER})?", re.IGNORECASE)
_DENIALS = re.compile(
    r"\b(?:does|do|did|is|are|was|were|could|can)\s*(?:not|n[o'’]t)\s+"
    r"(?:occur|happen|appear|take place|contain|show|shown|visible|present|found|be found)\b"
    r"|\bno such\b|\bnot found\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Span:
    """A part of a video in seconds; a moment starts and ends at one time."""

    start_s: float
    end_s: float


def grounding_question(event: str) -> str:
    """What the model is asked to find an event. A question ("When does it stop?") is asked as it stands."""
    event = " ".join(event.split())
    if event.endswith("?"):
        return event
    quoted = event.rstrip(".")
    return f'When does "{quoted}" happen in the video? Please output the start and end timestamps in seconds.'


def read_span(answer: str, start_s: float, end_s: float) -> Span | None:
    """The time span that an answer names, within the part of the video that was seen.

    None if it names no time, says that there is no such event, or names times outside of start_s to end_s.
    """
    times = None if _DENIALS.search(answer) else _times(answer)
    if times is None:
        return None
    first, last = min(times), max(times)
    if last < start_s or first > end_s:
        return None
    return Span(max(first, start_s), min(last, end_s))


def read_spans(answer: str) -> tuple[Span, ...]:
    """Every time span that an answer names, in order; without a range, bare numbers two by two, as the authors do."""
    found: dict[int, tuple[int, Span]] = {}
    for pattern in _RANGES:
        for match in pattern.finditer(answer):
            if all(match.end() <= start or end <= match.start() for start, (end, _) in found.items()):
                first, last = _pair(*match.groups())
                found[match.start()] = match.end(), Span(min(first, last), max(first, last))
    if found:
        return tuple(found[start][1] for start in sorted(found))
    times = tuple(map(_seconds, _SINGLE.findall(answer))) or tuple(map(float, re.findall(r"\d*\.?\d+", answer)))
    times = times[len(times) % 2 :]
    return tuple(Span(min(pair), max(pair)) for pair in zip(times[::2], times[1::2], strict=True))


def _times(answer: str) -> tuple[float, ...] | None:
    for pattern in _RANGES:
        if match := pattern.search(answer):
            return _pair(*match.groups())
    if sure := _SINGLE.findall(answer):
        return tuple(_seconds(time) for time in sure)
    bare = answer.strip(" \t\n.[]()")
    if _BARE.fullmatch(bare):
        return tuple(_seconds(time) for time in re.findall(_NUMBER, bare))
    return None


def _pair(first: str, last: str) -> tuple[float, float]:
    """A range; a unit after its end alone holds for its start, too: "1 - 2 minutes"."""
    unit = re.search(r"[a-z]+\s*$", last, re.IGNORECASE)
    if unit and re.fullmatch(_NUMBER, first):
        first = f"{first} {unit.group()}"
    return _seconds(first), _seconds(last)


def _seconds(time: str) -> float:
    """A time as `_TIME` matches it, in seconds."""
    if ":" in time:
        total = 0.0
        for part in time.replace(",", ".").split(":"):
            total = total * 60 + float(part)
        return total
    total = 0.0
    for number, unit in re.findall(rf"(\d+,\d{{1,2}}(?!\d)|{_NUMBER})\s*-?([a-z]?)", time, re.IGNORECASE):
        value = float(number.replace(",", ".") if re.fullmatch(r"\d+,\d{1,2}", number) else number.replace(",", ""))
        total += value * {"h": 3600, "m": 60}.get(unit.lower(), 1)
    return total
