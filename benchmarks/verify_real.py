"""`vl3edge verify` at the released sizes: do sound bundles pass, and is one wrong tensor named?

    python benchmarks/verify_real.py NAME=BUNDLE --checkpoint CKPT --media CLIP … --work FOLDER [--fault GRAPH …]

Verifies the bundle; or, with --fault, copies of it in each of which the largest weight of one graph has its rows moved
by one and all hashes are right again. A copy shares the untouched files (hard links, so FOLDER must be on the bundle's
file system) and is deleted. Adds to benchmarks/results/verify_real.json, an entry for each bundle and fault.
Memory is the process's own, without the checkpoint's and the bundle's mapped pages.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from machine import describe
from onnx import helper

from vl3edge.runtime.bundle.bundle import hash_file
from vl3edge.runtime.bundle.manifest import sealed

RESULTS = Path(__file__).parent / "results" / "verify_real.json"
STAGES = {
    "vision.onnx": "encoder",
    "projector-video.onnx": "projector, video",
    "decoder.onnx": "weights",
    "decoder-prefill.onnx": "prompt weights",
}
"""In which stage a wrong weight of a quantized bundle's graph must be noticed first."""


def verified(bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the command says of a bundle, and what it took."""
    report = options.work / "report.json"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "vl3edge.runtime.cli.main",
        "verify",
        str(bundle),
        "--checkpoint",
        options.checkpoint,
    ]
    command += ["--media", *options.media, "--frames", str(options.frames), "--tokens", str(options.tokens)]
    begin, own = time.perf_counter(), 0.0
    process = subprocess.Popen([*command, "--threads", str(options.threads), "--json", str(report)])
    while process.poll() is None:
        own = max(own, _own_gb(process.pid))
        time.sleep(0.2)
    if not report.exists():
        raise SystemExit(f"verify ended with {process.returncode} and no report")
    found = json.loads(report.read_text(encoding="utf-8"))
    stages = [{key: value for key, value in stage.items() if key != "compared"} for stage in found["stages"]]
    return {
        "machine": describe(),
        "media": [Path(name).name for name in options.media],
        "frames": options.frames,
        "tokens": options.tokens,
        "seconds": round(time.perf_counter() - begin),
        "own_peak_gb": round(own, 2),
        "exit_status": process.returncode,
        "passed": found["passed"],
        "first_failure": found["first_failure"],
        "stages": stages,
    }


def _own_gb(pid: int) -> float:
    """Anonymous resident memory of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("RssAnon:"))


def plant(bundle: Path, graph: str, folder: Path) -> str:
    """Writes the copy of `bundle` with a fault in `graph` to `folder`; the name of the weight that is wrong in it."""
    weights = f"{graph}.data"
    for path in bundle.iterdir():
        if path.name in (weights, "bundle.json"):
            shutil.copy(path, folder / path.name)
        else:
            os.link(path, folder / path.name)
    found = []
    for tensor in onnx.load(bundle / graph, load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place.get("location") == weights and len(tensor.dims) > 1 and not tensor.name.startswith("rotary"):
            found.append((int(np.prod(tensor.dims)), tensor, int(place["offset"])))
    _, tensor, offset = max(found, key=lambda item: item[0])
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    array = np.memmap(folder / weights, dtype, "r+", offset, tuple(tensor.dims))
    array[:] = np.roll(array, 1, axis=0)
    array.flush()
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    manifest["files"][weights] = vars(hash_file(folder / weights))
    (folder / "bundle.json").write_text(json.dumps(sealed(manifest)), encoding="utf-8")
    return str(tensor.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", metavar="NAME=BUNDLE")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--media", nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--fault", nargs="+", choices=STAGES)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    name, _, bundle = options.bundle.partition("=")
    options.work.mkdir(parents=True, exist_ok=True)
    for graph in options.fault or [None]:
        if graph is None:
            key, entry = name, verified(Path(bundle), options)
        else:
            with tempfile.TemporaryDirectory(dir=options.work) as folder:
                wrong = plant(Path(bundle), graph, Path(folder))
                key, entry = (
                    f"{name}, fault in {graph}",
                    {"wrong_weight": wrong, "wrong_stage": STAGES[graph]} | verified(Path(folder), options),
                )
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(results | {key: entry}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
