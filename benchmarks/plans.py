"""What compiling the vision plans for TensorRT for RTX costs at the released size, without a GPU.

    python benchmarks/plans.py CHECKPOINT --work FOLDER

CHECKPOINT has VideoLLaMA3's sizes; random weights will do (`python -m vl3edge.models.synthetic 2b FOLDER`). Writes
benchmarks/results/plans.json: time, peak resident memory, size, activation memory by profile as TensorRT reports it,
and how many attention layers it fused.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from machine import describe

from vl3edge.export.graphs.vision_tensorrt import export_tensorrt_projector, export_tensorrt_vision
from vl3edge.export.manifest import make_manifest
from vl3edge.export.options import ExportOptions
from vl3edge.export.tensor_source import Float32Source
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.runtime.backends.tensorrt_build import BuildOptions, compile_plan
from vl3edge.runtime.backends.tensorrt_library import import_tensorrt
from vl3edge.runtime.bundle.profiles import activation_bytes, projector_profiles, vision_profiles

RESULTS = Path(__file__).parent / "results" / "plans.json"


class Timer:
    """Seconds and CPU seconds since it was made, and the peak memory of the process so far."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._cpu = time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "seconds": round(time.perf_counter() - self._begin, 1),
            "cpu_seconds": round(time.process_time() - self._cpu, 1),
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="a folder for 0.9 GB of graphs; they are left there")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint.open(options.checkpoint)
    manifest = make_manifest(checkpoint.config, ExportOptions(), None)
    timer = Timer()
    export_tensorrt_vision(Float32Source(checkpoint), checkpoint.config, options.work)
    export_tensorrt_projector(Float32Source(checkpoint), checkpoint.config, options.work)
    plans: dict[str, Any] = {"graphs": timer.read()}
    vision = vision_profiles(manifest)
    trt = import_tensorrt("rtx")
    for name, profiles in (("vision", vision), ("projector", projector_profiles(manifest, vision))):
        timer = Timer()
        plan, spec = compile_plan(trt, options.work / f"{name}.onnx", profiles, BuildOptions("rtx"))
        plans[name] = {
            **timer.read(),
            "mb": round(plan.nbytes / 1e6, 1),
            "fused_attentions": spec.fused_attentions,
            "profiles": [
                {
                    "name": profile.name,
                    "largest": {key: list(sizes.max) for key, sizes in profile.inputs.items()},
                    "activation_mb": round(size / 1e6, 1),
                }
                for profile, size in zip(profiles, spec.activation_bytes, strict=True)
            ],
        }
        print(name, plans[name])
    result = {
        "machine": describe(),
        "tensorrt_rtx": str(trt.__version__),
        "layers": manifest.vision.num_layers,
        "estimated_bytes_per_patch": activation_bytes(manifest.vision),
        "plans": plans,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
