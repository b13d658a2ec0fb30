"""The same clip through every backend and through transformers: differences by stage, times, GPU memory, in one call.

    python benchmarks/backends.py BUNDLE CLIP [--backends cpu cuda cuda+kernels] [--checkpoint CKPT] [--name NAME]
                                              [--max-frames 32] [--new-tokens 64] [--repeat 5] [--json FILE]

All the figures of one GPU in one call, peers included, are `gpu.py`'s; here is one clip, stage by stage.

Each runs in a process of its own, one after the other; `+kernels` decodes with the bundle's own. The first backend is
the reference of the differences: the others get its features for the projector and its prompt and tokens for the
decoder, so that a difference is of the stage it stands at. Times are medians after one call that is not counted,
because the first one compiles. GPU memory is the largest amount that the device lacked while the model was loaded,
the clip encoded and its caption generated, over what it lacked before; of transformers, what torch allocated at most.

With CKPT, in transformers' layout, transformers runs it with sdpa attention in float16 and bfloat16, on the GPU if
torch has one; that needs torch with CUDA. A backend that fails leaves its reason in the figures, and exit status 1.
Adds to benchmarks/results/backends.json, or FILE, under NAME (default: the GPU's name, or "cpu").
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from peers import import_transformers

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.backends.cuda import Device, open_device
from vl3edge.runtime.backends.features import on_host
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import open_bundle
from vl3edge.runtime.errors import BackendError
from vl3edge.runtime.media.resize import target_size
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.prompt.chat_template import question_about
from vl3edge.runtime.prompt.splice import EmbeddingTable
from vl3edge.runtime.vision.clip import Clip
from vl3edge.runtime.vision.clip_encoder import pixel_budget

RESULTS = Path(__file__).parent / "results" / "backends.json"
DTYPES = ("float16", "bfloat16")
PROMPT = "Describe this video."
Arrays = dict[str, np.ndarray]
Figures = dict[str, Any]


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


@contextmanager
def peak_memory(device: Device | None, figures: Figures) -> Iterator[None]:
    """Puts the largest amount of GPU memory taken inside the block into the figures; None without a GPU."""
    figures["peak_gpu_memory_mb"] = None
    if device is None:
        yield
        return
    before, least, over = device.free_bytes(), [device.free_bytes()], threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            least[0] = min(least[0], device.free_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        figures["peak_gpu_memory_mb"] = round((before - least[0]) / 1e6)


def run_backend(name: str, options: argparse.Namespace) -> tuple[Figures, Arrays]:
    """Figures of one backend, and its outputs by stage."""
    name, _, decoder = name.partition("+")
    backend = select_backend(name, decodes=not decoder)
    figures: Figures = {"device": backend.device.name if backend.device else None}
    plan = SamplingPlan(max_frames=options.max_frames)
    with peak_memory(backend.device, figures):
        model = VideoLlama3(open_bundle(options.bundle), backend, decoder=decoder or "onnxruntime")
        clip = model.encode(options.clip, plan, PruningConfig(enabled=False), kind="video")
        answer = model.ask(clip, PROMPT, GenerationConfig(max_new_tokens=options.new_tokens))
    figures |= {key: model.info[key] for key in ("vision_runtime", "providers", "onnxruntime", "decoder")}
    figures["text"] = answer.text
    return figures, _stages(model, clip, options, figures)


def _stages(model: VideoLlama3, clip: Clip, options: argparse.Namespace, figures: Figures) -> Arrays:
    given = dict(np.load(options.reference)) if options.reference else {}
    manifest = model.bundle.manifest
    plan = SamplingPlan(fps=manifest.processor.fps, max_frames=options.max_frames)
    vision = model._encoder._vision  # loaded already: a second one would want its memory again
    reader = open_video(options.clip, plan)
    budget = pixel_budget(manifest.processor, manifest.processor.video, manifest.vision.patch_size)
    size = target_size(reader.height, reader.width, budget, reader.num_frames)
    frames = reader.read(size, manifest.processor.rule).frames
    at_once = vision.frames_per_call(*size)
    chunks = [frames[start : start + at_once] for start in range(0, len(frames), at_once)]
    encoder_s = median_s(lambda: [vision.features(chunk) for chunk in chunks], options.repeat)
    features = np.concatenate([on_host(vision.features(chunk)) for chunk in chunks])
    block = manifest.vision.patch_size * manifest.processor.video.merge_size
    projected = int(given["projected"]) if given else len(chunks[0])  # chunks of backends differ
    first = np.ascontiguousarray(given.get("features", features)[:projected])
    keep = np.ones((len(first), size[0] * size[1] // block**2), np.bool_)
    projector_s = median_s(lambda: vision.tokens(first, "video", keep), options.repeat)

    table = EmbeddingTable.of(model.bundle)
    prompt = given.get("prompt", model.prompt(question_about([clip], PROMPT), [clip]).embeddings(table))
    decoder = model._decoders.make()
    decoder.reserve(len(prompt) + options.new_tokens)

    def prefill() -> None:
        decoder.rewind(0)
        decoder.prefill(prompt)
        int(decoder.token)  # has come to the host

    def decode() -> tuple[list[int], list[np.ndarray]]:
        """The greedy tokens after those of the reference, and the logits they were chosen from."""
        decoder.rewind(len(prompt))
        tokens, logits = [first_token], [first_logits]
        for step in range(options.new_tokens - 1):
            decoder.advance(np.array([given["chosen"][step] if given else tokens[-1]]), table)
            tokens.append(decoder.token)
            logits.append(decoder.logits[0].copy())
        return tokens, logits

    def timed_decode() -> None:
        decoder.rewind(len(prompt))
        token = first_token
        for _ in range(options.new_tokens - 1):
            decoder.advance(np.array([token]), table)
            token = decoder.token

    prefill_s = median_s(prefill, options.repeat)
    first_token, first_logits = decoder.token, decoder.logits[0].copy()
    decode_s = median_s(timed_decode, options.repeat)
    tokens, logits = decode()
    figures |= {
        "frames": len(frames),
        "height_px": size[0],
        "width_px": size[1],
        "prompt_tokens": len(prompt),
        "encoder_ms_per_frame": round(1e3 * encoder_s / len(frames), 3),
        "projector_ms_per_frame": round(1e3 * projector_s / len(first), 3),
        "prefill_tokens_per_s": round(len(prompt) / prefill_s, 1),
        "decode_tokens_per_s": round((options.new_tokens - 1) / decode_s, 1),
    }
    return {
        "features": features,
        "tokens": vision.tokens(first, "video", keep),
        "projected": np.array(projected),
        "prompt": prompt,
        "logits": np.stack(logits),
        "chosen": np.array(tokens),
    }


def run_transformers(dtype: str, options: argparse.Namespace) -> Figures:
    """Figures of transformers, with the same frames; resizing and all that follows is its own."""
    torch, transformers = import_transformers()
    where = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.VideoLlama3ForConditionalGeneration.from_pretrained(
        options.checkpoint, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    model = model.eval().to(where)
    processor = transformers.AutoProcessor.from_pretrained(options.checkpoint)
    video = open_video(options.clip, SamplingPlan(fps=1.0, max_frames=options.max_frames)).read()
    content = [{"type": "video"}, {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    count = len(video.frames)
    inputs = processor(
        text=[text],
        videos=[video.frames.transpose(0, 3, 1, 2)],
        video_metadata=[{"fps": 1.0, "frames_indices": list(range(count)), "total_num_frames": count}],
        do_sample_frames=False,
        use_token_compression=False,  # nothing is pruned on our side either
        return_tensors="pt",
    ).to(where)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(getattr(torch, dtype))
    seen = {name: inputs[name] for name in ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")}

    def finished(work: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            with torch.inference_mode():
                work()
            if where == "cuda":
                torch.cuda.synchronize()

        return run

    def generate(new_tokens: int) -> Callable[[], Any]:
        return finished(
            lambda: model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        )

    vision_s = median_s(finished(lambda: model.model.get_video_features(**seen)), options.repeat)
    first_s, all_s = (median_s(generate(new), options.repeat) for new in (1, options.new_tokens))
    prompt_tokens = inputs["input_ids"].shape[1]
    return {
        "device": torch.cuda.get_device_name() if where == "cuda" else None,
        "frames": count,
        "prompt_tokens": prompt_tokens,
        "encoder_and_projector_ms_per_frame": round(1e3 * vision_s / count, 3),
        "prefill_tokens_per_s": round(prompt_tokens / max(first_s - vision_s, 1e-9), 1),
        "decode_tokens_per_s": round((options.new_tokens - 1) / max(all_s - first_s, 1e-9), 1),
        "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if where == "cuda" else None,
    }


def alone(name: str, folder: Path, reference: Path | None) -> Figures:
    """This script with the same arguments, for one of the names, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name, "--folder", str(folder)]
    command += ["--reference", str(reference)] if reference else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        return {"error": (done.stdout.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(figures: Figures, ours: Arrays, reference: Arrays, reference_text: str) -> None:
    """Adds what differs from the reference."""
    figures["difference"] = {
        stage: difference(ours[stage], reference[stage]) for stage in ("features", "tokens", "logits")
    }
    figures["tokens_equal"] = f"{int((ours['chosen'] == reference['chosen']).sum())} of {len(ours['chosen'])}"
    figures["same_text"] = figures["text"] == reference_text


def measure(options: argparse.Namespace) -> Figures:
    """All backends, then transformers."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as work:
        folder, reference = Path(work), None
        for name in options.backends:
            figures[name] = alone(name, folder, reference)
            print(name, json.dumps(figures[name], indent=1), flush=True)
            if "error" in figures[name]:
                continue
            reference = reference or folder / f"{name}.npz"
            text = figures[reference.stem]["text"]
            compare(figures[name], dict(np.load(folder / f"{name}.npz")), dict(np.load(reference)), text)
        for dtype in DTYPES if options.checkpoint else ():
            name = f"transformers, sdpa, {dtype}"
            figures[name] = alone(name, folder, None)
            print(name, json.dumps(figures[name], indent=1), flush=True)
    return figures


def gpu_name() -> str | None:
    try:
        return open_device().name
    except BackendError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--backends", nargs="+", default=["cpu", "cuda", "rtx"])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--max-frames", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--name")
    parser.add_argument("--json", type=Path, default=RESULTS)
    for hidden in ("--worker", "--folder", "--reference"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.new_tokens < 2:
        parser.error("--new-tokens must be at least 2")
    if options.worker:
        try:
            if options.worker in options.backends:
                worked, arrays = run_backend(options.worker, options)
                np.savez(Path(options.folder) / f"{options.worker}.npz", **arrays)
            else:
                worked = run_transformers(options.worker.rpartition(", ")[2], options)
        except Exception as e:
            print(f"{type(e).__name__}: {' '.join(str(e).split())}")
            raise
        print(json.dumps(worked))
        return 0
    figures = measure(options)
    results = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else {}
    results[options.name or gpu_name() or "cpu"] = {
        "machine": describe(),
        "bundle": options.bundle.name,
        "clip": options.clip.name,
        "repeat": options.repeat,
        "backends": figures,
    }
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(any("error" in each for each in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
