"""`vl3edge compare`: what two bundles say about the same clips, and a web page of what differs.

First one answers everything, then the other, so that only one is in memory. The run can be stopped at any time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..bundle.bundle import bundle_folder
from ..captions.captioner import CaptionRequest
from ..captions.records import json_text
from ..compare.answers import answered, failure, waiting
from ..compare.difference import ComparisonSummary, pairs, summary
from ..compare.page import Names, page
from ..errors import ConfigError, no_such_file
from ..evaluate.results import EvalResult, ResultsFile, Settings
from ..files import write_whole
from ..inspect.thumbnail import middle_frame, thumbnail
from ..media.contents import media_kind
from ..media.discovery import WANTED, matches
from ..terminal import one_line
from . import options as shared
from .labelling import add_labelling, add_prompt_file, labelled, prompt_of
from .output_files import check_output
from .question_set import sha256
from .stderr import progress

_PAGES = (".html", ".htm")


def add_to(commands: Any) -> None:
    parser = commands.add_parser("compare", help="compare what two bundles say about clips", description=__doc__)
    parser.add_argument("first", metavar="A", help="bundle")
    parser.add_argument("second", metavar="B", help="the other bundle")
    parser.add_argument("media", nargs="+", metavar="MEDIA", help="file, folder, pattern or address")
    parser.add_argument("-p", "--prompt", help='what to ask (default: "Describe this video." or "… image.")')
    add_prompt_file(parser, "--prompt")
    shared.add_system(parser)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="generate N answers together (default: 1)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR|FILE.html",
        help="the page, and beside it the answers and differences as JSON lines; in a folder it is index.html",
    )
    output.add_argument("--resume", action="store_true", help="continue: ask what has no answer there")
    output.add_argument("--retry-failed", action="store_true", help="like --resume, and retry what failed")
    output.add_argument("--force", action="store_true", help="replace what is there")
    shared.add_model(parser, named=False)
    shared.add_sampling(parser)
    shared.add_generation(parser)
    add_labelling(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class _Files:
    """Of a comparison."""

    page: Path
    lines: Path
    answers: tuple[Path, Path]

    @classmethod
    def at(cls, output: Path) -> _Files:
        if output.suffix.lower() in _PAGES:
            return cls(output, *_named(output.with_suffix("")))
        return cls(output / "index.html", output / "compare.jsonl", (output / "a.jsonl", output / "b.jsonl"))


def _named(stem: Path) -> tuple[Path, tuple[Path, Path]]:
    lines, first, second = (stem.with_name(f"{stem.name}{end}.jsonl") for end in ("", ".a", ".b"))
    return lines, (first, second)


def run(options: argparse.Namespace) -> int:
    files, names = _files(options), _names(options)
    prompt = prompt_of(options, "prompt")
    runs = [argparse.Namespace(**{**vars(options), "model": model}) for model in (options.first, options.second)]
    requests = [_request(each, prompt) for each in runs]
    arguments = matches(options.media, shared.folder_kind(options), shared.media_limits(options))
    missing = [argument for argument, found in arguments if not found]
    media = [name for _, found in arguments for name in found]
    files.page.parent.mkdir(parents=True, exist_ok=True)
    found = [
        _answers(each, request, media, missing, path, name)
        for each, request, path, name in zip(runs, requests, files.answers, names, strict=True)
    ]
    compared = pairs([*media, *missing], *found)
    total = summary(compared)
    write_whole(files.lines, (f"{json_text(pair.to_json())}\n".encode() for pair in compared))
    write_whole(files.page, [page(names, compared, total, lambda name: _picture(name, options)).encode("utf-8")])
    print("\n".join(_words(names, total)))
    progress(f"page: {files.page}")
    return 1 if total.failed else 0


def _files(options: argparse.Namespace) -> _Files:
    """Raises ConfigError for options that do not go together, before anything is read or written."""
    keep = options.resume or options.retry_failed
    if options.force and keep:
        raise ConfigError("--force and --resume or --retry-failed are mutually exclusive")
    files = _Files.at(options.output)
    if options.output.suffix.lower() in _PAGES:
        check_output("-o", options.output)
    elif options.output.is_file():
        raise ConfigError(f"{options.output} is a file; -o names a folder, or a page: FILE.html")
    existing = next((path for path in (files.page, files.lines, *files.answers) if path.exists()), None)
    if existing is not None and not (keep or options.force):
        raise ConfigError(f"{existing} exists; continue with --resume, replace it with --force, or choose another")
    return files


def _names(options: argparse.Namespace) -> Names:
    """Of the two bundles: their own, or their folders', whatever tells them apart."""
    folders = [bundle_folder(model) for model in (options.first, options.second)]
    own = [shared.manifest_of(argparse.Namespace(model=folder)).name for folder in folders]
    for first, second in (own, [one_line(folder.resolve().name) for folder in folders]):
        if first != second:
            return first, second
    return f"A: {own[0]}", f"B: {own[1]}"


def _request(options: argparse.Namespace, prompt: str | None) -> CaptionRequest:
    return CaptionRequest(
        shared.sampling_plan(options),
        shared.pruning_config(options),
        labelled(options, shared.generation_config(options)),
        prompt,
        batch=options.batch,
        system=options.system,
        add_system_prompt=options.add_system_prompt,
        kind=options.kind,
    )


def _settings(options: argparse.Namespace, request: CaptionRequest) -> Settings:
    """All that an answer depends on; a batch is no matter."""
    asked = {name: value for name, value in asdict(request).items() if name not in ("batch", "find", "segment_s")}
    return {**asked, "bundle_sha256": sha256(bundle_folder(options.model) / "bundle.json")}


def _answers(
    options: argparse.Namespace,
    request: CaptionRequest,
    media: Sequence[str],
    missing: Sequence[str],
    path: Path,
    name: str,
) -> dict[str, EvalResult]:
    """What one bundle says, by the clip's key. It is not loaded where all is answered already."""
    keep = options.resume or options.retry_failed
    with closing(ResultsFile(path, _settings(options, request), keep, options.force)) as store:
        for argument in waiting(missing, store, retry=False):
            store.write(failure(argument, no_such_file(argument, WANTED)))
        left = waiting(media, store, options.retry_failed)
        if left:
            model = shared.load_model(options)
            for number, result in enumerate(answered(model, request, left, store), 1):
                said = f"error: {result.error}" if result.answer is None else one_line(result.answer)
                progress(f"{name} [{number}/{len(left)}] {result.clip}: {said}")
        return store.results


def _picture(name: str, options: argparse.Namespace) -> str:
    limits, sampling = shared.media_limits(options), shared.sampling_plan(options)
    return thumbnail(lambda: middle_frame(name, options.kind or media_kind(name, limits), limits, sampling))


def _words(names: Names, total: ComparisonSummary) -> list[str]:
    """The comparison for the terminal."""
    if not total.answered or total.first is None or total.second is None:
        return ["no clip has two answers"]
    lines = [
        f"{total.equal:,} of {total.answered:,} answers are the same ({total.equal / total.answered:.1%}); "
        f"{total.similarity:.1%} of words in common"
    ]
    for name, costs in zip(names, (total.first, total.second), strict=True):
        lines.append(
            f"  {one_line(name)}: {costs.answer_tokens:.1f} tokens an answer, {costs.visual_tokens:,.1f} of a clip, "
            f"{costs.seconds:.2f} s"
        )
    return [*lines, f"  {total.failed:,} without two answers"] if total.failed else lines
