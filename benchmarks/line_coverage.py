"""Which lines of runtime/ the tests ran, file by file, from the report that coverage.py wrote.

    make coverage                                     # which ends with
    python benchmarks/line_coverage.py REPORT [--commit COMMIT] [--note NOTE]

Writes benchmarks/results/coverage.json. Every file counts, also those that need a GPU or a library that was not there:
they are named under "needs_a_device", and the total is told with and without them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from machine import describe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "coverage.json"
NEEDS_A_DEVICE = {
    "runtime/backends/cuda.py": "CUDA's runtime and a GPU",
    "runtime/backends/tensorrt_library.py": "TensorRT, and for its allocator a GPU",
}


def summary(report: dict[str, Any], commit: str) -> dict[str, Any]:
    """Lines and shares, in all and by file; the lines not run are named."""
    files = {
        f"runtime/{path.rpartition('runtime/')[2]}": {
            "lines": entry["summary"]["num_statements"],
            "run": entry["summary"]["covered_lines"],
            "not_run": _ranges(entry["missing_lines"]),
        }
        for path, entry in sorted(report["files"].items())
    }
    hosted = [entry for name, entry in files.items() if name not in NEEDS_A_DEVICE]
    return {
        "machine": describe(),
        "coverage": report["meta"]["version"],
        "commit": commit,
        "lines": sum(entry["lines"] for entry in files.values()),
        "run": sum(entry["run"] for entry in files.values()),
        "share": _share(list(files.values())),
        "share_without_those_that_need_a_device": _share(hosted),
        "needs_a_device": NEEDS_A_DEVICE,
        "files": files,
    }


def _share(entries: list[dict[str, Any]]) -> float:
    return round(sum(entry["run"] for entry in entries) / sum(entry["lines"] for entry in entries), 4)


def _ranges(lines: list[int]) -> str:
    """Line numbers as people read them: 3-5, 9."""
    parts: list[list[int]] = []
    for line in lines:
        if parts and line == parts[-1][1] + 1:
            parts[-1][1] = line
        else:
            parts.append([line, line])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="of `coverage json`")
    parser.add_argument("--note", help="what else the reader should know, such as which tests were run")
    parser.add_argument("--commit", help="that was measured (default: the one checked out)")
    options = parser.parse_args()
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = options.commit or subprocess.check_output(head, cwd=ROOT, text=True).strip()
    result = summary(json.loads(options.report.read_text(encoding="utf-8")), commit)
    if options.note:
        result["note"] = options.note
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['run']:,} of {result['lines']:,} lines of runtime/: {result['share']:.1%}")


if __name__ == "__main__":
    main()
