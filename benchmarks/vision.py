"""What the 8-bit vision encoder gains and costs.

    python benchmarks/vision.py products                                   ways to compute one product
    python benchmarks/vision.py speed --checkpoint 2B --work FOLDER        the whole encoder, float against 8 bits
    python benchmarks/vision.py demo [--clips 256]                         the demo model's held-out questions

Each writes its part of benchmarks/results/vision_int8.json. "speed" exports both encoders into the work folder (they
stay there) and runs them in turn on eight frames of 476 × 280 pixels; weights may be random. "demo" asks the bundles of
the demo model, and of its twin whose encoder has outlier channels, with one and the same float32 decoder; KL, lost and
gained are against the float32 torch model, as in `vl3edge.models.demo.evaluate`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from vision_products import measure

from vl3edge.export.calibrate.smoothquant import Smoothing
from vl3edge.export.calibrate.vision import calibrate_vision, calibration_clips, relative_error
from vl3edge.export.graphs.vision import export_vision
from vl3edge.export.manifest import make_manifest
from vl3edge.export.options import ExportOptions
from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.demo.evaluate import CHECKPOINT, evaluate, summarize
from vl3edge.models.demo.predictors import BundlePredictor, Prediction, TorchPredictor
from vl3edge.models.demo.questions import Question
from vl3edge.models.demo.twin import write_outlier_twin
from vl3edge.runtime import VideoLlama3
from vl3edge.runtime.backends.onnxruntime import Backend, Engine, OrtEngine
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.backends.tensorrt_vision import PatchEncoder
from vl3edge.runtime.bundle.bundle import Bundle, open_bundle
from vl3edge.runtime.bundle.plans import tensorrt_graph
from vl3edge.runtime.bundle.profiles import vision_profiles

RESULTS = Path(__file__).parent / "results" / "vision_int8.json"
_FRAMES, _HEIGHT, _WIDTH = 8, 476, 280


def speed(checkpoint: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Median seconds of both encoders in turn, and what they weigh."""
    source = Checkpoint.open(checkpoint)
    exported = {"float": work / "float", "8 bits": work / "int8"}
    if not exported["8 bits"].exists():
        _export(source, exported)
    sessions = {name: select_backend("cpu").session(folder / "vision.onnx") for name, folder in exported.items()}
    shape = (_FRAMES, _HEIGHT, _WIDTH, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    features = {}
    for _ in range(rounds + 1):
        for name, session in sessions.items():
            begin = time.perf_counter()
            (features[name],) = session.run(None, {"frames": frames})
            seconds[name].append(time.perf_counter() - begin)
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    error = np.linalg.norm(features["8 bits"] - features["float"]) / np.linalg.norm(features["float"])
    return {
        "layers": source.config.vision.num_layers,
        "frames": list(shape[:3]),
        "seconds": {name: round(value, 2) for name, value in median.items()},
        "seconds_per_frame": {name: round(value / _FRAMES, 3) for name, value in median.items()},
        "speedup": round(median["float"] / median["8 bits"], 2),
        "vision_mb": {
            name: round(sum(file.stat().st_size for file in folder.iterdir()) / 1e6, 1)
            for name, folder in exported.items()
        },
        "relative_difference": float(f"{error:.2e}"),
        "export": json.loads((work / "export.json").read_text(encoding="utf-8")),
    }


def _export(source: Checkpoint, exported: dict[str, Path]) -> None:
    """Both encoders in float16 beside the 8 bits, as bundles with a quantized decoder have them."""
    begin = time.perf_counter()
    clips = calibration_clips(make_manifest(source.config, ExportOptions(), None))
    calibration = calibrate_vision(source, clips)
    calibrated = time.perf_counter() - begin
    for name, folder in exported.items():
        folder.mkdir(parents=True)
        export_vision(source, folder, "fp16", calibration=calibration if name == "8 bits" else None)
    report = {
        "calibration_seconds": round(calibrated, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "held_out_relative_error": relative_error(exported["8 bits"] / "vision.onnx", calibration.held_out),
    }
    (exported["8 bits"].parent / "export.json").write_text(json.dumps(report), encoding="utf-8")


class Remembered:
    """A predictor that answers each question about each file name once."""

    def __init__(self, predictor: TorchPredictor) -> None:
        self._predictor = predictor
        self._known: dict[str, list[Prediction]] = {}

    def predict(self, media: Path, questions: list[Question]) -> list[Prediction]:
        if media.name not in self._known:
            self._known[media.name] = self._predictor.predict(media, questions)
        return self._known[media.name]


class _TensorRtGraph(Backend):
    """The encoder's graph for TensorRT, with scales per tensor, computed by ONNX Runtime on the CPU."""

    def graph(self, bundle: Bundle, name: str) -> Engine:
        if name != "vision":
            return super().graph(bundle, name)
        manifest = bundle.manifest
        engine = OrtEngine(self.session(bundle.path(tensorrt_graph("vision"))))
        return PatchEncoder(engine, vision_profiles(manifest), manifest.vision.patch_size)


def demo(clips: int) -> list[dict[str, Any]]:
    """One entry per model and encoder: error of the features, and the report's groups."""
    reference, tokenizer = Remembered(TorchPredictor(CHECKPOINT)), TorchPredictor(CHECKPOINT).tokenizer
    measured_as = {"vision.onnx": "vision", "vision-tensorrt.onnx": "vision-tensorrt"}
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        twin = write_outlier_twin(Checkpoint.open(CHECKPOINT), Path(folder) / "twin", part="vision")
        for name, checkpoint in (("demo", CHECKPOINT), ("demo, outlier encoder channels", twin)):
            for bits in (16, 8):
                bundle = Path(folder) / f"{checkpoint.name}-{bits}"
                options = ExportOptions(("cpu", "jetson"), vision_bits=bits)
                manifest = export_bundle(Checkpoint.open(checkpoint), bundle, options).manifest
                for graph in ("vision.onnx", "vision-tensorrt.onnx") if bits == 8 else ("vision.onnx",):
                    predictor = BundlePredictor(bundle)
                    if graph != "vision.onnx":
                        predictor.model = VideoLlama3(
                            open_bundle(bundle), _TensorRtGraph(**vars(select_backend("cpu")))
                        )
                    scores = list(evaluate(predictor, tokenizer, range(clips), reference))
                    lines = {kind: asdict(line) for kind, line in summarize(scores).items() if kind.startswith("[")}
                    entries.append(
                        {
                            "model": name,
                            "vision_bits": bits,
                            "graph": graph,
                            "vision_mb": round(manifest.files[f"{graph}.data"].bytes / 1e6, 2),
                            "largest_difference": manifest.measured[measured_as[graph]]["max_abs_diff"],
                            "groups": lines,
                        }
                    )
                    print(name, bits, graph, lines["[all]"], flush=True)
        entries.append(_unsmoothed(twin, Path(folder)))
    return entries


def _unsmoothed(twin: Path, folder: Path) -> dict[str, Any]:
    """What smoothing is worth: the twin's features without it."""
    source = Checkpoint.open(twin)
    calibration = calibrate_vision(source, calibration_clips(make_manifest(source.config, ExportOptions(), None)))
    export_vision(source, folder, calibration=replace(calibration, smoothing=Smoothing({}, {})))
    error = relative_error(folder / "vision.onnx", calibration.held_out)
    return {"model": "demo, outlier encoder channels, not smoothed", "vision_bits": 8, "held_out_relative_error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("products", "speed", "demo"))
    parser.add_argument("--checkpoint", type=Path, help="of VideoLLaMA3's sizes")
    parser.add_argument("--work", type=Path, help="a folder for 1.3 GB of encoders")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=256)
    options = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    result: Any
    if options.part == "products":
        result = measure()
    elif options.part == "demo":
        result = demo(options.clips)
    elif options.checkpoint is None or options.work is None:
        parser.error("speed needs --checkpoint and --work")
    else:
        result = speed(options.checkpoint, options.work, options.rounds)
    parts = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    parts[options.part] = {"machine": describe(), "result": result}
    RESULTS.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
