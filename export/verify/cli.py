"""`vl3edge verify`: does a bundle compute what its checkpoint says, and if not, which stage is the first to differ."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vl3edge.runtime.backends.select import BACKENDS
from vl3edge.runtime.cli.stderr import exit_status
from vl3edge.runtime.terminal import one_line

from ..cli import quiet_libraries
from ..lora_option import add_lora, open_checkpoint
from ..progress import ProgressLines
from .verify import VerifyOptions, verify_bundle


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0 if every stage passes, 1 if one does not, 2 for bad usage."""
    options = _parser().parse_args(argv)
    quiet_libraries()
    return exit_status(lambda: _verify(options), "use fewer or smaller clips (--media, --frames)")


def _verify(options: argparse.Namespace) -> int:
    wanted = VerifyOptions(tuple(options.media), options.frames, options.tokens, options.backend, options.threads)
    checkpoint = open_checkpoint(options)
    report = verify_bundle(options.bundle, checkpoint, wanted, ProgressLines())
    if options.json is not None:
        text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    print("\n".join(one_line(line) for line in report.table().splitlines()))
    return 0 if report.first_failure is None else 1


def _at_least_one(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vl3edge verify", description=__doc__)
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument(
        "--checkpoint", metavar="CKPT", required=True, help="local folder or hub id that the bundle was exported from"
    )
    parser.add_argument("--revision", help="hub revision (default: the newest)")
    add_lora(parser)
    parser.add_argument(
        "--media", nargs="+", default=[], metavar="CLIP", help="videos and images (default: a synthetic one of each)"
    )
    parser.add_argument(
        "--frames", type=_at_least_one, default=4, metavar="N", help="frames of each video, at most (default: 4)"
    )
    parser.add_argument(
        "--tokens", type=_at_least_one, default=16, metavar="N", help="tokens of each answer, at most (default: 16)"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="cpu", help="where the bundle runs (default: cpu)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: one per core)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report as JSON")
    return parser
