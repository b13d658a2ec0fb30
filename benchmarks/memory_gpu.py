"""What the 2B and 7B sizes take of a GPU's memory, on paper: bundles by default, a clip of 32 frames, 4,183 tokens.

    python benchmarks/memory_gpu.py

The clip is that of the table for CPUs (`memory.py`), of which nothing is pruned. The sums are those with which the
runtime refuses what does not fit (`memory_estimate.py`, `memory_budget.py`), and those of the kernels' own buffers
(`runtime/kernels/scratch.py`). Nothing is run. Writes benchmarks/results/memory_gpu.json.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vl3edge.export.manifest import make_manifest
from vl3edge.export.presets import export_options
from vl3edge.models.synthetic.random import preset
from vl3edge.runtime.backends.onnxruntime import GPU_PATCHES_PER_CALL
from vl3edge.runtime.bundle.manifest import Manifest
from vl3edge.runtime.decode.kv_cache import bytes_per_row, capacity_for
from vl3edge.runtime.decode.prefill_chunk import GPU_CHUNKS
from vl3edge.runtime.kernels.scratch import Vectors
from vl3edge.runtime.memory_estimate import gpu_step_bytes, gpu_weights_bytes, vision_bytes

RESULTS = Path(__file__).parent / "results" / "memory_gpu.json"
SIZES = ("2b", "7b")
FRAMES, SIZE, CONTEXT = 32, (308, 308), 4183
_HALF = 2  # bytes of a float16


def released(size: str) -> Manifest:
    """The manifest of a released size as it is exported for GPUs by default."""
    options = export_options(targets=("cuda",))
    assert options.plan is not None
    facts = {
        "method": "gptq",
        "bits": options.plan.bits,
        "group_size": options.plan.group_size,
        "head_bits": options.plan.head_bits,
    }
    return replace(make_manifest(preset(size), options, None), quantization=facts)


def decoder_terms(manifest: Manifest, context: int, dense: bool) -> dict[str, int]:
    """Bytes of the decoder on the kernels. dense: on compute capability 9.0 long prompts unpack a matrix at a time."""
    text = manifest.text
    unpacked = text.hidden_size * text.intermediate_size * _HALF if dense else 0
    return {
        "decoder": gpu_step_bytes(manifest, text.num_logits),
        "cache": bytes_per_row(text, capacity_for(text, context), _HALF),
        "prompt": Vectors.bytes_of(text) * max(GPU_CHUNKS) + unpacked,
    }


def terms(size: str) -> dict[str, int]:
    """Bytes of everything, by what they are for. encoder: activations, reckoned in float32, of the frames at once."""
    manifest = released(size)
    patches = (SIZE[0] // manifest.vision.patch_size) * (SIZE[1] // manifest.vision.patch_size)
    at_once = min(FRAMES, GPU_PATCHES_PER_CALL // patches)
    decoder = decoder_terms(manifest, CONTEXT, dense=False)
    return {
        **decoder,
        "vision": gpu_weights_bytes(manifest) - decoder["decoder"],
        "encoder": vision_bytes(manifest, at_once * patches, manifest.processor.video.merge_size),
    }


def main() -> None:
    result: dict[str, Any] = {"frames": FRAMES, "size": SIZE, "context_tokens": CONTEXT}
    result |= {size: terms(size) for size in SIZES}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
