"""`vl3edge export`: one command from a checkpoint to a bundle."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.errors import CheckpointError
from vl3edge.runtime.cli_info import contents_table

from .errors import ExportError
from .pipeline import TARGETS, ExportOptions, export_bundle


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options = _parser().parse_args(argv)
    for category in (DeprecationWarning, FutureWarning):  # of the libraries, for their developers
        warnings.simplefilter("ignore", category)
    warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
    try:
        checkpoint = Checkpoint.open(options.checkpoint, options.revision)
        report = export_bundle(
            checkpoint,
            options.output,
            ExportOptions(
                targets=tuple(dict.fromkeys(options.target or ["cpu"])),
                quantization=options.quant,
                precision=options.precision,
                force=options.force,
            ),
            _Progress(),
        )
    except (ExportError, CheckpointError) as e:
        _say(f"error: {e}")
        return 1
    except MemoryError:
        _say("error: not enough memory for this export; close other programs, or use a machine with more.")
        return 1
    except KeyboardInterrupt:
        _say("error: interrupted; nothing was written.")
        return 130
    except OSError as e:
        _say(f"error: {e.filename or options.output}: {e.strerror or e}; nothing was written.")
        return 1
    print(contents_table(report.files, report.measured))
    print(f"\nbundle: {report.folder}")
    return 0


class _Progress:
    """A line on stderr for each stage, rewritten as it advances on a terminal."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if done < total and not sys.stderr.isatty():
            return
        end = "\n" if done == total else "\r"
        seconds = time.perf_counter() - self._begin
        print(f"vl3edge: {stage} {done}/{total}, {seconds:.1f} s", end=end, file=sys.stderr, flush=True)


def _say(message: str) -> None:
    print(f"vl3edge: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vl3edge export", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="local folder, or a hub id such as owner/name")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to write")
    parser.add_argument("--revision", help="hub revision (default: the newest; the commit is recorded)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be repeated (default: cpu)")
    parser.add_argument("--quant", choices=("none",), default="none", help="decoder quantization (default: none)")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32", help="of stored weights that are not quantized"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    return parser
