"""`vl3edge bench`: time, rate and memory of every stage, beside the least this machine could take.

A stage is bound by its arithmetic (encoding, prefill) or by the bytes it reads (decoding): the share of the limit is
the larger of the two floors over the time taken. The floors are measured first: float32 products by numpy, and a loop
that only reads memory. Stages that compute in 8 bits may pass the float32 floor.
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..backends.select import BACKENDS, select_backend
from ..bench import Bench, BenchPlan, StageTime
from ..bundle.bundle import bundle_folder, open_bundle
from ..errors import ConfigError
from ..host import cores
from ..kernels.select import chosen_decoder
from .options import add_decoder, add_json, write_json
from .output_files import check_output
from .stderr import progress


def add_to(commands: Any) -> None:
    parser = commands.add_parser("bench", help="measure time and memory of every stage", description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="default: the small demo bundle")
    parser.add_argument("--media", type=Path, metavar="CLIP", help="also measure reading this video")
    parser.add_argument("--frames", type=int, default=BenchPlan.frames, metavar="N", help="frames encoded (default: 8)")
    parser.add_argument(
        "--size", default="640x360", metavar="WxH", help="size of the source's frames (default: 640x360)"
    )
    parser.add_argument("--context", type=int, default=BenchPlan.context, help="tokens prefilled (default: 1000)")
    parser.add_argument("--new-tokens", type=int, default=BenchPlan.new_tokens, help="tokens decoded (default: 32)")
    parser.add_argument(
        "--repeats", type=int, default=BenchPlan.repeats, help="runs, of which the median is reported (default: 3)"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="where to run (default: auto)")
    add_decoder(parser)
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: one per core)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    size = _size(options.size)
    plan = BenchPlan(options.frames, size, options.context, options.new_tokens, options.repeats)
    check_output("--json", options.json, [options.media])
    bundle = open_bundle(bundle_folder(options.bundle), quick=True)
    limit = bundle.manifest.text.max_position_embeddings
    if plan.context + plan.new_tokens > limit:
        raise ConfigError(f"--context and --new-tokens exceed the model's context of {limit} tokens")
    decoder = chosen_decoder(options.decoder, options.backend, bundle)
    backend = select_backend(options.backend, options.threads, decodes=decoder == "onnxruntime")
    progress(f"measuring {bundle.manifest.name} on {backend.name}; other work on this machine distorts the times")
    bench = Bench(bundle, backend, plan, chosen_decoder(options.decoder, backend.name, bundle, backend.device))
    bench.run(options.media)
    if str(options.json) != "-":
        print("\n".join(_table(bench)))
    write_json(options.json, _report(bench))
    return 0


def _size(text: str) -> tuple[int, int]:
    """Height and width from WxH."""
    width, _, height = text.partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise ConfigError(f"--size must be WIDTHxHEIGHT in pixels, such as 640x360, not {text!r}")
    return int(height), int(width)


def _table(bench: Bench) -> list[str]:
    lines = []
    if bench.bandwidth is not None and bench.flops is not None:
        speed = f"{bench.bandwidth / 1e9:.1f} GB/s read, {bench.flops / 1e9:.0f} GFLOP/s in float32"
        lines += [f"this machine: {cores()} cores, {speed}", ""]
    lines.append(f"{'stage':<22}{'work':>14}{'time':>11}{'rate':>21}{'lower bound':>17}{'of bound':>10}{'peak':>10}")
    lines += [_line(stage) for stage in bench.stages]
    if any((stage.share_of_limit or 0) > 1 for stage in bench.stages):
        lines += ["", "over 100%: the bound is estimated with numpy's float32 products, and 8 bits can take less"]
    return lines


def _line(stage: StageTime) -> str:
    floor = share = ""
    if stage.share_of_limit is not None:
        kind = "bytes" if (stage.bytes_s or 0) > (stage.arithmetic_s or 0) else "FLOPs"
        floor = f"{_time(stage.share_of_limit * stage.seconds)} {kind}"
        share = f"{stage.share_of_limit:.0%}"
    peak = "" if stage.peak_bytes is None else f"{stage.peak_bytes / 1e9:.2f} GB"
    work = f"{stage.count} {stage.unit}"
    rate = f"{stage.rate:,.0f} {stage.unit}/s" if stage.rate >= 100 else f"{stage.rate:.3g} {stage.unit}/s"
    return f"{stage.name:<22}{work:>14}{_time(stage.seconds):>11}{rate:>21}{floor:>17}{share:>10}{peak:>10}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _report(bench: Bench) -> dict[str, Any]:
    stages = [asdict(stage) | {"rate": stage.rate, "share_of_limit": stage.share_of_limit} for stage in bench.stages]
    return {
        "bundle": bench.bundle.manifest.name,
        "backend": bench.backend.name,
        "onnxruntime": bench.backend.version,
        "machine": f"{platform.machine()}, {cores()} cores",
        "bandwidth_bytes_per_s": bench.bandwidth,
        "float32_flops": bench.flops,
        "plan": asdict(bench.plan),
        "stages": stages,
    }
