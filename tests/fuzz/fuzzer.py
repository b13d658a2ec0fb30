"""Damaged media through everything that runs before the encoder, in worker processes with a watchdog.

    python tests/fuzz/fuzzer.py --seconds 1200 [--first 0] [--media FOLDER …] [--json FILE] [--keep FOLDER]

Input number n is made from n alone: which file, which damage (`mutations.mutate`). A coverage-guided fuzzer would see
Python's branches only, and most of what can go wrong lies in FFmpeg and Pillow, which are not instrumented; structured
damage of many formats finds more there. What is found is kept with its number.
"""

from __future__ import annotations

import argparse
import json
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HANG_S = 30.0
GROWTH_BYTES = 800 << 20
"""What one input may add to the process: a frame of the worker's 17 million pixels at 18 bytes, twice over."""


class Worker:
    """A worker process that is started when it is needed, and again after it died."""

    def __init__(self, command: Sequence[str] = (sys.executable, str(HERE / "worker.py"))) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    def examine(self, path: Path) -> dict[str, Any]:
        """What the worker says about a file; "crashed" if it died of it, "hung" if it had to be killed."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        begin = time.perf_counter()
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], HANG_S)
        line = process.stdout.readline() if ready else b""
        if line:
            result: dict[str, Any] = json.loads(line)
            if result["outcome"] != "failed" and result["grown_bytes"] > GROWTH_BYTES:
                result |= {"outcome": "failed", "detail": f"{result['grown_bytes'] >> 20} MiB: {result['detail']}"}
            return result
        if not ready:
            process.kill()
        status = process.wait()
        self._process = None
        outcome = "crashed" if ready else "hung"
        seconds = round(time.perf_counter() - begin, 3)
        return {"outcome": outcome, "detail": f"exit status {status}", "seconds": seconds, "grown_bytes": 0}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@dataclass
class Report:
    """inputs: how many were tried. outcomes: counts. findings: every input that did not end as it should."""

    inputs: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    largest_growth_bytes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    by_seed: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)

    def add(self, result: dict[str, Any], group: str, **origin: Any) -> bool:
        """Counts what a worker said of one input; True if that is a finding, which is kept with its origin and shown.

        group: what the input was made of, which counts are kept by.
        """
        self.inputs += 1
        self.outcomes[result["outcome"]] += 1
        self.by_seed.setdefault(group, Counter())[result["outcome"]] += 1
        self.slowest_s = max(self.slowest_s, result["seconds"])
        self.largest_growth_bytes = max(self.largest_growth_bytes, result["grown_bytes"])
        if result["outcome"] in ("read", "refused"):
            return False
        self.findings.append({**origin, **result})
        print(self.findings[-1], file=sys.stderr, flush=True)
        return True

    def conclude(self, first: int, groups: str, path: Path | None, **more: Any) -> int:
        """Adds this run, whose first input was number `first`, to a file of runs; the exit status.

        groups: what the counts by group are called there. more: further facts of the run.
        """
        sys.path.insert(0, str(ROOT / "benchmarks"))
        from machine import describe

        run = {
            "machine": describe(),
            "inputs": self.inputs,
            "first": first,
            "seconds": round(self.seconds, 1),
            "outcomes": dict(self.outcomes),
            "slowest_s": self.slowest_s,
            **more,
            groups: {name: dict(counts) for name, counts in sorted(self.by_seed.items())},
            "findings": self.findings,
        }
        add_to_report(run, path)
        return 1 if self.findings else 0


def fuzz(
    seeds: Sequence[Path],
    numbers: Sequence[int],
    seconds: float,
    mutate: Callable[[bytes, int], tuple[bytes, list[str]]],
    keep: Path | None = None,
) -> Report:
    """Tries the inputs with these numbers until the time is up."""
    report, worker, begin = Report(), Worker(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            report.seconds = time.perf_counter() - begin
            if report.seconds > seconds:
                break
            seed = seeds[number % len(seeds)]
            data, names = mutate(seed.read_bytes(), number)
            path = Path(folder) / f"input{seed.suffix}"
            path.write_bytes(data)
            found = report.add(worker.examine(path), seed.name, number=number, seed=seed.name, mutations=names)
            if found and keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{number}-{seed.name}").write_bytes(data)
    worker.close()
    return report


def add_to_report(run: dict[str, Any], path: Path | None) -> None:
    """Adds a run to the file of runs and their totals; without a file prints it."""
    runs = [*(json.loads(path.read_text(encoding="utf-8"))["runs"] if path and path.exists() else []), run]
    totals = {"inputs": sum(item["inputs"] for item in runs)}
    for outcome in ("read", "refused", "failed", "crashed", "hung"):
        totals[outcome] = sum(item["outcomes"].get(outcome, 0) for item in runs)
    text = json.dumps({"totals": totals, "runs": runs}, indent=1)
    if path is None:
        print(text)
    else:
        path.write_text(text + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--media", type=Path, nargs="*", default=[], help="more files to damage: folders of them")
    parser.add_argument("--json", type=Path, help="add the report to this file")
    parser.add_argument("--keep", type=Path, help="folder for the inputs found")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "runtime"))
    from mutations import mutate
    from seeds import write_seeds

    with tempfile.TemporaryDirectory() as folder:
        seeds = write_seeds(Path(folder))
        for more in options.media:
            seeds += sorted(path for path in more.iterdir() if path.suffix in (".mp4", ".mov", ".jpg"))
        report = fuzz(seeds, range(options.first, 1 << 40), options.seconds, mutate, options.keep)
    growth_mb = round(report.largest_growth_bytes / 1e6, 1)
    return report.conclude(options.first, "by_file", options.json, largest_growth_mb=growth_mb)


if __name__ == "__main__":
    sys.exit(main())
