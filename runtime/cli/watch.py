"""`vl3edge watch`: questions about a camera, a stream or a file in real time, answered while it runs.

Ctrl-C (or SIGTERM, as service managers send it) ends the watch with a summary and exit status 0, as watches end so. A
second one does not wait for what the model is computing.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..config import MAX_DRAFTS
from ..errors import ConfigError
from ..live.change import DEFAULT_SHARE, ChangeDetector
from ..live.events import LiveEvent
from ..live.output import FORMATS, AnswerWriter, WatchState, clock_text
from ..live.reader import LiveReader
from ..live.session import Session
from ..live.source import Reconnection, SourceOptions
from ..live.watch import WatchConfig, watch
from ..prompt.boxes import boxes_question
from . import options as shared
from .boxes import ASK_BOXES, boxes_problem
from .labelling import add_labelling, add_prompt_file, labelled, read_prompt
from .output_files import check_output
from .stderr import progress

DEFAULT_EVERY_S = 10.0


def add_to(commands: Any) -> None:
    parser = commands.add_parser("watch", help="ask about a camera or a stream while it runs", description=__doc__)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="camera (/dev/video0), address (rtsp://, http://, …), or file, played in real time",
    )
    parser.add_argument(
        "-q",
        "--question",
        action="append",
        default=[],
        help="question to ask; may be repeated, and each is asked every time",
    )
    add_prompt_file(parser, "-q")
    shared.add_system(parser)
    asking = parser.add_argument_group("what and when to ask")
    asking.add_argument("--every", type=float, metavar="S", help=f"every S seconds (default: {DEFAULT_EVERY_S:g})")
    asking.add_argument(
        "--on-change",
        type=float,
        nargs="?",
        const=DEFAULT_SHARE,
        metavar="SHARE",
        help=f"when this share of the picture changes after it was still (default: {DEFAULT_SHARE:g})",
    )
    asking.add_argument("--duration", type=float, metavar="S", help="end after S seconds")
    asking.add_argument(
        "--keep-answers", action="store_true", help="let the model see its earlier answers (default: no)"
    )
    asking.add_argument("--boxes", action="store_true", help=f"{ASK_BOXES}, in pixels of the frames")
    _add_source(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    output.add_argument("-o", "--output", type=Path, metavar="FILE", help="append to FILE (default: stdout)")
    shared.add_model(parser)
    frames = parser.add_argument_group("frames")
    frames.add_argument("--fps", type=float, help="frames sampled per second (default: the model's, 1)")
    frames.add_argument("--threshold", type=float, help="DiffFP threshold: higher drops more tokens (default: 0.1)")
    frames.add_argument("--no-pruning", action="store_true", help="keep every video token")
    frames.add_argument(
        "--context", type=int, metavar="N", help="remember at most N tokens (default: the model's context)"
    )
    shared.add_generation(parser)
    add_labelling(parser)
    parser.set_defaults(
        run=run, max_visual_tokens=None, keep_ratio=None
    )  # no one knows how much of a stream is to come


def _add_source(parser: argparse.ArgumentParser) -> None:
    options, reconnection = SourceOptions(), Reconnection()
    group = parser.add_argument_group("source")
    group.add_argument(
        "--timeout",
        type=float,
        default=options.timeout_s,
        metavar="S",
        help=f"seconds of silence after which the connection counts as lost (default: {options.timeout_s:g})",
    )
    group.add_argument("--reconnects", type=int, metavar="N", help="give up after N attempts in a row (default: never)")
    group.add_argument(
        "--backoff",
        type=float,
        default=reconnection.first_s,
        metavar="S",
        help=f"pause before the first attempt, doubling up to {reconnection.longest_s:g} s "
        f"(default: {reconnection.first_s:g})",
    )
    group.add_argument("--transport", choices=("tcp", "udp"), default="tcp", help="transport of RTSP (default: tcp)")
    group.add_argument("--camera-size", metavar="WxH", help="resolution to request from a camera, such as 1280x720")
    group.add_argument("--camera-rate", type=float, metavar="N", help="frame rate to request from a camera")
    shared.add_source_fps(group)
    group.add_argument("--speed", type=float, default=1.0, metavar="X", help="play a file X times as fast")


def run(options: argparse.Namespace) -> int:
    watch_config, generation, pruning = (
        _watch_config(options),
        labelled(options, shared.generation_config(options, MAX_DRAFTS)),  # most answers are like those before
        shared.pruning_config(options),
    )
    source = SourceOptions(
        options.timeout, options.transport, options.camera_size, options.camera_rate, options.source_fps
    )
    reconnection = Reconnection(options.backoff, max(options.backoff, Reconnection().longest_s), options.reconnects)
    manifest = shared.manifest_of(options)
    fps = manifest.processor.fps if options.fps is None else options.fps
    reader = LiveReader(options.source, fps, source, reconnection, options.speed)
    check_output("-o", options.output, [options.source])
    with _opened(options.output) as stream, _stop_signals() as stopped:
        model = shared.load_model(options)
        session = model.open_session(
            options.system, pruning, options.context, add_system_prompt=options.add_system_prompt
        )
        writer = AnswerWriter(
            reader.name,
            stream,
            options.format,
            len(watch_config.questions) > 1,
            bool(options.output),
            generation.json_schema is not None,
            options.boxes,
        )
        progress(f"{_when(watch_config)}; Ctrl-C ends the watch")
        try:
            with reader:
                for item in watch(reader, session, watch_config, generation, stopped.is_set):
                    if isinstance(item, LiveEvent):
                        progress(f"[{clock_text(item.time_s)}] {item.message}")
                    else:
                        writer.write(item, _state(reader, session))
                        if item.chunk.finish_reason is not None:
                            for problem in _problems(writer, options.boxes):
                                progress(f"[{clock_text(item.time_s)}] {problem}")
        finally:
            writer.interrupt(_state(reader, session))
            progress(_summary(reader, session, writer.num_answers))
    return 0


def _watch_config(options: argparse.Namespace) -> WatchConfig:
    change = None if options.on_change is None else ChangeDetector(options.on_change)
    every_s = options.every
    if every_s is None and change is None:
        every_s = DEFAULT_EVERY_S
    questions = [*options.question]
    if options.prompt_file is not None:
        questions.append(read_prompt(options.prompt_file))
    if not questions:
        raise ConfigError("there is nothing to ask: give at least one question, with -q or --prompt-file")
    if options.boxes:
        questions = [*map(boxes_question, questions)]
    return WatchConfig(tuple(questions), every_s, change, options.keep_answers, options.duration)


def _problems(writer: AnswerWriter, asks_boxes: bool) -> list[str]:
    """What the last answer was to have and has not, in words."""
    no_boxes = boxes_problem(writer.answer) if asks_boxes and writer.answer is not None else None
    return [problem for problem in (writer.error, no_boxes) if problem is not None]


def _when(watch_config: WatchConfig) -> str:
    """When questions are asked, in words."""
    times = []
    if watch_config.every_s is not None:
        times.append(f"every {watch_config.every_s:g} s")
    if watch_config.change is not None:
        times.append("when the picture changes")
    return f"asking {' and '.join(times)}"


def _state(reader: LiveReader, session: Session) -> WatchState:
    return WatchState(session.num_frames, session.num_tokens, reader.counts.dropped, session.dropped_frames)


def _summary(reader: LiveReader, session: Session, num_answers: int) -> str:
    counts = reader.counts
    parts = [
        f"{counts.received} frames received",
        f"{counts.sampled} sampled",
        f"{counts.taken} seen",
        f"{counts.dropped} dropped while the model was busy",
    ]
    if counts.damaged:
        parts.append(f"{counts.damaged} damaged")
    if session.dropped_frames:
        parts.append(f"{session.dropped_frames} dropped from the full context")
    if counts.connections > 1:
        parts.append(f"{counts.connections - 1} reconnections")
    return f"{reader.name}: {', '.join(parts)}; {num_answers} answers"


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the program as usual."""
    stopped = threading.Event()
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def stop(number: int, _: object) -> None:
        stopped.set()
        restore()

    if threading.current_thread() is threading.main_thread():  # signals are handled in no other
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
    try:
        yield stopped
    finally:
        restore()


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """stdout, or the output file, appended to: a watch that is started again must not lose what it wrote before."""
    if path is None:
        yield sys.stdout
    else:
        with path.open("a", encoding="utf-8") as file:
            yield file
