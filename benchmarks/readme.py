"""Writes the tables of the README and of docs/ from benchmarks/results/, between marker comments.

    python benchmarks/readme.py [--check]

`--check` only compares. Every figure in a table comes through `tables/`, so none can outlive the run that made it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from tables.accuracy import demo_table, encoder_table, prefill_table, pruning_table, quantization_table
from tables.fine import fine_kinds_table, fine_pruning_table, fine_table, presets_table
from tables.gpu import gpu_headline, gpu_memory_table, gpu_table
from tables.kernels import kernel_launches, kernel_limits, kernel_registers
from tables.reliability import reliability_table
from tables.speed import headline_table, memory_table, real_size_table, speed_table

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SECTIONS: dict[str, Callable[[], str]] = {
    "headline": headline_table,
    "gpu": gpu_table,
    "gpu-headline": gpu_headline,
    "gpu-memory": gpu_memory_table,
    "demo": demo_table,
    "real-size": real_size_table,
    "memory": memory_table,
    "quantization": quantization_table,
    "pruning": pruning_table,
    "speed": speed_table,
    "encoder": encoder_table,
    "prefill": prefill_table,
    "reliability": reliability_table,
    "presets": presets_table,
    "fine": fine_table,
    "fine-kinds": fine_kinds_table,
    "fine-pruning": fine_pruning_table,
    "kernel-step": lambda: kernel_launches("step"),
    "kernel-prompt": lambda: kernel_launches("prompt"),
    "kernel-limits": kernel_limits,
    "kernel-registers": kernel_registers,
}


def filled(text: str) -> str:
    """A page's text with every section made anew; KeyError for a marker that no section has."""

    def section(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{SECTIONS[match[1]]()}\n<!-- end {match[1]} -->"

    return re.sub(r"<!-- (?!end )([\w-]+) -->\n.*?<!-- end \1 -->", section, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a page differs from the results")
    options = parser.parse_args()
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    stale = [page for page, text in texts.items() if filled(text) != text]
    if options.check:
        print("\n".join(f"{page.relative_to(ROOT)} differs from the results" for page in stale), file=sys.stderr)
        return int(bool(stale))
    for page in stale:
        page.write_text(filled(texts[page]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
