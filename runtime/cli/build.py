"""`vl3edge build`: TensorRT plans of a bundle, compiled on this machine; bundles slimmed for it. Needs no torch."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..backends.cuda import open_device
from ..backends.tensorrt_build import BuildOptions, build_engines
from ..backends.tensorrt_library import import_tensorrt
from ..bundle.bundle import read_manifest
from ..bundle.manifest import SlimTarget
from ..bundle.plans import PORTABLE, TARGETS, EngineSet, read_engine_sets
from ..bundle.profiles import DEFAULT_MEMORY_BYTES
from ..bundle.slim import slim
from ..errors import ConfigError
from .stderr import progress


def add_to(commands: Any) -> None:
    parser = commands.add_parser("build", help="compile TensorRT plans on this device", description=__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle exported with --target rtx or jetson")
    parser.add_argument(
        "--target",
        choices=(*TARGETS, "cuda", "cpu"),
        required=True,
        help="rtx: TensorRT for RTX, portable plans; jetson: the TensorRT installed here, plans for this GPU only; "
        "cuda, cpu: with --slim",
    )
    parser.add_argument(
        "--slim",
        action="store_true",
        help="compile nothing; permanently delete from the bundle what the target does not need on this device",
    )
    parser.add_argument(
        "--memory-mb",
        type=int,
        default=DEFAULT_MEMORY_BYTES >> 20,
        metavar="N",
        help="memory for the encoder's activations, which limits the patches of one call (default: %(default)s)",
    )
    parser.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="X.Y",
        help="compute capability to compile for; rtx only, may be repeated (default: 8.0 and later)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.compute_capability and options.target != "rtx":
        raise ConfigError("--compute-capability is for --target rtx; other plans run only on the GPU they are built on")
    if options.slim:
        return _slim(options.bundle, options.target)
    if options.target not in TARGETS:
        raise ConfigError(
            f"--target {options.target} needs no plans; use --slim to delete what only other targets need"
        )
    manifest = read_manifest(options.bundle, decoder=False)
    device = PORTABLE if options.target == "rtx" else open_device().name
    build = BuildOptions(
        options.target, options.memory_mb << 20, tuple(dict.fromkeys(options.compute_capability)), device
    )
    begin = time.perf_counter()

    def report(stage: str, done: int, total: int) -> None:
        progress(f"{stage}: {done}/{total} plans, {time.perf_counter() - begin:.1f} s")

    folder = build_engines(options.bundle, manifest, build, report)
    (built,) = (engines for engines in read_engine_sets(options.bundle, options.target) if engines.folder == folder)
    for name, plan in built.spec.plans.items():
        size = built.spec.files[f"{name}.plan"].bytes / 1e6
        boxes = "; ".join(
            f"{profile.name} " + ", ".join(f"{key} up to {list(sizes.max)}" for key, sizes in profile.inputs.items())
            for profile in plan.profiles
        )
        print(f"{name:<10} {size:>8.1f} MB  {boxes}")
    print(f"\nplans: {folder}")
    return 0


def _slim(folder: Path, target: SlimTarget) -> int:
    """Drops files, and says what that gave up."""

    def fits(spec: EngineSet) -> bool:
        return (spec.tensorrt, spec.device) == here

    if target == "rtx" or target == "jetson":
        library = import_tensorrt(target)
        here = (str(library.__version__), PORTABLE if target == "rtx" else open_device().name)
    report = slim(folder, target, fits)
    for name in report.dropped:
        print(f"deleted  {name}")
    total = report.dropped_bytes + report.kept_bytes
    print(
        f"\n{report.dropped_bytes / 1e6:.1f} of {total / 1e6:.1f} MB were deleted; the bundle is now for {target} only."
    )
    if report.lost:
        print(f"No longer available: {', '.join(f'--backend {name}' for name in report.lost)}.")
    if target in TARGETS:
        print("Plans for another device or version of TensorRT need a full copy of the bundle.")
    return 0
