"""What every command says on stderr, a line at a time, and the exit status that its end has."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable

from ..errors import ConfigError, Vl3EdgeError
from ..media.addresses import without_secrets
from ..terminal import one_line


def progress(message: str) -> None:
    """One line on stderr, without the secrets of addresses.

    If that cannot be written (a full disk, a reader that has gone), no clip is lost for it.
    """
    with contextlib.suppress(OSError):
        print(f"vl3edge: {without_secrets(one_line(message))}", file=sys.stderr, flush=True)


def print_line(kind: str, message: object) -> None:
    """One message on stderr, on one line whatever it contains."""
    progress(f"{kind}: {' '.join(str(message).split())}")


def exit_status(
    command: Callable[[], int | None],
    no_memory: str = "close other programs, or use a machine with more",
    interrupted: str = "interrupted",
) -> int:
    """Runs a command: its own status, or one line for what went wrong and 1; 2 for bad usage, 130 for an interruption.

    no_memory: what helps when memory is short. interrupted: what to say of an interruption.
    """
    warnings.showwarning = lambda message, *_, **__: print_line("warning", message)
    try:
        status = command() or 0
        sys.stdout.flush()
    except Vl3EdgeError as e:
        print_line("error", e)
        return 2 if isinstance(e, ConfigError) else 1
    except KeyboardInterrupt:
        print_line("error", interrupted)
        return 130
    except BrokenPipeError:
        _give_up_stdout()  # its reader has gone, which is how `| head` ends
        return 1
    except OSError as e:
        print_line("error", f"{e.filename}: {e.strerror}" if e.filename else e)
        _give_up_stdout()
        return 1
    except MemoryError:
        print_line("error", f"not enough memory: {no_memory}")
        return 1
    return status


def _give_up_stdout() -> None:
    """Writes what stdout still holds; if it cannot be written, a second attempt at exit must not complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
