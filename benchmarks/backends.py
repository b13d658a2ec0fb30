"""The same clip through every backend: the largest difference at each stage, times, and GPU memory.

    python benchmarks/backends.py BUNDLE CLIP [--backends cpu cuda rtx] [--max-frames 32] [--repeat 5] [--name NAME]

The first backend is the reference of the differences. Times are medians after one call that is not counted, because the
first one compiles. GPU memory is what the device lost from before loading to after answering. Adds to
benchmarks/results/backends.json under NAME (default: the GPU's name, or "cpu").
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.cuda import CudaDevice, open_device
from vl3edge.runtime.engine import select_backend
from vl3edge.runtime.errors import BackendError
from vl3edge.runtime.resize import PixelBudget, target_size
from vl3edge.runtime.video import open_video
from vl3edge.runtime.vision import VisionPath

RESULTS = Path(__file__).parent / "results" / "backends.json"


def median_s(work: Callable[[], Any], repeat: int) -> float:
    work()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def difference(value: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    gap = np.abs(value.astype(np.float64) - reference)
    return {"max": float(gap.max()), "mean": float(gap.mean()), "largest_value": float(np.abs(reference).max())}


def gpu() -> CudaDevice | None:
    try:
        return open_device()
    except BackendError:
        return None


def free_bytes(device: CudaDevice | None) -> int:
    return 0 if device is None else int(device.runtime.cudaMemGetInfo()[1])


def measure(name: str, options: argparse.Namespace, device: CudaDevice | None) -> tuple[dict[str, Any], list[Any]]:
    """Figures of one backend, and its outputs by stage: features, tokens, text."""
    before = free_bytes(device)
    model = VideoLlama3.load(options.bundle, backend=name)
    manifest = model.bundle.manifest
    spec = manifest.processor.video
    reader = open_video(options.clip, SamplingPlan(fps=manifest.processor.fps, max_frames=options.max_frames))
    budget = PixelBudget(
        manifest.vision.patch_size, spec.merge_size, spec.min_pixels, spec.max_pixels, manifest.processor.rule
    )
    size = target_size(reader.height, reader.width, budget, reader.num_frames)
    frames = reader.read(size, manifest.processor.rule).frames
    vision = VisionPath(model.bundle, select_backend(name))
    at_once = vision.frames_per_call(*size)
    chunks = [frames[start : start + at_once] for start in range(0, len(frames), at_once)]

    def features() -> np.ndarray:
        return np.concatenate([vision.features(chunk) for chunk in chunks])

    encoder_s = median_s(features, options.repeat)
    found = features()
    keep = np.ones((len(chunks[0]), size[0] * size[1] // (manifest.vision.patch_size * spec.merge_size) ** 2), bool)
    first = np.ascontiguousarray(found[: len(chunks[0])])
    projector_s = median_s(lambda: vision.tokens(first, "video", keep), options.repeat)
    clip = model.encode(
        options.clip, SamplingPlan(max_frames=options.max_frames), PruningConfig(enabled=False), kind="video"
    )
    config = GenerationConfig(max_new_tokens=64)
    model.ask(clip, "Describe this video.", config)
    fresh = VideoLlama3(model.bundle, select_backend(name))  # with an empty cache, so that all is prefilled
    answer = fresh.ask(clip, "Describe this video.", config)
    stats = answer.stats
    figures = {
        "vision_runtime": model.info["vision_runtime"],
        "providers": model.info["providers"],
        "frames": len(frames),
        "height_px": size[0],
        "width_px": size[1],
        "visual_tokens": clip.num_tokens,
        "encoder_ms_per_frame": round(1e3 * encoder_s / len(frames), 3),
        "projector_ms_per_frame": round(1e3 * projector_s / len(chunks[0]), 3),
        "prefill_tokens_per_s": round(stats.prompt_tokens / stats.prefill_s, 1),
        "decode_tokens_per_s": round((stats.generated_tokens - 1) / stats.decode_s, 1) if stats.decode_s else None,
        "gpu_memory_mb": round((before - free_bytes(device)) / 1e6) if device else None,
    }
    return figures, [found, clip.visual.tokens, answer.text]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--backends", nargs="+", default=["cpu", "cuda", "rtx"])
    parser.add_argument("--max-frames", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--name")
    options = parser.parse_args()
    device = gpu()
    figures: dict[str, Any] = {}
    reference: list[Any] = []
    for name in options.backends:
        figures[name], outputs = measure(name, options, device)
        reference = reference or outputs
        figures[name]["difference"] = {
            stage: difference(value, wanted)
            for stage, value, wanted in zip(("features", "tokens"), outputs, reference, strict=False)
        }
        figures[name]["same_text"] = outputs[2] == reference[2]
        print(name, json.dumps(figures[name], indent=1))
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    results[options.name or (device.name if device else "cpu")] = {
        "machine": describe(),
        "bundle": options.bundle.name,
        "clip": options.clip.name,
        "backends": figures,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
