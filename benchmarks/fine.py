"""What every lossy step costs, told by the fine model: pruning at random, DiffFP, fewer bits, and all of them together.

    python benchmarks/fine.py [--clips 256] [--checkpoint DIR] [--only WAY …] [--json benchmarks/results/fine.json]

The checkpoint in float32 is the reference. Bundles are exported from it, as `vl3edge export` does it with the options
named (GPTQ calibrated on synthetic scenes, groups of 32 for want of width), and answer with the runtime. All answer the
same questions about the same held-out clips; `points` is the paired difference (models/demo/fine/evaluate.py).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from machine import describe
from tokenizers import Tokenizer

from vl3edge.export.cli import main as export
from vl3edge.models.demo.fine.evaluate import CHECKPOINT, answer, print_lines, summarize
from vl3edge.models.demo.fine.ways import make_way

PRUNED = {"random half": "random", "DiffFP 0.1": "0.1"}
EXPORTS: dict[str, str] = {
    "not quantized": "--quant none",
    "4 bits, head 8": "",
    "4 bits, head 4": "--head-bits 4",
    "4 bits, rounded": "--quant rtn",
    "3 bits": "--bits 3",
    "8 bits": "--bits 8",
    "prompts in 8 bits": "--prefill-bits 8",
    "encoder in 8 bits": "--vision-bits 8",
    "encoder and prompts in 8 bits, head 4": "--prefill-bits 8 --vision-bits 8 --head-bits 4",
}
_FIRST = 2000  # held-out clips below are asked elsewhere


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--only", nargs="+", choices=[*PRUNED, *EXPORTS], help="default: all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = options.only or [*PRUNED, *EXPORTS]
    checkpoint = options.checkpoint
    with tempfile.TemporaryDirectory() as folder:
        ways = {"float32": make_way("torch", checkpoint)}
        for name in names:
            if name in PRUNED:
                ways[name] = make_way(f"torch:{PRUNED[name]}", checkpoint)
                continue
            bundle = Path(folder) / name.replace(" ", "-")
            export([str(checkpoint), "-o", str(bundle), "--group-size", "32", *EXPORTS[name].split()])
            ways[name] = make_way(str(bundle), checkpoint)
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        numbers = range(_FIRST, _FIRST + options.clips)
        report = dict(zip(ways, summarize(answer([*ways.values()], tokenizer, numbers)), strict=True))
    for way, lines in report.items():
        print_lines(way, lines)
    if options.json:
        lines = {way: {kind: asdict(line) for kind, line in kinds.items()} for way, kinds in report.items()}
        result = {"machine": describe(), "clips": options.clips, "first": _FIRST, "ways": lines}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
