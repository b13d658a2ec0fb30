"""`vl3edge caption`: captions of many clips, one record each; a clip that fails costs its own record only."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..captions.captioner import CaptionRequest, CollectionCaptioner
from ..captions.datasets import DATASETS, check_files
from ..captions.jsonl import RecordFile, State
from ..captions.outputs import (
    DOCUMENTS,
    FORMATS,
    DocumentOutput,
    FinishedOutput,
    Output,
    StreamOutput,
    TextFileOutput,
    records_of,
    stream_to,
)
from ..captions.parquet import check_pyarrow
from ..captions.segments import plan_segments
from ..captions.sidecar import SUFFIXES, SidecarOutput
from ..config import MAX_DRAFTS
from ..errors import ConfigError, OutputError, no_such_file
from ..jobs import CaptionResult
from ..media.addresses import is_address
from ..media.discovery import WANTED, matches
from . import options as shared
from .labelling import add_labelling, add_prompt_file, labelled, prompt_of
from .output_files import check_output
from .stderr import progress


def add_to(commands: Any) -> None:
    parser = commands.add_parser("caption", help="caption videos and images", description=__doc__)
    parser.add_argument("media", nargs="+", metavar="MEDIA", help="file, folder, pattern or address")
    parser.add_argument("-p", "--prompt", help='what to ask (default: "Describe this video." or "… image.")')
    add_prompt_file(parser, "--prompt")
    parser.add_argument(
        "--find",
        metavar="EVENT",
        help='find when an event happens: "the cat jumps"; a question is asked as it is: "When does it stop?"',
    )
    shared.add_system(parser)
    parser.add_argument("--segment", type=float, metavar="S", help="caption videos in segments of S seconds")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="generate N captions together (default: 1)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        choices=FORMATS,
        help="default: by the extension of FILE, else text; data sets for kohya's trainers are sd-scripts and "
        "musubi-tuner, for LLaVA's llava",
    )
    output.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: stdout")
    output.add_argument(
        "--sidecar",
        nargs="?",
        const="",
        metavar="EXT",
        help="write a file beside each clip instead: clip.mp4 and clip.txt (or .srt, .vtt, .json by --format, or EXT "
        "if given)",
    )
    output.add_argument(
        "--sidecar-folder", type=Path, metavar="DIR", help="write these files to DIR, not beside the clips"
    )
    output.add_argument("--resume", action="store_true", help="skip clips that already have a record or a sidecar")
    output.add_argument("--retry-failed", action="store_true", help="like --resume, and retry the clips that failed")
    output.add_argument("--force", action="store_true", help="replace files that exist")
    shared.add_model(parser)
    shared.add_sampling(parser)
    shared.add_generation(parser)
    add_labelling(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    begin = time.perf_counter()
    request, format = _request(options), _format(options)
    shared.manifest_of(options)  # a bundle that is none should not leave an empty output
    arguments = matches(options.media, shared.folder_kind(options), shared.media_limits(options))
    media = [name for _, names in arguments for name in names]
    with closing(_output(options, format, media)) as output:
        tally = _Tally()
        for argument, names in arguments:
            if not names:
                _record_missing(argument, output, options.retry_failed, tally)
            elif options.retry_failed and isinstance(output, RecordFile):
                for name in {argument, *_folders(names)} - set(names):
                    output.forget(name)
        waiting = tally.waiting(media, output, options.retry_failed)
        if waiting:
            captioner = CollectionCaptioner(shared.load_model(options), request, output, options.retry_failed)
            for result in captioner.results(waiting, in_order=isinstance(output, StreamOutput)):
                try:
                    output.write(result)
                except OutputError as e:
                    result = replace(result, clip=None, error=str(e))
                tally.add(result)
        output.finish()
    progress(f"{tally.summary(request.find is not None)}, {time.perf_counter() - begin:.1f} s")
    return 1 if tally.failed or tally.failed_before else 0


class _Tally:
    """Counts records, and says on stderr what becomes of each clip."""

    def __init__(self) -> None:
        self.done = self.found = self.failed = self.skipped = self.failed_before = 0
        self._clips: dict[str, str] = {}

    def waiting(self, media: Sequence[str], output: Output, retry: bool) -> list[str]:
        """The media that are still to be captioned; counts the others."""
        states = {name: output.state(name) for name in media}
        wanted = (State.WAITING, State.FAILED) if retry else (State.WAITING,)
        waiting = [name for name, state in states.items() if state in wanted]
        skipped = len(media) - len(waiting)
        self.skipped += skipped
        if not retry:
            self.failed_before += list(states.values()).count(State.FAILED)
        self._clips = {name: f"[{number}/{len(waiting)}]" for number, name in enumerate(waiting, 1)}
        if skipped:
            progress(f"{skipped} of {len(media)} already have a record")
        return waiting

    def add(self, result: CaptionResult) -> None:
        place = f"{self._clips.get(result.media, '')} {result.media}".strip()
        if result.segment is not None:
            place += f" segment {result.segment}/{result.segments}"
        if result.error is not None or result.clip is None or result.answer is None:
            self.failed += 1
            progress(f"{place}: error: {result.error}")
        else:
            self.done += 1
            self.found += result.found is True
            progress(f"{place}: {shared.time_report(result.clip, result.answer.stats)}")

    def summary(self, find: bool) -> str:
        before = f" ({self.failed_before} failed before; --retry-failed retries them)" if self.failed_before else ""
        done = f"{self.done} searched, {self.found} with the event" if find else f"{self.done} captioned"
        return f"{done}, {self.failed} failed, {self.skipped} skipped{before}"


def _record_missing(argument: str, output: Output, retry: bool, tally: _Tally) -> None:
    """An argument that matches nothing is a failed clip of its own."""
    state = output.state(argument)
    if state is State.WAITING or (retry and state is State.FAILED):
        result = CaptionResult(argument, error=no_such_file(argument, WANTED))
        output.write(result)
        tally.add(result)
    else:
        tally.skipped += 1
        tally.failed_before += 1


def _folders(names: Sequence[str]) -> set[str]:
    """Every folder that clips lie in: one that could not be read was a failed clip itself."""
    return {str(folder) for name in names if not is_address(name) for folder in Path(name).parents}


def _request(options: argparse.Namespace) -> CaptionRequest:
    prompt = prompt_of(options, "prompt")
    for name, given in (("prompt", prompt), ("json-schema", options.json_schema)):
        if options.find is not None and given is not None:
            raise ConfigError(f"--find and --{name} are mutually exclusive")
    if options.find is not None and not options.find.strip():
        raise ConfigError("--find needs an event to look for")
    if options.segment is not None:
        plan_segments(0.0, 0.0, options.segment)  # says what is wrong with the length before anything is loaded
    return CaptionRequest(
        shared.sampling_plan(options),
        shared.pruning_config(options),
        labelled(options, shared.generation_config(options, 0 if options.segment is None else MAX_DRAFTS)),
        prompt,
        options.find,
        options.segment,
        options.batch,
        options.system,
        options.add_system_prompt,
        options.kind,
    )


def _format(options: argparse.Namespace) -> str:
    """The format, after checking that the other options go with it."""
    suffixes = {".jsonl": "jsonl", ".srt": "srt", ".vtt": "vtt", ".parquet": "parquet"}
    format: str = options.format or suffixes.get(options.output.suffix.lower() if options.output else "", "text")
    if options.sidecar_folder is not None and options.sidecar is None:
        options.sidecar = ""
    if options.sidecar is not None:
        if options.output is not None:
            raise ConfigError("--sidecar and -o are mutually exclusive")
        if format not in SUFFIXES:
            raise ConfigError(f"--sidecar writes {', '.join(SUFFIXES)}, not {format}")
    elif (options.resume or options.retry_failed) and (options.output is None or format == "text"):
        raise ConfigError("--resume needs output to continue: -o FILE with a --format other than text, or --sidecar")
    if options.force and (options.resume or options.retry_failed):
        raise ConfigError("--force and --resume or --retry-failed are mutually exclusive")
    if format == "parquet":
        check_pyarrow()
    if format in ("parquet", *DATASETS) and options.output is None and options.sidecar is None:
        raise ConfigError(f"--format {format} needs -o FILE")
    if format in DATASETS and (options.segment is not None or options.find is not None):
        raise ConfigError(f"{format} has one caption for each file; leave out --segment and --find")
    return format


def _output(options: argparse.Namespace, format: str, media: Sequence[str]) -> Output:
    keep = options.resume or options.retry_failed
    if options.sidecar is not None:
        suffix, folder = options.sidecar or SUFFIXES[format], options.sidecar_folder
        output = SidecarOutput(media, suffix, format, keep, options.force, folder)
        if output.note is not None:
            progress(output.note)
        return output
    if format in ("srt", "vtt") and len(media) > 1:
        raise ConfigError(
            f"{format} holds the captions of one video, not of {len(media)}; use --sidecar or --format jsonl"
        )
    if format in DATASETS:
        check_files(media, format)
    check_output("-o", options.output, media)
    if options.output is None:
        return StreamOutput(stream_to(sys.stdout), format, len(media) > 1)
    if format in ("srt", "vtt") and keep and options.output.exists() and not records_of(options.output).exists():
        return FinishedOutput()
    if format in DOCUMENTS:
        return DocumentOutput(options.output, format, keep, options.force)
    if format == "text":
        return TextFileOutput(options.output, len(media) > 1, options.force)
    return RecordFile(options.output, keep, options.force)
