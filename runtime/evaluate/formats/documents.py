"""Text in pictures: DocVQA, InfoVQA, ChartQA, OCRBench."""

from __future__ import annotations

from collections.abc import Iterator

from .. import prompts
from ..find import MediaFinder
from ..item import EvalItem
from ..table import Values
from .format import BenchmarkFormat, about, answers_of, fields, first_of, group_of, text_of

LINES = fields("question_id", "image", "question", "answer")
"""The lines that InternVL's and the release's evaluations keep several benchmarks in."""


def _docvqa(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    yield _in_a_word(row, find, number, "anls", prompts.WORD)


def _infovqa(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    yield _in_a_word(row, find, number, "anls", prompts.WORD)


def _chartqa(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """Group: whether people or a program wrote the question, which the authors' files tell by their names."""
    group = str(row.get("human_or_machine", row.get("type", "")))
    group = {"0": "human", "1": "augmented", "human_test": "human", "augmented_test": "augmented"}.get(group, group)
    if not group:
        group = next((name for name in ("human", "augmented") if name in find.data.name), "")
    yield _in_a_word(row, find, number, "relaxed", prompts.WORD_USING, group)


def _ocrbench(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    formula = first_of(row, "dataset_name", "dataset") == "HME100k"
    group = group_of(row, "question_type", "type")
    yield _in_a_word(row, find, number, "formula" if formula else "ocr", prompts.WORD, group)


def _in_a_word(
    row: Values, find: MediaFinder, number: str, measure: str, instruction: str, group: str = ""
) -> EvalItem:
    question = text_of(row, "question", "query")
    picture = find.picture(
        first_of(row, "image", "image_local_name", "image_path", "imgname"),
        *("images", "infographics", "png", "OCRBench_Images", "spdocvqa_images", "test/png"),
    )
    return EvalItem(
        id=str(row.get("questionId", row.get("question_id", number))),
        **about(picture, f"{question}\n{instruction}"),
        question=question,
        measure=measure,
        answers=answers_of(row, "answers", "answer", "label"),
        group=group,
        kind="image",
    )


DOCUMENTS = (
    BenchmarkFormat(
        "docvqa",
        "DocVQA",
        (fields("questionId", "question", "docId"), LINES),
        _docvqa,
        "of the validation set; the paper's is of the test set, whose answers a server keeps",
    ),
    BenchmarkFormat(
        "infovqa",
        "InfoVQA",
        (
            fields("questionId", "question", "image_local_name"),
            fields("questionId", "question", "image_url"),
            fields("questionId", "question", "answer_type"),
        ),
        _infovqa,
        "of the validation set; the paper's is of the test set, whose answers a server keeps",
    ),
    BenchmarkFormat(
        "chartqa",
        "ChartQA",
        (
            fields("imgname", "query", "label"),
            fields("image", "query", "label", "human_or_machine"),
            fields("image", "question", "answer", "type"),
            LINES,
        ),
        _chartqa,
        "the authors' relaxed accuracy; the release also takes 25 for 25 % and asks a judge model about words",
    ),
    BenchmarkFormat(
        "ocrbench",
        "OCRBench",
        (
            fields("dataset_name", "type", "image_path", "question", "answers"),
            fields("dataset", "question", "question_type", "answer", "image"),
        ),
        _ocrbench,
        "a share; the authors' number is that of right answers among 1,000",
    ),
)
