"""Peers that take turns, each in a process of its own, so that memory and threads of one are not another's."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

Figures = dict[str, Any]


def run_alone(script: str, name: str) -> Figures:
    """The figures of one peer: this command line again with `--worker NAME`, whose last line on stdout is JSON."""
    command = [sys.executable, script, *sys.argv[1:], "--worker", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    print(name, {key: round(value, 2) for key, value in figures.items()}, file=sys.stderr, flush=True)
    return figures


def medians(rounds: list[dict[str, Figures]]) -> dict[str, Figures]:
    """Of every figure of every peer, over the rounds."""
    first = rounds[0]
    return {name: {key: statistics.median(one[name][key] for one in rounds) for key in first[name]} for name in first}
