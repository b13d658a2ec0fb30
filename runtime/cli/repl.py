"""A conversation on the command line: questions from a terminal or a pipe, answers streamed to stdout.

On a terminal there is a prompt with line editing, Ctrl-C stops an answer (what was said stays in the conversation), and
Ctrl-D or /quit ends. From a pipe every line is a question, and its answer a line or more on stdout.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from ..chat import Chat
from ..config import GenerationConfig
from ..decode.generate import join
from ..errors import ConfigError, Vl3EdgeError
from ..prompt.boxes import box_lines, boxes_question
from ..terminal import one_line, printable
from ..vision.clip import Clip
from .boxes import boxes_problem
from .labelling import check_json
from .stderr import progress

PROMPT = "> "
HELP = (
    "ask a question, or: /media FILE … adds videos and images to the next one, /undo removes the last one, "
    "/quit (or Ctrl-D) ends; Ctrl-C stops an answer"
)


class Conversation:
    """Reads lines and carries them out.

    load: encodes the files that a line names; raises MediaError. media: clips for the first question.
    boxes: whether every question asks for boxes.
    """

    def __init__(
        self,
        chat: Chat,
        load: Callable[[Sequence[str]], list[Clip]],
        media: Sequence[Clip],
        generation: GenerationConfig,
        source: TextIO,
        boxes: bool = False,
    ) -> None:
        self._chat = chat
        self._load = load
        self._waiting = list(media)
        self._generation = generation
        self._source = source
        self._boxes = boxes
        self._failed = self._asked = False

    def run(self) -> int:
        """Until the lines end; 1 if one of a pipe failed, else 0. Raises ConfigError if a pipe has no question."""
        interactive = self._source.isatty()
        if interactive:
            progress(HELP)
            with contextlib.suppress(ImportError):  # line editing, where Python was built with it
                importlib.import_module("readline")
        for clip in self._waiting:
            progress(_described(clip))
        read = self._prompted if interactive else self._source.readline
        while line := read():
            try:
                if not self._carry_out(line.strip()):
                    break
            except KeyboardInterrupt:
                if not interactive:
                    raise
                print(flush=True)
            except Vl3EdgeError as e:
                self._failed = True
                progress(f"error: {' '.join(str(e).split())}")
        if not interactive and not self._asked:
            raise ConfigError("no question: use -q, or write questions to stdin, one per line")
        return int(self._failed and not interactive)

    def _prompted(self) -> str:
        """A line with its end, "" at the end of input; Ctrl-C begins the line anew."""
        while True:
            try:
                # Line editing, which needs the prompt, works when both ends are terminals; stdout is for answers alone.
                if sys.stdout.isatty():
                    return input(PROMPT) + "\n"
                print(PROMPT, end="", file=sys.stderr, flush=True)
                return self._source.readline()
            except KeyboardInterrupt:
                print(file=sys.stderr)
            except EOFError:
                print()
                return ""

    def _carry_out(self, line: str) -> bool:
        """Does what a line says; False if it says to end."""
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return False
        if command == "/media":
            self._add(rest)
        elif command == "/undo":
            self._undo()
        elif command.startswith("/"):
            raise ConfigError(f"{one_line(command)} is not a command; {HELP}")
        elif line:
            self._answer(line)
        return True

    def _add(self, names: str) -> None:
        try:
            files = shlex.split(names)
        except ValueError as e:
            raise ConfigError(f"{names}: {e}") from e
        if not files:
            raise ConfigError("/media needs the name of at least one file")
        clips = self._load(files)
        self._waiting += clips
        for clip in clips:
            progress(_described(clip))

    def _undo(self) -> None:
        turn = self._chat.undo()
        if turn is None:
            raise ConfigError("there is no question to undo")
        self._waiting = [*turn.clips, *self._waiting]
        progress(f"undone: {turn.question}")

    def _answer(self, question: str) -> None:
        turns, self._asked = len(self._chat.turns), True
        question = boxes_question(question) if self._boxes else question
        said = []
        try:
            with contextlib.closing(self._chat.stream(question, *self._waiting, config=self._generation)) as chunks:
                for chunk in chunks:
                    said.append(chunk)
                    print(printable(chunk.text), end="", flush=True)
            print(flush=True)
            check_json(said, self._generation)
        finally:
            if len(self._chat.turns) > turns:  # else the media wait for the next question
                self._waiting = []
        if self._boxes:
            answer = join(said, [clip.source_size for turn in self._chat.turns for clip in turn.clips])
            print("".join(f"{line}\n" for line in box_lines(answer.boxes)), end="", flush=True)
            if problem := boxes_problem(answer):
                progress(problem)


def questions_from(stream: TextIO | None) -> TextIO:
    """The stream, made to replace bytes that are no text instead of failing at them; empty if there is none."""
    if stream is None:  # closed by whoever started us
        return io.StringIO()
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return stream


def _described(clip: Clip) -> str:
    frames = "frame" if clip.num_frames == 1 else "frames"
    return (
        f"{clip.name}: {clip.num_frames} {frames} of {clip.width_px}×{clip.height_px}, {clip.num_tokens} of "
        f"{clip.num_tokens + clip.num_pruned} visual tokens, {clip.stats.seconds:.2f} s"
    )
