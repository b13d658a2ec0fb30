"""`vl3edge caption`: captions of many clips, one record each; a clip that fails costs its own record only."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from . import cli_options as shared
from .errors import BackendError, ConfigError, ContextLengthError, MediaError
from .medialist import expand
from .model import DESCRIBE, VideoLlama3
from .records import FORMATS, CaptionRecord, RecordWriter, finished_media


def add_to(commands: Any) -> None:
    parser = commands.add_parser("caption", help="caption videos and images", description=__doc__)
    parser.add_argument("media", nargs="+", metavar="MEDIA", help="file, folder or pattern")
    parser.add_argument("-p", "--prompt", help='what to ask (default: "Describe this video." or "… image.")')
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    output.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: stdout")
    output.add_argument("--resume", action="store_true", help="continue FILE: skip media that have a record in it")
    shared.add_model(parser)
    shared.add_sampling(parser)
    shared.add_generation(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.resume and (options.format != "jsonl" or options.output is None):
        raise ConfigError("--resume needs --format jsonl and -o FILE, the file to continue")
    sampling, pruning = shared.sampling_plan(options), shared.pruning_config(options)
    generation = shared.generation_config(options)
    media = expand(options.media)
    if options.format == "srt" and len(media) > 1:
        raise ConfigError(f"srt describes one video, but {len(media)} are given; use --format jsonl")
    done = finished_media(options.output) if options.resume else set()
    waiting = [item for item in media if item not in done]
    if done:
        shared.progress(f"{len(media) - len(waiting)} of {len(media)} have a record already")
    model = shared.load_model(options) if waiting else None
    failed = 0
    with _opened(options.output, options.resume) as stream:
        writer = RecordWriter(stream, options.format, len(media) > 1, options.output is not None)
        for number, item in enumerate(waiting, 1):
            assert model is not None
            record, report = _caption(model, item, options, sampling, pruning, generation)
            writer.write(record)
            shared.progress(f"[{number}/{len(waiting)}] {item}: {report}")
            failed += record.error is not None
    if failed:
        shared.progress(f"{failed} of {len(waiting)} failed")
    return 1 if failed else 0


def _caption(
    model: VideoLlama3, media: str, options: argparse.Namespace, sampling: Any, pruning: Any, generation: Any
) -> tuple[CaptionRecord, str]:
    """One clip's record, and one line about it."""
    begin = time.perf_counter()
    try:
        clip = model.encode(media, sampling, pruning)
        answer = model.ask(clip, DESCRIBE[clip.kind] if options.prompt is None else options.prompt, generation)
    except (MediaError, ContextLengthError, BackendError) as e:
        return CaptionRecord(media, error=str(e)), f"error: {e}"
    except MemoryError:
        message = f"{media}: not enough memory for it; use fewer frames (--max-frames)"
        return CaptionRecord(media, error=message), f"error: {message}"
    record = CaptionRecord(
        media=media,
        caption=answer.text,
        finish_reason=answer.finish_reason,
        num_frames=clip.num_frames,
        num_tokens=clip.num_tokens,
        seconds=round(time.perf_counter() - begin, 3),
        start_s=clip.start_s,
        end_s=clip.end_s,
    )
    return record, shared.time_report(clip, answer.stats)


@contextlib.contextmanager
def _opened(path: Path | None, keep: bool) -> Iterator[TextIO]:
    """stdout, or the output file: appended to with `keep`, else replaced."""
    if path is None:
        yield sys.stdout
    else:
        try:
            with path.open("a" if keep else "w", encoding="utf-8") as file:
                yield file
        except OSError as e:
            if e.errno is not None and e.filename is None:  # a full disk: say whose
                e.filename = str(path)
            raise
