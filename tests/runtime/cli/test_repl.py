"""`vl3edge ask` without -q: a conversation from a pipe and on a real (pseudo) terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
COMMAND = [sys.executable, "-m", "vl3edge.runtime.cli.main", "ask", "--threads", "1"]
PATIENCE_S = 60.0


def piped(lines: str | bytes, *arguments: str | Path) -> tuple[int, list[str], str]:
    given = lines.encode() if isinstance(lines, str) else lines
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, input=given, capture_output=True, timeout=PATIENCE_S, check=False)
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode()


class Terminal:
    """The command on a pseudo terminal of its own. stdout: None for the terminal, or a file."""

    def __init__(self, *arguments: str | Path, stdout: int | None = None) -> None:
        self._end, other = pty.openpty()

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that its Ctrl-C reaches the command
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it

        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=other,
            stdout=other if stdout is None else stdout,
            stderr=other,
            start_new_session=True,
            preexec_fn=take_terminal,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(other)
        self._text = ""

    def until(self, wanted: str) -> str:
        """What is shown up to and with `wanted`, since the last call."""
        deadline = time.monotonic() + PATIENCE_S
        while wanted not in self._text:
            assert time.monotonic() < deadline, f"no {wanted!r} in {self._text!r}"
            if select.select([self._end], [], [], 0.2)[0]:
                try:
                    self._text += os.read(self._end, 4096).decode(errors="replace")
                except OSError:  # the other end is closed
                    raise AssertionError(f"it ended without {wanted!r}: {self._text!r}") from None
        shown, _, self._text = self._text.partition(wanted)
        return shown + wanted

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def interrupt_until(self, wanted: str) -> None:
        """Presses Ctrl-C, and again after ten seconds in which nothing was shown, until `wanted` is.

        Python's readline notices a signal only while it waits for a key: one that comes a moment before it begins to
        wait is handled at the next key, or the next signal.
        """
        begin = pressed = time.monotonic()
        self.type("\x03")
        while wanted not in self._text:
            now = time.monotonic()
            assert now - begin < PATIENCE_S, f"no {wanted!r} in {self._text!r}"
            if select.select([self._end], [], [], 0.2)[0]:
                self._text += os.read(self._end, 4096).decode(errors="replace")
                pressed = now  # it was noticed: the rest is on its way
            elif now - pressed > 10:
                self.type("\x03")
                pressed = now
        self._text = self._text.partition(wanted)[2]

    def status(self) -> int:
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal(CLIP)
    yield opened
    opened.close()


def test_every_line_of_a_pipe_is_a_question() -> None:
    status, out, err = piped("What colour is it?\n\n  When does it stop?  \nDoes it turn?", CLIP)
    assert (status, out) == (0, ["Red.", "At 7.0s.", "Yes."])
    assert "87 of 144 visual tokens" in err


def test_media_and_taking_back() -> None:
    lines = [f"/media '{CLIP}'", "What colour is it?", "/undo", "What shape is it?", "/quit", "Does it turn?"]
    status, out, err = piped("\n".join(lines))
    assert (status, out) == (0, ["Red.", "A square."])
    assert "undone: What colour is it?" in err


def test_what_goes_wrong_in_a_pipe_is_said_and_the_rest_answered() -> None:
    lines = b"/nothing\n/media\n/media 'x\n/media missing.mp4\n/undo\n\xff\xfe\nWhat colour is it?\n"
    status, out, err = piped(lines, CLIP)
    assert status == 1
    assert out[-1] == "Red."
    problems = [line for line in err.splitlines() if line.startswith("vl3edge: error: ")]
    assert len(problems) == 5
    for problem, word in zip(problems, ("/nothing", "/media", "quotation", "missing.mp4", "undo"), strict=True):
        assert word in problem


def test_nothing_asked_is_bad_usage() -> None:
    status, out, err = piped("", CLIP)
    assert (status, out) == (2, [])
    assert "no question: use -q" in err
    assert piped("What?", "missing.mp4")[0] == 1


@pytest.mark.unwatched
def test_a_conversation_on_a_terminal(terminal: Terminal) -> None:
    assert "Ctrl-D" in terminal.until("> ")
    terminal.type("What colour is it?\n")
    assert "Red." in terminal.until("> ")
    terminal.type("/wrong\n")
    assert "/wrong is not a command" in terminal.until("\n> ")
    terminal.type("What sh")
    terminal.until("What sh")
    terminal.interrupt_until("> ")
    terminal.type("When does it stop?\n")
    terminal.until("At 7.0s.")
    terminal.until("\n> ")
    terminal.type("\x04")
    assert terminal.status() == 0


@pytest.mark.unwatched
def test_ctrl_c_stops_an_answer_and_what_was_said_stays() -> None:
    terminal = Terminal(CLIP, "--temperature", "9", "--seed", "1", "--max-new-tokens", "3500")
    try:
        terminal.until("> ")
        terminal.type("Go on and on?\n")
        terminal.until("Go on and on?")
        terminal.until(" ")  # it has begun to speak
        terminal.type("\x03/undo\n")
        said = terminal.until("undone: Go on and on?")
        assert len(said) < 3500, said  # a character is less than a token
        terminal.type("/quit\n")
        assert terminal.status() == 0
    finally:
        terminal.close()


def test_answers_alone_go_to_a_file(tmp_path: Path) -> None:
    with (tmp_path / "answers").open("w") as file:
        terminal = Terminal(CLIP, stdout=file.fileno())
        try:
            terminal.until("> ")
            terminal.type("What colour is it?\n")
            terminal.until("> ")
            terminal.type("\x04")
            assert terminal.status() == 0
        finally:
            terminal.close()
    assert (tmp_path / "answers").read_text() == "Red.\n"
