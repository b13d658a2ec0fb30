"""Writes the README's tables from benchmarks/results/, between marker comments; `--check` only compares.

    python benchmarks/readme.py [--check]

Every figure of the README comes through here, so none can outlive the run that made it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def demo_table() -> str:
    """Exact match of the demo model on held-out clips: the float32 reference and the bundle that ships."""
    reference, bundle = load("demo_float32"), load("demo_bundle")
    rows = []
    for name, line in reference.items():
        if not name.startswith("["):
            continue
        other = bundle[name]
        rows.append(
            [
                name.strip("[]"),
                f"{line['exact']:.1%} of {line['count']}",
                f"{other['exact']:.1%} of {other['count']}",
                f"{other['kl']:.1e}",
                f"{other['lost']} / {other['gained']}",
            ]
        )
    return table(["kind of question", "fp32, torch", "shipped bundle, int4", "KL", "lost / gained"], rows)


def machine_line(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    note = f" Note: {result['note']}." if "note" in result else ""
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; {versions}.{note}"


def real_size_table() -> str:
    """Time and peak memory of every step at the released sizes."""
    result = load("real_size")
    rows = [
        [
            step["step"],
            f"{step['seconds']:.0f} s",
            f"{step['peak_gb']:.1f} GB",
            f"{step.get('bundle_gb', '')}",
            f"{step.get('decoder_gb', '')}",
        ]
        for step in result["steps"]
    ]
    return (
        table(["step", "time", "peak memory", "bundle, GB", "of it decoder and embeddings, GB"], rows)
        + f"\n\n{machine_line(result)}"
    )


def quantization_table() -> str:
    """KL and flips for every method and grid, on the demo model and its outlier twin."""
    rows = []
    for row in load("quantization")["rows"]:
        flips = (row["lost"] + row["gained"]) / row["questions"]
        rows.append(
            [
                row["model"],
                f"{row['bits']}" if row["bits"] else "",
                f"{row['group_size']}" if row["bits"] else "",
                row["method"],
                f"{row['kl']:.1e}",
                f"{row['nll']:.4f}",
                f"{row['exact']:.2%}",
                f"{flips:.2%}",
            ]
        )
    return table(["model", "bits", "group", "method", "KL", "NLL", "exact", "answers flipped"], rows)


SECTIONS: dict[str, Callable[[], str]] = {
    "demo": demo_table,
    "real-size": real_size_table,
    "quantization": quantization_table,
}


def filled(text: str) -> str:
    """The README's text with every section made anew; KeyError for a marker that no section has."""

    def section(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{SECTIONS[match[1]]()}\n<!-- end {match[1]} -->"

    return re.sub(r"<!-- (?!end )([\w-]+) -->\n.*?<!-- end \1 -->", section, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the README differs from the results")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    new = filled(text)
    if options.check:
        return int(new != text)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
