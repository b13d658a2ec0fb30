"""Estimated against measured memory of whole processes: load, encode a clip, answer.

    python benchmarks/memory.py BUNDLE=NAME … [--frames 1 8 32] [--pixels 336]

Each row is a process of its own; measured is its largest resident set. The clip is noise written as MPEG-4, so nothing
is pruned and every term is at its full size; it is read from a file, and larger than what is encoded. Writes
benchmarks/results/memory.json: rows of bundles given are replaced, others are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from machine import describe

from vl3edge.runtime.bundle.bundle import read_manifest
from vl3edge.runtime.memory_estimate import estimate

RESULTS = Path(__file__).parent / "results" / "memory.json"
NEW_TOKENS = 8
CHILD = """
import json, sys
from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.host import peak_bytes
model = VideoLlama3.load(sys.argv[1], backend="cpu", num_threads=1)
loaded = peak_bytes()
clip = model.encode(sys.argv[2], SamplingPlan(max_frames=int(sys.argv[3])), PruningConfig(enabled=False))
encoded = peak_bytes()
answer = model.ask(clip, "What happens?", GenerationConfig(max_new_tokens=int(sys.argv[4])))
sizes = [clip.num_frames, clip.height_px, clip.width_px, clip.num_tokens, answer.stats.prompt_tokens]
print(json.dumps([loaded, encoded, peak_bytes(), sizes]))
"""


def write_noise(path: Path, seconds: int, pixels: int) -> None:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = pixels
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 2)
        for number in range(2 * seconds):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (pixels, pixels, 3), np.uint8), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def measure(bundle: Path, name: str, frames: int, pixels: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "noise.mp4"
        write_noise(clip, frames, pixels)
        command = [sys.executable, "-c", CHILD, str(bundle), str(clip), str(frames), str(NEW_TOKENS)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loaded, encoded, peak, (num_frames, height, width, tokens, prompt) = json.loads(output)
    found = estimate(
        read_manifest(bundle),
        frames=num_frames,
        size=(height, width),
        visual_tokens=tokens,
        context_tokens=prompt + NEW_TOKENS,
        source_size=(pixels, pixels),
    )
    return {
        "bundle": name,
        "frames": num_frames,
        "size": [height, width],
        "context_tokens": prompt + NEW_TOKENS,
        "measured_loaded_mb": round(loaded / 1e6),
        "measured_encoded_mb": round(encoded / 1e6),
        "measured_mb": round(peak / 1e6),
        "estimated_mb": round(found.total_bytes / 1e6),
        "error": round(found.total_bytes / peak - 1, 3),
        "terms_mb": {key.removesuffix("_bytes"): round(value / 1e6, 1) for key, value in vars(found).items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE=NAME")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--pixels", type=int, default=336, help="side of the square frames")
    options = parser.parse_args()
    bundles = {name: Path(path) for path, name in (item.rsplit("=", 1) for item in options.bundles)}
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
    for name, path in bundles.items():
        for frames in options.frames:
            row = measure(path, name, frames, options.pixels)
            print(row, file=sys.stderr, flush=True)
            key = (row["bundle"], row["frames"], row["size"])
            rows = [other for other in rows if (other["bundle"], other["frames"], other["size"]) != key] + [row]
            worst = max(abs(other["error"]) for other in rows)
            result = {"machine": describe(), "largest_error": worst, "rows": rows}
            RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
