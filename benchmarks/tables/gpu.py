"""The tables of GPUs that were measured, from benchmarks/results/gpu_*.json."""

from __future__ import annotations

import re
from typing import Any

from tables.markdown import RESULTS, load, machine_line, table


def gpu_table() -> str:
    """A table for every GPU that was measured, each figure beside the best of the peers."""
    names = sorted(path.stem for path in RESULTS.glob("gpu_*.json"))
    return "\n\n".join(gpu_part(load(name)) for name in names)


_HEADLINE = (
    "decode_1_at_1000_tokens_per_s",
    "prefill_8000_tokens_per_s",
    "encoder_680_patches_ms_per_frame",
)


def gpu_headline() -> str:
    """The figures of every GPU that tell most."""
    results = [load(path.stem) for path in sorted(RESULTS.glob("gpu_*.json"))]
    return "\n\n".join(
        gpu_part(
            result
            | {"note": "", "figures": {key: result["figures"][key] for key in _HEADLINE if key in result["figures"]}}
        )
        for result in results
    )


def gpu_memory_table() -> str:
    """What the released sizes take of a GPU's memory, on paper, from benchmarks/results/memory_gpu.json."""
    result = load("memory_gpu")
    header = {
        "decoder": "decoder",
        "vision": "encoder, projector",
        "cache": "KV cache",
        "prompt": "prompt",
        "encoder": "activations of the encoder",
    }
    rows = []
    for size in ("2b", "7b"):
        values = [result[size][term] / 1e6 for term in header]
        name = f"{size.upper()}: {result['frames']} frames, {result['context_tokens']:,} tokens"
        rows.append([name, *(f"{value:,.0f}" for value in values), f"{sum(values):,.0f}"])
    return table(["", *header.values(), "together"], rows)


def gpu_part(result: dict[str, Any]) -> str:
    rows = []
    for key, runs in result["figures"].items():
        work, peers = gpu_work(key), {name: value for name, value in runs.items() if not name.startswith("vl3edge")}
        peers = peers or {name: value for name, value in runs.items() if name != "vl3edge"}
        mine = runs.get("vl3edge")
        if work is None or not isinstance(mine, int | float):
            continue
        ratios = {peer: mine / other if key.endswith("per_s") else other / mine for peer, other in peers.items()}
        nearest = min(ratios, key=lambda peer: ratios[peer], default=None)
        if nearest is None:
            rows.append([work, number(mine), "–", "–", "–"])
        else:
            rows.append([work, number(mine), nearest, number(runs[nearest]), f"{ratios[nearest]:.2f}×"])
    lines = machine_line(result)
    if answers := result.get("answers_equal"):
        lines += f" {answers['equal']} of {answers['asked']} answers equal those of {answers['against']}."
    device = f"{result['device']}: " if result.get("device") else ""
    return f"{table(['work', 'vl3edge', 'against', 'the other', 'ratio'], rows)}\n\n{device}{lines}"


def gpu_work(key: str) -> str | None:
    """What a figure of a GPU is, in words; None for one that is not shown."""
    patterns = {
        r"decode_1_at_(\d+)_tokens_per_s": "tokens written a second, context {0:,}",
        r"decode_(\d+)_at_(\d+)_tokens_per_s": "tokens written a second, {0} sequences, context {1:,}",
        r"prefill_(\d+)_tokens_per_s": "tokens of a prompt of {0:,} read a second",
        r"encoder_(\d+)_patches_ms_per_frame": "ms a frame of {0:,} patches",
        r"caption_(\d+)_s": "seconds to caption {0} of a folder",
        r"caption_10_tokens_per_s": "tokens written a second in caption 10",
        r"peak_gpu_memory_mb": "MB of the GPU's memory, captioning",
        r"decoder_gpu_memory_mb": "MB of the GPU's memory, the decoder alone",
        r"decoder_weights_and_cache_mb": "MB of that which are weights and cache",
    }
    for pattern, words in patterns.items():
        if found := re.fullmatch(pattern, key):
            return words.format(*map(int, found.groups()))
    return None


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
