"""All figures of one GPU in one call of under six minutes: vl3edge, transformers and ONNX Runtime GenAI.

    python benchmarks/gpu.py BUNDLE CLIP [--backend cuda] [--decoder auto] [--sizes released] [--genai MODEL]
                                         [--seconds 340] [--repeat 5] [--json FILE]

Parity with the CPU, encoder, prompts, steps, the first and the tenth caption of a folder, memory; transformers with
sdpa, and over a static cache in CUDA graphs; GenAI with a model that its own builder made (`-e cuda --extra_options
enable_cuda_graph=1`, of a checkpoint as `benchmarks/peers.py` makes it). Each step has a process of its own and a limit
of time; what it knew when it was stopped counts. No weights are wanted but the bundle's: transformers' are random.
Writes benchmarks/results/gpu_<device>.json (`benchmarks/readme.py` shows all of them), or FILE; on a CPU only FILE.
`--backend cpu --sizes tiny` tries all of it out. Exit status 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_work as work
from backends import gpu_name
from machine import describe

RESULTS = Path(__file__).parent / "results"
OURS = "vl3edge"
Step = Callable[[argparse.Namespace, work.Sizes], Iterator[work.Figure]]
STEPS: dict[str, tuple[str, Step, int]] = {  # whose figures they are, what gives them, seconds at most
    "encoder": (OURS, work.encoder, 45),
    "prefill": (OURS, work.prefill, 45),
    "decode": (OURS, work.decode, 60),
    "memory": (OURS, work.memory, 45),
    "captions": (OURS, work.captions, 60),
    "parity": (OURS, work.parity, 90),
    "genai": ("ONNX Runtime GenAI", work.genai, 60),
    "transformers": ("transformers, float16", work.transformers_eager, 90),
    "static": ("transformers, float16, static cache", work.transformers_static, 90),
}


def alone(step: str, limit: float) -> tuple[dict[str, Any], str | None]:
    """The figures of a step in a process of its own, and why there are no more of them."""
    if limit <= 0:
        return {}, "no time was left"
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", step]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit, check=False)
        output, reason = done.stdout, None if done.returncode == 0 else f"exit status {done.returncode}"
    except subprocess.TimeoutExpired as e:
        output, reason = (e.stdout or b"").decode(), f"stopped after {limit:.0f} s"
    figures: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("figure "):
            figures.update([json.loads(line.removeprefix("figure "))])
        elif line.startswith("error "):
            reason = line.removeprefix("error ")
    return figures, reason


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure by its name, of whom: value; and what failed."""
    figures: dict[str, Any] = {}
    failed: dict[str, str] = {}
    end = time.monotonic() + options.seconds
    for step in options.steps:
        whose, _, limit = STEPS[step]
        if step == "genai" and options.genai is None:
            continue
        found, reason = alone(step, min(limit, end - time.monotonic()))
        for name, value in found.items():
            figures.setdefault(name, {})[whose] = round(value, 7) if isinstance(value, float) else value
        if reason is not None:
            failed[step] = reason
        print(f"{step}: {found or ''} {reason or ''}", file=sys.stderr, flush=True)
    return {"figures": figures, "failed": failed}


def show(result: dict[str, Any]) -> None:
    """The short table."""
    for name, values in result["figures"].items():
        print(f"{name:44}", "   ".join(f"{whose} {_short(value)}" for whose, value in values.items()))
    for step, reason in result["failed"].items():
        print(f"FAILED {step}: {reason}")


def _short(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float) and value < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--decoder", default="auto")
    parser.add_argument("--sizes", choices=work.SIZES, default="released")
    parser.add_argument("--genai", type=Path)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seconds", type=float, default=340)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        try:
            for figure in STEPS[options.worker][1](options, work.SIZES[options.sizes]):
                print("figure", json.dumps(figure), flush=True)
        except Exception as e:
            print(f"error {type(e).__name__}: {' '.join(str(e).split())}", flush=True)
            return 1
        return 0
    name = None if options.backend == "cpu" else gpu_name()
    result = {"machine": describe(), "device": name, "bundle": options.bundle.name, "sizes": options.sizes}
    result |= measure(options)
    slug = re.sub(r"[^a-z0-9]+", "_", (name or "").lower().removeprefix("nvidia ")).strip("_")
    path = options.json or (RESULTS / f"gpu_{slug}.json" if slug else None)
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)
    return int(bool(result["failed"]))


if __name__ == "__main__":
    sys.exit(main())
