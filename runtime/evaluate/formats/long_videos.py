"""Multiple choice about long videos: Video-MME, MLVU, LongVideoBench, LVBench."""

from __future__ import annotations

from collections.abc import Iterator

from .. import prompts
from ..find import MediaFinder
from ..item import EvalItem
from ..reading import options_in
from ..table import Values
from .format import (
    BenchmarkFormat,
    about,
    answers_of,
    fields,
    first_of,
    group_of,
    known,
    letter_of,
    letter_of_index,
    letter_of_text,
    text_of,
    texts,
    unlettered,
)


def _videomme(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    question, options = text_of(row, "question"), unlettered(texts(row["options"], "options"))
    yield EvalItem(
        id=str(row.get("question_id") or number),
        **about(find.video(row["videoID"]), prompts.choice_of_four(question, options)),
        question=question,
        measure="choice",
        options=options,
        answers=known(row.get("answer"), lambda answer: letter_of(answer, len(options))),
        group=group_of(row, "duration", "task_type"),
    )


def _mlvu(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """The authors' files have the answer as text; the one of lmms-eval has options in the question, and a letter."""
    question, folder = text_of(row, "question"), f"video/{find.data.stem}"
    name = first_of(row, "video", "video_name")
    options = texts(row["candidates"], "candidates") if row.get("candidates") else options_in(question)
    if len(options) < 2:
        return  # summaries and captions of scenes, which a judge model scores
    listed = not row.get("candidates")
    text = f"Question: {question}\n{prompts.LETTER}" if listed else prompts.choice(question, options)
    yield EvalItem(
        id=str(row.get("question_idx") or number),
        **about(find.video(name, folder, f"MLVU/{folder}", "MLVU/video"), text),
        question=question,
        measure="choice",
        options=options,
        answers=known(
            row.get("answer"),
            lambda answer: (
                letter_of_text(answer, options) if str(answer) in options else letter_of(answer, len(options))
            ),
        ),
        group=group_of(row, "task_type", "question_type"),
    )


def _longvideobench(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    question = text_of(row, "question")
    listed = row.get("candidates") or [row.get(f"option{n}") for n in range(5)]
    options = texts([option for option in listed if option not in (None, "N/A")], "candidates")
    yield EvalItem(
        id=str(row.get("id") or number),
        **about(
            find.video(first_of(row, "video_path", "video_id")),
            f"Question: {prompts.choice_dotted(question, options)}",
        ),
        question=question,
        measure="choice",
        options=options,
        answers=known(row.get("correct_choice"), lambda answer: letter_of_index(answer, options)),
        group=group_of(row, "duration_group", "question_category"),
    )


def _lvbench(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """The authors' rows are videos with their questions; lmms-eval's are questions. Options stand in the question, or
    beside it."""
    video = find.video(first_of(row, "key", "video_path"), "all_videos")
    asked = row.get("qa", [row])
    if not isinstance(asked, list):
        raise ValueError("'qa' is not a list")
    for place, entry in enumerate(asked, 1):
        question = text_of(entry, "question")
        if entry.get("options"):
            question = f"{question}\n{prompts.bracketed(unlettered(texts(entry['options'], 'options')))}".rstrip()
        options = options_in(question)
        kinds = entry.get("question_type")
        yield EvalItem(
            id=str(entry.get("uid") or f"{number}.{place}"),
            **about(video, f"{question}\n{prompts.LETTER}"),
            question=question,
            measure="choice",
            options=options,
            answers=tuple(letter_of(answer, len(options) or 5) for answer in answers_of(entry, "answer")),
            group=", ".join(map(str, kinds)) if isinstance(kinds, list) else group_of(entry, "question_type"),
        )


LONG_VIDEOS = (
    BenchmarkFormat(
        "videomme",
        "Video-MME",
        (fields("videoID", "question", "options", "answer"),),
        _videomme,
        "without subtitles",
    ),
    BenchmarkFormat(
        "mlvu",
        "MLVU",
        (
            fields("video", "question", "candidates", "answer", "question_type", "duration"),
            fields("video_name", "question", "answer", "task_type"),
            fields("video", "question", "answer", "question_type", "duration"),
        ),
        _mlvu,
        "multiple choice alone; the paper's is the mean of the kinds (M-Avg)",
    ),
    BenchmarkFormat(
        "longvideobench",
        "LongVideoBench",
        (fields("video_path", "question", "correct_choice"), fields("video_id", "question", "correct_choice")),
        _longvideobench,
        "without subtitles, which the release puts between the frames",
    ),
    BenchmarkFormat(
        "lvbench",
        "LVBench",
        (fields("key", "qa"), fields("uid", "question", "answer", "time_reference")),
        _lvbench,
    ),
)
