"""`vl3edge evaluate`: ask a whole set of questions and score the answers; against another run, what differs and
whether it could be chance.

The set is a file of JSON lines, or of a benchmark as its authors publish it (docs/evaluation.md lists them). Questions
have the words of the VideoLLaMA3 release's evaluation; videos are sampled at 1 frame a second, at most 180.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from ..bundle.bundle import bundle_folder, read_manifest
from ..config import GenerationConfig
from ..errors import ConfigError
from ..evaluate.answering import BundleAnswering
from ..evaluate.page import page
from ..evaluate.questions import QuestionSet
from ..evaluate.reference import is_checkpoint, reference_asker
from ..evaluate.report import RunComparison, RunReport, compare, report_on
from ..evaluate.results import ResultStore, Settings, differences, read_results
from ..evaluate.text import comparison_lines, report_lines
from ..files import write_whole
from ..terminal import one_line
from . import options as shared
from .output_files import check_output
from .question_set import (
    Results,
    add_output,
    add_questions,
    answered,
    generation_config,
    is_done,
    open_store,
    read,
    sampling_plan,
    settings_of,
    sha256,
)
from .stderr import progress


def add_to(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="ask a set of questions and score the answers", description=__doc__)
    parser.add_argument("model", metavar="BUNDLE", help="bundle to evaluate")
    add_questions(parser)
    parser.add_argument(
        "--against",
        metavar="OTHER",
        help="compare with: another bundle, a results file of an earlier run, or a checkpoint folder, which PyTorch "
        "answers (needs the extra `export`)",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="generate N answers together (default: 1)")
    output = add_output(parser)
    output.add_argument(
        "--against-output",
        type=Path,
        metavar="FILE",
        help="the other's results (default: FILE.against.jsonl beside -o FILE.jsonl)",
    )
    output.add_argument("--json", type=Path, metavar="FILE", help="write the scores as JSON; - is stdout")
    output.add_argument("--page", type=Path, metavar="FILE", help="write a web page: what is wrong, or what changed")
    shared.add_system(parser)
    shared.add_model(parser, named=False)
    shared.add_generation(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    _check(options)
    questions, others = read(options), _other_output(options)
    manifest = shared.manifest_of(options)  # a bundle that is none should not leave an empty output
    generation = generation_config(options, questions)
    settings = settings_of(options, generation) | _bundle_settings(options.model)
    other: Results | None = None
    with ExitStack() as files:
        store = files.enter_context(closing(open_store(options, options.output, settings)))
        ask_other = None if options.against is None else _other(options, questions, generation, others, files)
        mine = _answered_by_bundle(options, questions, generation, store)
        reports = {manifest.name: report_on(mine.values())}
        if ask_other is not None:
            name, other = ask_other()
            name = f"{name} (against)" if name in reports else name
            reports[name] = report_on(other.values())
    compared = None if other is None else compare(other, mine)
    if other is not None and compared is None:
        progress("warning: the two runs have no question in common that both answered and has a known answer")
    _show(options, reports, compared, questions)
    if options.page is not None:
        content = page(list(reports.items()), compared, mine, questions.asked, shared.media_limits(options))
        write_whole(options.page, [content.encode("utf-8")])
        progress(f"page: {options.page}")
    return 1 if any(report.failed for report in reports.values()) else 0


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for options that do not go together, before anything is read or written."""
    if options.output is None and (options.resume or options.retry_failed):
        raise ConfigError("--resume needs the file to continue: -o FILE")
    if options.force and (options.resume or options.retry_failed):
        raise ConfigError("--force and --resume or --retry-failed are mutually exclusive")
    if options.against_output is not None and options.against is None:
        raise ConfigError("--against-output needs --against")
    for name in ("output", "against_output", "page", "json"):
        check_output("-o" if name == "output" else f"--{name.replace('_', '-')}", getattr(options, name), options.data)
    sampling_plan(options)
    if options.batch < 1:
        raise ConfigError(f"batch must be at least 1, not {options.batch}")


