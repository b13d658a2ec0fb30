"""Compiles the kernels of a bundle's decoder ahead of time, without a GPU.

    python -m vl3edge.export.kernels.compile BUNDLE -o FOLDER

FOLDER then holds `kernels.json` and an archive for each kind of GPU: `ptx-8.0.zip`, which any from compute capability
8.0 on takes and whose driver compiles it when it is loaded, and `cubin-8.7.zip` and the like, machine code for one. A
device needs one of them. `kernels.json`: format, versions; `archives`, each with its size and sha256; `kernels`, each
with the function it comes from, the names and types of its arguments in order, how many null pointers follow them, its
constants, its tile, threads, and for each archive shared memory, registers, spilled bytes, the sha256 of its entry and
whether it overlaps with the kernel before it.
Several may differ in their tile alone; one that spills registers to memory is left out where another does not.
`weights.json` beside it: see `weights.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vl3edge.runtime.bundle.bundle import open_bundle
from vl3edge.runtime.bundle.kernel_set import FORMAT, FORMAT_VERSION, MANIFEST, PORTABLE, WEIGHTS
from vl3edge.runtime.cli.stderr import exit_status

from .binaries import MACHINES, PTX_VERSION, Compiled, compiled, private_compiler, versions
from .shape import DecoderShape, read_shape
from .variants import TILES, Kernel, variants
from .weights import decoder_weights

_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the same kernels give the same bytes, whenever they are compiled


def compile_kernels(
    shape: DecoderShape,
    folder: Path,
    wanted: Callable[[Kernel], bool] = lambda kernel: True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Writes the manifest and the archives into `folder`, which must exist; returns the manifest.

    wanted: the kernels to compile. progress: called with (kernels done, kernels in all).
    Raises ExportError if one does not compile.
    """
    kernels = [kernel for kernel in variants(shape) if wanted(kernel)]
    results = []
    with private_compiler(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(compiled, kernels):
            results.append(result)
            progress(len(results), len(kernels))
    kernels, results = _without_spills(kernels, results)
    archives = {
        f"{target}.zip": _archive(folder / f"{target}.zip", target, kernels, results)
        for target in (PORTABLE, *MACHINES)
    }
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": versions(),
        "ptx_version": f"{PTX_VERSION // 10}.{PTX_VERSION % 10}",
        "archives": archives,
        "kernels": [_entry(*pair) for pair in zip(kernels, results, strict=True)],
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def write_weights(bundle: Path, shape: DecoderShape, folder: Path) -> None:
    """Writes the places of a bundle's weights into `folder`."""
    text = json.dumps(decoder_weights(bundle, shape), separators=(",", ":"))
    (folder / WEIGHTS).write_text(text + "\n", encoding="utf-8")


def _without_spills(kernels: list[Kernel], results: list[Compiled]) -> tuple[list[Kernel], list[Compiled]]:
    """Drops the variants that spill, if another of the same purpose does not."""
    sound = [not any(binary.spilled_bytes for binary in result.binaries.values()) for result in results]
    served = {kernel.purpose for kernel, is_sound in zip(kernels, sound, strict=True) if is_sound}
    kept = [k for k, kernel in enumerate(kernels) if sound[k] or kernel.purpose not in served]
    return [kernels[k] for k in kept], [results[k] for k in kept]


def _archive(path: Path, target: str, kernels: list[Kernel], results: list[Compiled]) -> dict[str, Any]:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for kernel, result in zip(kernels, results, strict=True):
            if target not in result.binaries:
                continue
            entry = zipfile.ZipInfo(kernel.name, _NO_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, result.binaries[target].content)
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _entry(kernel: Kernel, result: Compiled) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "function": result.entry,
        "arguments": [list(argument) for argument in kernel.arguments],
        "scratch": result.scratch,
        "constants": {name: value for name, value in kernel.constants if name not in TILES},
        "tile": {name: value for name, value in kernel.constants if name in TILES},
        "num_warps": kernel.num_warps,
        "num_stages": kernel.num_stages,
        "binaries": {
            target: {
                "shared_bytes": binary.shared_bytes,
                "registers": binary.registers,
                "spilled_bytes": binary.spilled_bytes,
                "overlaps": binary.overlaps,
                "sha256": hashlib.sha256(binary.content).hexdigest(),
            }
            for target, binary in result.binaries.items()
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 if something fails, 2 for bad usage."""
    parser = argparse.ArgumentParser("compile", description="Compile the kernels of a bundle's decoder, without a GPU.")
    parser.add_argument("bundle", type=Path, help="folder that `vl3edge export` wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write; made if it does not exist")
    options = parser.parse_args(argv)
    return exit_status(lambda: _compile(options.bundle, options.output))


def _compile(folder: Path, output: Path) -> None:
    def progress(done: int, total: int) -> None:
        print(f"\r{done} of {total} kernels", end="" if done < total else "\n", file=sys.stderr, flush=True)

    bundle = open_bundle(folder)
    shape = read_shape(bundle.folder, bundle.manifest.text)
    output.mkdir(parents=True, exist_ok=True)
    manifest = compile_kernels(shape, output, progress=progress)
    write_weights(bundle.folder, shape, output)
    for name, archive in manifest["archives"].items():
        print(f"{name:16}{archive['bytes']:>12,} bytes")


if __name__ == "__main__":
    sys.exit(main())
