"""The questions that `vl3edge evaluate` asks, and where its results go; the reference's command shares both."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict, replace
from pathlib import Path

from ..config import GenerationConfig, SamplingPlan
from ..evaluate.answering import Answering, answer_questions
from ..evaluate.questions import FORMATS, QuestionSet, read_questions
from ..evaluate.results import EvalResult, ResultsFile, ResultsInMemory, ResultStore, Settings
from ..evaluate.text import result_words
from . import options as shared
from .stderr import progress

FPS, MAX_FRAMES = 1.0, 180  # of the release's evaluation
Results = dict[str, EvalResult]
_NOT_ASKED = ("prefix", "json_schema", "best_of")  # no options here; files of before they were there are continued


def add_questions(parser: argparse.ArgumentParser, pruned: bool = True) -> None:
    """The set, and how its videos are sampled; pruned: and how they are pruned."""
    group = parser.add_argument_group("questions")
    group.add_argument(
        "--data", type=Path, nargs="+", action="extend", required=True, metavar="FILE", help="files of questions"
    )
    group.add_argument(
        "--format",
        choices=FORMATS,
        metavar="NAME",
        help=f"form of the files, if not told by their fields: {', '.join(FORMATS)}",
    )
    group.add_argument("--media-root", type=Path, metavar="DIR", help="folder of the media (default: the file's own)")
    group.add_argument("--limit", type=int, metavar="N", help="ask N questions only, drawn from all of them")
    group.add_argument("--limit-seed", type=int, default=0, metavar="S", help="draws others (default: 0)")
    group = parser.add_argument_group("frames")
    group.add_argument("--fps", type=float, default=FPS, help="frames sampled per second (default: %(default)g)")
    group.add_argument(
        "--max-frames", type=int, default=MAX_FRAMES, metavar="N", help="at most N frames (default: %(default)s)"
    )
    shared.add_rule(group)
    if pruned:
        shared.add_pruning(group)


def add_output(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", type=Path, metavar="FILE", help="keep every answer here, as JSON lines")
    output.add_argument("--resume", action="store_true", help="continue FILE: ask what has no answer there")
    output.add_argument("--retry-failed", action="store_true", help="like --resume, and retry what failed")
    output.add_argument("--force", action="store_true", help="replace FILE")
    return output


def read(options: argparse.Namespace) -> QuestionSet:
    """The set asked for; says what it is, and which rows are none."""
    found = read_questions(options.data, options.format, options.media_root, options.limit, options.limit_seed)
    titles = ", ".join(form.title for form in found.formats)
    count = len(found.asked)
    progress(f"{count:,} question{'s' if count != 1 else ''} of {titles}")
    return found


def generation_config(options: argparse.Namespace, questions: QuestionSet) -> GenerationConfig:
    """Greedy, if not asked for otherwise, as the release evaluates."""
    longest = max((form.max_new_tokens or 0 for form in questions.formats), default=0)
    asked = shared.generation_config(options)
    return replace(
        asked,
        max_new_tokens=asked.max_new_tokens or longest or None,
        temperature=0.0 if asked.temperature is None else asked.temperature,
    )


def settings_of(options: argparse.Namespace, generation: GenerationConfig) -> Settings:
    """All that an answer or a score depends on but for what answers."""
    asked = {name: value for name, value in asdict(generation).items() if name not in _NOT_ASKED}
    return {
        "data": [{"name": path.name, "sha256": sha256(path)} for path in options.data],
        "form": options.format,
        "media_root": None if options.media_root is None else str(options.media_root),
        "limit": options.limit,
        "limit_seed": options.limit_seed if options.limit is not None else None,
        "sampling": asdict(sampling_plan(options)),
        "pruning": asdict(shared.pruning_config(options)),
        "generation": asked,
        "system": options.system,
        "add_system_prompt": options.add_system_prompt,
    }


def sampling_plan(options: argparse.Namespace) -> SamplingPlan:
    return SamplingPlan(options.fps, options.max_frames, rule=options.sampling_rule)


def answered(
    options: argparse.Namespace, questions: QuestionSet, model: Answering | None, store: ResultStore
) -> Results:
    """The results of the whole set, those of before among them; a line of progress for each new one."""
    wanted = {one.id for one in questions.asked}
    if model is not None:
        left = len(wanted) - sum(id in wanted for id in store.results)
        for number, result in enumerate(answer_questions(questions.asked, model, store, options.retry_failed), 1):
            progress(f"[{number}/{max(left, number)}] {result.id}: {result_words(result)}")
    return {id: store.results[id] for id in (one.id for one in questions.asked) if id in store.results}


def open_store(options: argparse.Namespace, path: Path | None, settings: Settings) -> ResultStore:
    if path is None:
        return ResultsInMemory()
    return ResultsFile(path, settings, options.resume or options.retry_failed, options.force)


def is_done(options: argparse.Namespace, questions: QuestionSet, store: ResultStore) -> bool:
    """Whether there is nothing left to ask, so that no model has to be loaded."""
    known = [store.results.get(one.id) for one in questions.asked]
    return all(result is not None and not (options.retry_failed and result.error) for result in known)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
