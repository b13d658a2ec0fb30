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
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from typing import NoReturn

from ..terminal import one_line
from . import ask as cli_ask
from . import bench as cli_bench
from . import build as cli_build
from . import caption as cli_caption
from . import compare as cli_compare
from . import embed as cli_embed
from . import evaluate as cli_evaluate
from . import info as cli_info
from . import inspect as cli_inspect
from . import serve as cli_serve
from . import tune as cli_tune
from . import watch as cli_watch
from .stderr import exit_status, print_line

COMMANDS = (
    cli_caption,
    cli_ask,
    cli_watch,
    cli_serve,
    cli_embed,
    cli_inspect,
    cli_evaluate,
    cli_compare,
    cli_bench,
    cli_build,
    cli_tune,
    cli_info,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _fill_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows what it can of a caption
    return exit_status(lambda: _run(arguments), "use fewer frames (--max-frames) or a smaller picture")


def _run(arguments: list[str]) -> int:
    plugins = {entry.name: entry for entry in entry_points(group="vl3edge.commands")}
    if arguments and arguments[0] in plugins:
        return _run_plugin(plugins[arguments[0]], arguments[1:])
    options = _parser(sorted(plugins)).parse_args(arguments)
    status: int = options.run(options)
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
