"""What reading prompts in 8 bits, and a head in 4, cost the demo model: its held-out questions, and its outlier twin's.

    python benchmarks/prefill.py [--clips 256] [--models demo twin]

Each bundle is calibrated on synthetic scenes, as an export without `--calibration` is; KL, lost and gained are against
the float32 torch model, as in `vl3edge.models.demo.evaluate`. "Without SmoothQuant" is the same graph without the
factors of `export/calibrate/prefill.py`. The head is quantized by GPTQ like the layers. Speeds at the 2B sizes are
those of `peers.py` and `caption.py`. Writes benchmarks/results/prefill.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from machine import describe
from vision import Remembered

from vl3edge.export.calibrate.smoothquant import Smoothing
from vl3edge.export.graphs.decoder_prefill_int8 import write_prefill
from vl3edge.export.options import ExportOptions
from vl3edge.export.pipeline import export_bundle
from vl3edge.export.tensor_source import Float32Source
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.demo.evaluate import CHECKPOINT, evaluate, summarize
from vl3edge.models.demo.predictors import BundlePredictor, TorchPredictor
from vl3edge.models.demo.twin import write_outlier_twin
from vl3edge.models.tensor_names import DECODER
from vl3edge.quant.plan import QuantizationPlan
from vl3edge.runtime.bundle.bundle import MANIFEST_NAME, hash_file
from vl3edge.runtime.bundle.file_names import PREFILL_GRAPH
from vl3edge.runtime.bundle.manifest import sealed

RESULTS = Path(__file__).parent / "results" / "prefill.json"


@dataclass(frozen=True)
class Variant:
    """prefill_bits, head_bits: as of an export. smoothquant: whether outlier channels are smoothed."""

    prefill_bits: int = 16
    head_bits: int = 8
    smoothquant: bool = True


VARIANTS = {
    "as exported": Variant(),
    "prompts in 8 bits": Variant(prefill_bits=8),
    "prompts in 8 bits, without SmoothQuant": Variant(prefill_bits=8, smoothquant=False),
    "head in 4 bits": Variant(head_bits=4),
    "prompts in 8 bits, head in 4": Variant(prefill_bits=8, head_bits=4),
}


def export(checkpoint: Checkpoint, folder: Path, variant: Variant) -> None:
    """Writes a variant's bundle."""
    options = ExportOptions(plan=QuantizationPlan(head_bits=variant.head_bits), prefill_bits=variant.prefill_bits)  # type: ignore[arg-type]
    export_bundle(checkpoint, folder, options)
    if not variant.smoothquant:
        names = [name for name in checkpoint.names if name.startswith(DECODER)]
        ones = {name: np.ones(checkpoint.shape(name)[-1], np.float32) for name in names}
        write_prefill(checkpoint.config.text, Float32Source(checkpoint), Smoothing({}, ones), folder)
        data = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        for name in (PREFILL_GRAPH, f"{PREFILL_GRAPH}.data"):
            data["files"][name] = vars(hash_file(folder / name))
        (folder / MANIFEST_NAME).write_text(json.dumps(sealed(data)), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--models", nargs="+", choices=("demo", "twin"), default=["demo", "twin"])
    options = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    reference, tokenizer = Remembered(TorchPredictor(CHECKPOINT)), TorchPredictor(CHECKPOINT).tokenizer
    entries = []
    with tempfile.TemporaryDirectory() as work:
        twin = write_outlier_twin(Checkpoint.open(CHECKPOINT), Path(work) / "twin")
        for model, source in (("demo", CHECKPOINT), ("twin", twin)):
            if model not in options.models:
                continue
            for name, variant in VARIANTS.items():
                folder = Path(work) / "bundle"
                export(Checkpoint.open(source), folder, variant)
                scores = list(evaluate(BundlePredictor(folder), tokenizer, range(options.clips), reference))
                groups = {kind: asdict(line) for kind, line in summarize(scores).items() if kind.startswith("[")}
                entries.append({"model": model, "variant": name, "groups": groups})
                print(model, name, groups["[all]"], flush=True)
                shutil.rmtree(folder)
    result = {"machine": describe(), "clips": options.clips, "entries": entries}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
