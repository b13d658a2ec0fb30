"""`vl3edge tune`: finds out which of the decoder's kernels are fastest on this GPU, in about a minute.

A bundle holds each kernel in a few sizes of tiles. All of them are timed here, and what was fastest is kept beside the
bundle's kernels, for this GPU, its driver and these kernels; decoders use it from the next load on. Without it a fixed
table serves.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..backends.cuda import open_device
from ..backends.onnxruntime import Backend
from ..bundle.bundle import open_bundle
from ..bundle.kernel_set import FOLDER, KernelSet
from ..bundle.tuning import Tuning, write_tuning
from ..errors import OutputError
from ..kernels.launcher import open_launcher
from ..kernels.tune import Tuner
from .options import add_json, write_json
from .output_files import check_output
from .stderr import progress


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "tune", help="choose the fastest of a bundle's kernels on this GPU", description=__doc__
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle exported with --target cuda, rtx or jetson")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    check_output("--json", options.json)
    bundle = open_bundle(options.bundle, quick=True)
    kernels, launcher = open_launcher(Backend("cuda", (), "", device=open_device()), bundle)
    if not os.access(bundle.folder / FOLDER, os.W_OK):  # told before the minute of measuring
        raise OutputError(f"{bundle.folder / FOLDER} cannot be written, and the choice is kept there: copy the bundle")
    progress(f"tuning {launcher.description}; other work on this machine distorts the times")
    tuner = Tuner(kernels, launcher)

    def report(done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            progress(f"{done} of {total} choices")

    tuning = tuner.tune(report)
    path = write_tuning(bundle.folder, tuning)
    if str(options.json) != "-":
        print("\n".join(_table(kernels, tuning)))
        print(f"\nkept in {path}")
    write_json(options.json, {**asdict(tuning), "file": str(path)})
    return 0


def _table(kernels: KernelSet, tuning: Tuning) -> list[str]:
    """A line for each choice: what is computed, for how many tokens, what was chosen and what it gains."""
    specs = {spec.name: spec for spec in kernels.manifest.kernels}
    lines = [f"{'kernel':<30}{'tokens up to':>13}{'variants':>10}{'µs':>10}{'untuned':>10}  tile"]
    for choice in tuning.choices:
        spec = specs[choice.kernel]
        sizes = ", ".join(f"{name} {value}" for name, value in spec.tile.items())
        name = f"{spec.function} {spec.constants.get('K', '')}".strip()
        times = f"{choice.microseconds:>10.1f}{choice.default_microseconds:>10.1f}"
        lines.append(f"{name:<30}{choice.up_to:>13}{choice.variants:>10}{times}  {sizes}")
    return lines
