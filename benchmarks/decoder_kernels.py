"""What the decoder's kernels are before any of them has run: registers, shared memory, bytes, launches.

    python benchmarks/decoder_kernels.py

Compiles the kernels of the released sizes (int4 in groups of 128, a head of 8 bits) for every kind of GPU, without
one. Says nothing of speed. Writes benchmarks/results/decoder_kernels.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from vl3edge.export.graphs.decoder import text_spec
from vl3edge.export.kernels.compile import compile_kernels
from vl3edge.export.kernels.shape import DecoderShape, MatrixKind, uniform_shape
from vl3edge.models.synthetic.random import preset

RESULTS = Path(__file__).parent / "results" / "decoder_kernels.json"
SIZES = ("2b", "7b")
CONTEXT = 1000
_A_LAYER = ("qkv", "rotation", "attention", "its parts combined", "output", "gate and up", "down")
_A_STEP = ("embedding", "head", "best of a block", "choice")


def main() -> None:
    result = {}
    for size in SIZES:
        config = preset(size).text
        shape = uniform_shape(text_spec(config), config.rms_norm_eps, bits=4, group=128, head_bits=8)
        with tempfile.TemporaryDirectory() as folder:
            manifest = compile_kernels(
                shape, Path(folder), progress=lambda done, total: print(done, total, file=sys.stderr)
            )
        result[size] = {**versions(manifest), "step": step(shape), "kernels": [line(k) for k in manifest["kernels"]]}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def versions(manifest: dict[str, Any]) -> dict[str, Any]:
    sizes = {name: archive["bytes"] for name, archive in manifest["archives"].items()}
    return {"versions": manifest["versions"], "ptx_version": manifest["ptx_version"], "archive_bytes": sizes}


def line(kernel: dict[str, Any]) -> dict[str, Any]:
    """One variant: its tile, and what a thread and a block of it take, by kind of GPU."""
    constants = kernel["constants"]
    return {
        "function": kernel["function"],
        **{name: constants[name] for name in ("K", "BITS") if name in constants},
        "tile": kernel["tile"],
        "warps": kernel["num_warps"],
        **{
            target: [binary["registers"], binary["spilled_bytes"], binary["shared_bytes"]]
            for target, binary in kernel["binaries"].items()
            if binary["registers"]
        },
    }


def step(shape: DecoderShape) -> dict[str, int]:
    """Launches of a step of one row, and the bytes that it cannot but read."""
    text = shape.text
    (qkv,), (output,), (gate,), (down,) = (shape.matrices[role] for role in ("qkv", "output", "gate", "down"))
    width = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    layer = stored(qkv, width) + stored(output, text.hidden_size) + stored(down, text.hidden_size)
    layer += 2 * stored(gate, text.intermediate_size) + 2 * 4 * text.hidden_size + 2 * width
    position = 2 * text.num_kv_heads * text.head_dim * 2
    return {
        "launches": len(_A_LAYER) * text.num_layers + len(_A_STEP),
        "weight_bytes": text.num_layers * layer + stored(shape.head, text.vocab_size),
        f"cache_bytes_at_{CONTEXT}": text.num_layers * position * CONTEXT,
    }


def stored(matrix: MatrixKind, outputs: int) -> int:
    """Bytes of codes and scales."""
    return outputs * (matrix.inputs * matrix.bits // 8 + 2 * matrix.inputs // matrix.group)


if __name__ == "__main__":
    main()
