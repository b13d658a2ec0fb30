"""The `vl3edge` command: options, dispatch, and one clear line for every error.

Results go to stdout, progress, warnings and errors to stderr. Exit status: 0, 1 if some inputs failed, 2 for bad usage.
Commands that need torch live in sibling packages and are found by their entry points (group `vl3edge.commands`), so
that this package imports none of them.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from typing import NoReturn

from ..errors import ConfigError, Vl3EdgeError
from ..terminal import one_line
from . import ask as cli_ask
from . import bench as cli_bench
from . import build as cli_build
from . import caption as cli_caption
from . import info as cli_info
from . import inspect as cli_inspect
from . import watch as cli_watch
from .options import progress

COMMANDS = (cli_caption, cli_ask, cli_watch, cli_inspect, cli_bench, cli_build, cli_info)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _fill_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows what it can of a caption
    warnings.showwarning = lambda message, *_, **__: print_line("warning", message)
    try:
        plugins = {entry.name: entry for entry in entry_points(group="vl3edge.commands")}
        if arguments and arguments[0] in plugins:
            return _run_plugin(plugins[arguments[0]], arguments[1:])
        options = _parser(sorted(plugins)).parse_args(arguments)
        status: int = options.run(options)
        sys.stdout.flush()
    except Vl3EdgeError as e:
        print_line("error", e)
        return 2 if isinstance(e, ConfigError) else 1
    except KeyboardInterrupt:
        print_line("error", "interrupted")
        return 130
    except BrokenPipeError:
        _give_up_stdout()  # its reader has gone, which is how `| head` ends
        return 1
    except OSError as e:
        print_line("error", f"{e.filename}: {e.strerror}" if e.filename else e)
        _give_up_stdout()
        return 1
    except MemoryError:
        print_line("error", "not enough memory: use fewer frames (--max-frames) or a smaller picture")
        return 1
    return status


def _fill_closed_streams() -> None:
    """Opens the null device in place of standard streams that the caller closed (`2>&-`).

    Else the next file to be opened would get the stream's number, and what libraries write to stderr would end up in
    it. stdout gets one that cannot be written: a result that goes nowhere is an error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            fd = os.open(os.devnull, os.O_RDONLY if name == "stdout" else os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(fd, "r" if name == "stdin" else "w"))  # noqa: SIM115


def _give_up_stdout() -> None:
    """Writes what stdout still holds; if it cannot be written, a second attempt at exit must not complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_line(kind: str, message: object) -> None:
    """One message on stderr, on one line whatever it contains."""
    progress(f"{kind}: {' '.join(str(message).split())}")


def _run_plugin(entry: object, arguments: list[str]) -> int:
    name = entry.name  # type: ignore[attr-defined]
    try:
        command = entry.load()  # type: ignore[attr-defined]
    except ImportError as e:
        print_line("error", f"`vl3edge {name}` needs more than the runtime ({e}): pip install 'vl3edge[export]'.")
        return 1
    return int(command(arguments))


class _Parser(argparse.ArgumentParser):
    """Also of the commands: their class is their parent's."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))  # it may name a file, as `vl3edge caption *` does


def _parser(plugins: list[str]) -> argparse.ArgumentParser:
    more = f"further commands: {', '.join(plugins)} (see `vl3edge NAME --help`)" if plugins else None
    parser = _Parser(prog="vl3edge", description=_DESCRIPTION, epilog=more)
    parser.add_argument("--version", action="version", version=f"vl3edge {version('vl3edge')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(commands)
    return parser


_DESCRIPTION = "Caption videos and answer questions about them with VideoLLaMA3, offline."


if __name__ == "__main__":
    sys.exit(main())
