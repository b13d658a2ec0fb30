"""What every lossy step costs, told by the fine model: pruning at random, DiffFP, fewer bits, and all of them together.

    python benchmarks/fine.py [--clips 160] [--only WAY …] [--work FOLDER] [--json benchmarks/results/fine.json]

The checkpoint in float32 is the reference. Bundles are exported from it, as `vl3edge export` does it with the options
named (GPTQ calibrated on synthetic scenes), and answer with the runtime; "float16" runs the graphs for GPUs in ONNX
Runtime's float16 kernels for CPUs. All answer the same questions about the same held-out clips; `points` is the paired
difference (models/demo/fine/evaluate.py). FOLDER keeps the bundles and the answers: the same command goes on after an
interruption.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import describe
from tokenizers import Tokenizer

from vl3edge.export.cli import main as export
from vl3edge.export.parity import load_session
from vl3edge.models.demo.evaluate import Score
from vl3edge.models.demo.fine.evaluate import CHECKPOINT, answer, print_lines, summarize
from vl3edge.models.demo.fine.ways import make_way
from vl3edge.models.demo.predictors import BundlePredictor, Predictor
from vl3edge.runtime import VideoLlama3
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.bundle.bundle import open_bundle
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import load_decoder_graph

PRUNED = {"random half": "random", "DiffFP 0.1": "0.1"}
FLOAT16 = "float16"
_WHOLE = "--quant none"
_PLAIN = "--head-bits 8 --vision-bits 16 --prefill-bits 16"  # what a way that quantizes does not say
EXPORTS: dict[str, str] = {
    "not quantized": _WHOLE,
    FLOAT16: f"{_WHOLE} --precision fp16 --target cuda --no-kernels",
    "8 bits": "--bits 8",
    "auto, 4.5 bits": "--bits auto",
    "4 bits": "",
    "4 bits, groups of 32": "--group-size 32",
    "4 bits, asymmetric": "--asymmetric",
    "4 bits, rounded": "--quant rtn",
    "3 bits": "--bits 3",
    "3 bits, groups of 32, asymmetric": "--bits 3 --group-size 32 --asymmetric",
    "4 bits, head 4": "--head-bits 4",
    "4 bits, encoder 8": "--vision-bits 8",
    "4 bits, prompts 8": "--prefill-bits 8",
    "4 bits, head 4, encoder 8": "--head-bits 4 --vision-bits 8",
    "4 bits, head 4, encoder and prompts 8": "--head-bits 4 --vision-bits 8 --prefill-bits 8",
}
_FIRST = 2000  # held-out clips below are asked elsewhere
_AT_ONCE = 8  # clips, between which the answers are kept
Rows = list[tuple[int, list[Score]]]


class Float16Backend(Backend):
    """Runs the graphs for GPUs on the CPU, wherever a graph has such a form."""

    def session(self, path: Path, captures: bool = False) -> Any:
        half = path.with_name(f"{path.stem}-fp16.onnx")
        return load_session(half if half.exists() else path, prepack=True)


def float16_way(bundle: Path) -> Predictor:
    """A bundle for GPUs, computed in float16."""
    way, opened = BundlePredictor(bundle, None), open_bundle(bundle)
    backend = Float16Backend("cpu", ("CPUExecutionProvider",), "", 1)
    way.model = VideoLlama3(opened, backend)
    way._decoder = Decoder(load_decoder_graph(backend, opened), opened.manifest.text)
    return way


def prepared(name: str, checkpoint: Path, work: Path) -> Predictor:
    """A way by its name; its bundle is exported to `work` unless it is there."""
    if name in PRUNED:
        return make_way(f"torch:{PRUNED[name]}", checkpoint)
    bundle, words = work / name.replace(" ", "-"), EXPORTS[name]
    words = words if words.startswith(_WHOLE) else f"{_PLAIN} {words}"
    if not bundle.exists() and export([str(checkpoint), "-o", str(bundle), *words.split()]):
        raise SystemExit(f"the export of {name} failed")
    return float16_way(bundle) if name == FLOAT16 else make_way(str(bundle), checkpoint)


def answered(ways: dict[str, Predictor], tokenizer: Tokenizer, clips: int, kept: Path) -> Rows:
    """The scores of all clips; those in the file `kept` are taken from it, and new ones added."""
    rows: Rows = []
    done = 0
    if kept.exists():
        names, done, rows = pickle.loads(kept.read_bytes())  # written by this script alone
        if names != [*ways]:
            done, rows = 0, []
    while done < clips:
        count = min(_AT_ONCE, clips - done)
        rows += answer([*ways.values()], tokenizer, range(_FIRST + done, _FIRST + done + count))
        done += count
        kept.write_bytes(pickle.dumps(([*ways], done, rows)))
        print(f"{done} of {clips} clips", flush=True)
    return [row for row in rows if row[0] < _FIRST + clips]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--only", nargs="+", choices=[*PRUNED, *EXPORTS], help="default: all")
    parser.add_argument("--work", type=Path, help="default: a temporary folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    checkpoint = options.checkpoint
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        ways = {"float32": make_way("torch", checkpoint)}
        ways |= {name: prepared(name, checkpoint, work) for name in options.only or [*PRUNED, *EXPORTS]}
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        rows = answered(ways, tokenizer, options.clips, work / "answers.pickle")
    report = dict(zip(ways, summarize(rows), strict=True))
    for way, lines in report.items():
        print_lines(way, lines)
    if options.json:
        lines = {way: {kind: asdict(line) for kind, line in kinds.items()} for way, kinds in report.items()}
        result = {"machine": describe(), "clips": options.clips, "first": _FIRST, "ways": lines}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
