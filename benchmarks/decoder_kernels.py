"""What the decoder's kernels are before any of them has run: registers, shared memory, bytes, operations, launches.

    python benchmarks/decoder_kernels.py [--counts-only]

Compiles the kernels of the released sizes (int4 in groups of 128, a head of 4 bits) for every kind of GPU, without
one, and counts what a step and a prompt cannot do without (`decoder_limits.py`). Says nothing of speed. Writes
benchmarks/results/decoder_kernels.json; --counts-only keeps what was compiled.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from decoder_limits import DEVICES, PROMPT, Counts

from vl3edge.export.graphs.decoder import text_spec
from vl3edge.export.kernels.compile import compile_kernels
from vl3edge.export.kernels.shape import DecoderShape, MatrixKind, uniform_shape
from vl3edge.models.synthetic.random import preset

RESULTS = Path(__file__).parent / "results" / "decoder_kernels.json"
SIZES = ("2b", "7b")
_LONG = 16_000
HEAD_BITS = 4  # of every preset
ENGLISH = 68_864  # about: rows of the released tokenizer that `--vocabulary corpus` keeps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts-only", action="store_true", help="compile nothing")
    options = parser.parse_args()
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if options.counts_only else {}
    result: dict[str, Any] = {"devices": DEVICES, "prompt_tokens": PROMPT}
    for size in SIZES:
        shape = released(size)
        kept = {name: before[size][name] for name in COMPILED} if before else compiled(shape)
        result[size] = {**counted(shape), **kept}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def released(size: str) -> DecoderShape:
    """A released decoder, as it is exported by default."""
    config = preset(size).text
    return uniform_shape(text_spec(config), config.rms_norm_eps, bits=4, group=128, head_bits=HEAD_BITS)


def counted(shape: DecoderShape) -> dict[str, Any]:
    """The launches of a step and of a prompt; of a step also where it reads less, or more."""
    large_head = replace(shape.head, bits=8)
    eight = replace(shape, head=large_head, embeddings=large_head)
    english = replace(shape, text=replace(shape.text, head_rows=ENGLISH))
    layers = {role: frozenset(_in_bits(kinds, 2)) for role, kinds in shape.matrices.items()}
    return {
        "step": Counts(shape).step(),
        "step, context 16,000": Counts(shape).step(_LONG),
        "step, head of 8 bits": Counts(eight).step(),
        "step, head of English words": Counts(english).step(),
        "step, layers of 2 bits": Counts(replace(shape, matrices=layers)).step(),
        "prompt": Counts(shape).prompt(),
    }


def _in_bits(kinds: frozenset[MatrixKind], bits: int) -> list[MatrixKind]:
    return [replace(kind, bits=bits) for kind in kinds]


COMPILED = ("versions", "ptx_version", "archive_bytes", "kernels")


def compiled(shape: DecoderShape) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        manifest = compile_kernels(
            shape, Path(folder), progress=lambda done, total: print(done, total, file=sys.stderr)
        )
    return {**versions(manifest), "kernels": [line(kernel) for kernel in manifest["kernels"]]}


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


if __name__ == "__main__":
    main()