def _other_output(options: argparse.Namespace) -> Path | None:
    """Where the other's results are kept. Raises ConfigError where it would be this run's own file."""
    if options.against is None or Path(options.against).is_file():
        if options.against is not None and options.output is not None and _same(Path(options.against), options.output):
            raise ConfigError(f"--against {options.against} is the file that -o would write: choose another")
        return None
    path: Path | None = options.against_output
    if path is None and options.output is not None:
        path = options.output.with_name(f"{options.output.stem}.against{options.output.suffix or '.jsonl'}")
    if path is not None and options.output is not None and _same(path, options.output):
        raise ConfigError("--against-output and -o are the same file: choose another")
    return path


def _same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def _bundle_settings(bundle: str | None) -> Settings:
    manifest = bundle_folder(bundle) / "bundle.json"
    return {"model": read_manifest(bundle_folder(bundle)).name, "bundle_sha256": sha256(manifest)}


def _answered_by_bundle(
    options: argparse.Namespace, questions: QuestionSet, generation: GenerationConfig, store: ResultStore
) -> Results:
    """The bundle named by options.model; it is not loaded where all is answered already."""
    if is_done(options, questions, store):
        return answered(options, questions, None, store)
    model = BundleAnswering(
        shared.load_model(options),
        sampling_plan(options),
        shared.pruning_config(options),
        generation,
        options.batch,
        options.system,
        options.add_system_prompt,
        shared.media_limits(options),
    )
    return answered(options, questions, model, store)


def _other(
    options: argparse.Namespace,
    questions: QuestionSet,
    generation: GenerationConfig,
    path: Path | None,
    files: ExitStack,
) -> Callable[[], tuple[str, Results]]:
    """What gives the name and the results of what this run is compared with.

    All that can be refused is refused at once: this run's own answers may take hours. files: closes what is opened.
    """
    other = Path(options.against)
    if other.is_file():
        read_before = _checked_results(options, generation, other)
        return lambda: read_before
    if (other / "bundle.json").exists() or not is_checkpoint(other):
        their = argparse.Namespace(**{**vars(options), "model": options.against})
        settings = settings_of(options, generation) | _bundle_settings(options.against)
        store = files.enter_context(closing(open_store(options, path, settings)))
        return lambda: (str(settings["model"]), _answered_by_bundle(their, questions, generation, store))
    if path is None:
        path = Path(files.enter_context(tempfile.TemporaryDirectory())) / "reference.jsonl"
    ask = reference_asker(other, path, _reference_arguments(options))
    return lambda: _checked_results(options, generation, ask())


def _checked_results(options: argparse.Namespace, generation: GenerationConfig, path: Path) -> tuple[str, Results]:
    """The name and the results in a file of another run; a warning for what it was made with that differs."""
    settings, results = read_results(path)
    for difference in differences(settings, settings_of(options, generation)):
        if not difference.startswith(("model ", "bundle ", "checkpoint ", "adapters ")):
            progress(f"warning: {path} was made with {difference}")
    return str(settings.get("model", path.name)), results


def _reference_arguments(options: argparse.Namespace) -> list[str]:
    """The options of this run that the reference's command has, too."""
    arguments = ["--data", *map(str, options.data)]
    values = ("format", "media_root", "limit", "limit_seed", "fps", "max_frames", "sampling_rule", "max_new_tokens")
    for name in (*values, "repetition_penalty"):
        if (value := getattr(options, name)) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    arguments += [
        f"--{name.replace('_', '-')}" for name in ("resume", "retry_failed", "force") if getattr(options, name)
    ]
    return arguments


def _show(
    options: argparse.Namespace, reports: dict[str, RunReport], compared: RunComparison | None, questions: QuestionSet
) -> None:
    notes = [f"{form.title}: {form.differs}" for form in questions.formats if form.differs]
    if options.json is not None:
        values = {
            "runs": {name: report.to_json() for name, report in reports.items()},
            "comparison": None if compared is None else compared.to_json(),
            "notes": notes,
        }
        text = json.dumps(values, indent=1) + "\n"
        if str(options.json) == "-":
            print(text, end="")
            return
        write_whole(options.json, [text.encode()])
    for name, report in reports.items():
        print("\n".join(report_lines(name, report)))
    if compared is not None:
        print("\n".join(comparison_lines(compared)))
    print("\n".join(one_line(f"note: {note}") for note in notes), end="\n" if notes else "")
