"""The whole caption of a real clip against transformers, at the 2B sizes with random weights: time and peak memory.

    python benchmarks/caption.py --media CLIP --checkpoint CKPT --bundle NAME=FOLDER … [--frames 16] [--rounds 2]

CKPT holds random weights in transformers' layout (`python -m vl3edge.models.synthetic 2b CKPT --dtype bfloat16`), the
bundles are its exports. Weights are in bfloat16, as the released ones are: of another type transformers takes more
memory. Time runs from the file to the last of 64 tokens, with the model loaded; memory is the largest resident set of
the process, mapped weights included. transformers gets the same frames at the same size. Each runs in a process of its
own, taking turns; medians count. Writes an entry for this CPU to benchmarks/results/caption.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from machine import describe, keep
from peers import import_transformers
from turns import medians, run_alone

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.decode.generate import join
from vl3edge.runtime.host import peak_bytes

RESULTS = Path(__file__).parent / "results" / "caption.json"
PROMPT = "Describe this video."


def run_bundle(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    model = VideoLlama3.load(folder)
    plan = SamplingPlan(fps=options.fps, max_frames=options.frames)
    model.ask(model.encode(options.media, SamplingPlan(max_frames=1)), PROMPT, GenerationConfig(max_new_tokens=2))
    begin = time.perf_counter()
    pending = model.begin(options.media, plan, PruningConfig())
    answer = join(model.stream(pending, PROMPT, GenerationConfig(max_new_tokens=options.new_tokens)))
    seconds = time.perf_counter() - begin
    clip = pending.finish()
    encode, stats = clip.stats, answer.stats
    return {
        "seconds": seconds,
        "read_s": encode.read_s,
        "vision_s": encode.vision_s + encode.projector_s,
        "prefill_s": stats.prefill_s,
        "decode_s": stats.decode_s,
        "frames": clip.num_frames,
        "prompt_tokens": stats.prompt_tokens,
        "new_tokens": stats.generated_tokens,
        "peak_gb": (peak_bytes() or 0) / 1e9,
        "bundle_gb": sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e9,
    }


def run_transformers(dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    torch, transformers = import_transformers()
    model = transformers.VideoLlama3ForConditionalGeneration.from_pretrained(
        options.checkpoint, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()
    processor = transformers.AutoProcessor.from_pretrained(options.checkpoint)
    from vl3edge.runtime.media.video import open_video

    def caption(frames: int, new_tokens: int) -> tuple[Any, int]:
        # The sampler is ours, so that both see the same frames; resizing and all that follows is transformers' own.
        video = open_video(options.media, SamplingPlan(fps=options.fps, max_frames=frames)).read()
        content = [{"type": "video"}, {"type": "text", "text": PROMPT}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        metadata = {"fps": options.fps, "frames_indices": list(range(len(video.frames))), "total_num_frames": frames}
        inputs = processor(
            text=[text],
            videos=[video.frames.transpose(0, 3, 1, 2)],
            video_metadata=[metadata],
            do_sample_frames=False,
            return_tensors="pt",
        )
        inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(getattr(torch, dtype))
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        return out, inputs["input_ids"].shape[1]

    caption(1, 2)
    begin = time.perf_counter()
    out, prompt_tokens = caption(options.frames, options.new_tokens)
    return {
        "seconds": time.perf_counter() - begin,
        "prompt_tokens": prompt_tokens,
        "new_tokens": out.shape[1] - prompt_tokens,
        "peak_gb": (peak_bytes() or 0) / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--media", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bundle", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--note", help="what else the reader should know, such as other load on the machine")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    bundles = dict(item.split("=", 1) for item in options.bundle)
    if options.worker:
        if options.worker in bundles:
            figures = run_bundle(bundles[options.worker], options)
        else:
            figures = run_transformers(options.worker.removeprefix("transformers, "), options)
        print(json.dumps(figures))
        return
    names = [*bundles, *(f"transformers, {dtype}" for dtype in options.dtypes)]
    rounds = [{name: run_alone(__file__, name) for name in names} for _ in range(options.rounds)]
    result = {
        "machine": describe(),
        "media": options.media.name,
        "checkpoint": json.loads((options.checkpoint / "config.json").read_text(encoding="utf-8"))["dtype"],
        "rounds": options.rounds,
        "runs": medians(rounds),
    }
    if options.note:
        result["note"] = options.note
    keep(RESULTS, result)


if __name__ == "__main__":
    main()
