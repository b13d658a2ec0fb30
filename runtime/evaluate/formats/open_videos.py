"""Videos with open questions, events to find, or several forms of question: ActivityNet-QA, Charades-STA, MMVU,
TempCompass."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from .. import prompts
from ..find import MediaFinder
from ..item import EvalItem
from ..reading import options_in
from ..table import KEY, Values
from .format import (
    BenchmarkFormat,
    about,
    answers_of,
    fields,
    first_of,
    group_of,
    known,
    letter_of,
    nested,
    text_of,
)

_ACTIVITYNET_KINDS = (
    *("motion", "spatial relation", "temporal relation", "yes or no", "colour"),
    *("object", "location", "number", "other"),
)
_REASONING_TOKENS = 1024


def _activitynetqa(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """The authors have the answers in a file of their own: `test_a.json` beside `test_q.json`."""
    question, place = text_of(row, "question"), str(row["question_id"])
    if "answer" not in row:
        row = {**row, **find.rows_beside(f"{find.data.stem.removesuffix('_q')}_a.json", "question_id").get(place, {})}
    kind = str(row.get("type", ""))
    video = str(row["video_name"])
    yield EvalItem(
        id=place,
        **about(find.video(video if video.startswith("v_") else f"v_{video}", "all_test"), prompts.in_words(question)),
        question=question,
        measure="contains",
        answers=answers_of(row, "answer"),
        group=_ACTIVITYNET_KINDS[int(kind)] if kind in list("012345678") else kind,
    )


def _charadessta(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """The authors' lines of text, lmms-eval's rows, and the release's file, which has the questions in words."""
    video = find.video(row["video"], "Charades_v1", "Charades_v1_480")
    if "conversation" in row:
        question = text_of(row["conversation"][0], "content")
        text, times = question + prompts.SPAN, row["timestamps"][0]
    else:
        question = text_of(row, "caption")
        text, times = prompts.grounding(question), row["timestamp"]
    start, end = (float(time) for time in times)
    yield EvalItem(
        id=str(row.get("question_id") or number),
        **about(video, text),
        question=question,
        measure="grounding",
        span=(start, end),
    )


def _mmvu(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    path = str(first_of(row, "video_path", "video")).split("?")[0]
    subject, name = path.split("/")[-2:] if "/" in path else ("", path)
    question, choices = text_of(row, "question"), nested(row, "choices")
    options = tuple(str(choices[key]) for key in sorted(choices) if choices[key] not in (None, ""))
    is_choice = row["question_type"] == "multiple-choice"
    if is_choice and len(options) < 2:
        raise ValueError("'choices' has no options")
    text = prompts.reasoned_choice(question, options) if is_choice else prompts.reasoned(question)
    yield EvalItem(
        id=str(row.get("id") or number),
        **about(find.video(os.path.join(subject, name), "videos"), text),
        question=question,
        measure="choice" if is_choice else "contains",
        options=options if is_choice else (),
        answers=known(row.get("answer"), lambda answer: letter_of(answer, len(options)) if is_choice else str(answer)),
        group=group_of(nested(row, "metadata"), "subject") or subject,
    )


def _tempcompass(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """The authors' files have for each video the questions of every dimension; those of the hub are rows."""
    if "question" in row:
        entries: list[tuple[str, Any]] = [(group_of(row, "dim"), row)]
    else:
        entries = [(dim, entry) for dim, listed in row.items() if isinstance(listed, list) for entry in listed]
    video = find.video(first_of(row, "video_id", KEY))
    for place, (dim, entry) in enumerate(entries, 1):
        question, answer = text_of(entry, "question"), str(entry.get("answer") or "")
        if "Generated Caption:" in question or "mc_answer" in entry:
            continue  # captions, which a judge model scores
        options, measure = options_in(question), "starts"
        known_answer: tuple[str, ...] = (answer.split(":")[0],) if answer else ()
        if answer.strip().lower() in ("yes", "no"):
            text = f"Question: {question}\nPlease answer with 'yes' or 'no' directly."
        elif options and answer[1:2] in (".", ""):
            text, measure = f"Question: {question}\nPlease {prompts.BEST[0].lower()}{prompts.BEST[1:]}", "choice"
            known_answer = known(answer, lambda given: letter_of(given, len(options)))  # noqa: B023
        else:
            text = f"Question: {question}\nPlease directly give the best option:"
        yield EvalItem(
            id=number if len(entries) == 1 else f"{number}.{place}",
            **about(video, text),
            question=question,
            measure=measure,
            options=options if measure == "choice" else (),
            answers=known_answer,
            group=dim,
        )


OPEN_VIDEOS = (
    BenchmarkFormat(
        "activitynetqa",
        "ActivityNet-QA",
        (fields("video_name", "question", "question_id"),),
        _activitynetqa,
        "the right answer in the words of the answer; the paper asks a judge model, which is more generous",
    ),
    BenchmarkFormat(
        "charadessta",
        "Charades-STA",
        (fields("video", "timestamp", "caption"), fields("video", "conversation", "timestamps")),
        _charadessta,
    ),
    BenchmarkFormat(
        "mmvu",
        "MMVU",
        (fields("question_type", "question", "choices", "answer", "video"),),
        _mmvu,
        "letters and words are read from the answer; the paper asks a judge model",
        _REASONING_TOKENS,
    ),
    BenchmarkFormat(
        "tempcompass",
        "TempCompass",
        (
            fields("video_id", "question", "answer", "dim"),
            *(fields(KEY, dim) for dim in ("action", "direction", "speed", "order", "attribute_change")),
        ),
        _tempcompass,
        "without captioning, which the paper has judged by a model",
    ),
)
