"""Bundles with kernels for a GPU whose driver is `fake_driver.py`: the machine code of a kernel is its name."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kernel_decoders import bundle_of, with_kernels, written
from random_decoders import Quantized

from vl3edge.export.kernels.compile import write_weights
from vl3edge.export.kernels.interpreter import open_interpreter
from vl3edge.export.kernels.shape import read_shape
from vl3edge.runtime.bundle import kernel_set
from vl3edge.runtime.bundle.bundle import Bundle, hash_file
from vl3edge.runtime.bundle.kernel_set import BinarySpec, KernelSpec

FORMS = ("ptx-8.0", "cubin-8.9")
SHARED = {"prompt_product": 60 << 10, "attend_prompt": 49 << 10}  # bytes, of a block


def gpu_bundle(folder: Path, several: bool = False, **sizes: Any) -> tuple[Bundle, dict[str, Any]]:
    """A bundle and Triton's functions by the names of its kernels. several: each in two sizes of tiles."""
    folder, text = written(folder, Quantized(), {"num_layers": 1} | sizes)
    kernels, launcher = open_interpreter(bundle_of(folder, text))
    functions = dict(launcher._functions)
    specs = [_compiled(spec) for spec in kernels.manifest.kernels]
    if several:
        others = [(spec, other) for spec in specs for other in _smaller(spec)]
        functions |= {other.name: functions[spec.name] for spec, other in others}
        specs += [other for _, other in others]
    target = folder / kernel_set.FOLDER
    target.mkdir()
    for form in FORMS:
        with zipfile.ZipFile(target / f"{form}.zip", "w") as archive:
            for spec in specs:
                archive.writestr(spec.name, f"{form} {spec.name}")
    archives = {f"{form}.zip": asdict(hash_file(target / f"{form}.zip")) for form in FORMS}
    content = {"format": kernel_set.FORMAT, "format_version": 1, "versions": {}, "ptx_version": "8.2"}
    content |= {"archives": archives, "kernels": [asdict(spec) for spec in specs]}
    (target / kernel_set.MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    write_weights(folder, read_shape(folder, text), target)
    return with_kernels(folder, text), functions


def _compiled(spec: KernelSpec) -> KernelSpec:
    binary = BinarySpec(SHARED.get(spec.function, 1 << 10), 32, 0, "")
    return replace(spec, scratch=2, binaries=dict.fromkeys(FORMS, binary))


def _smaller(spec: KernelSpec) -> Iterator[KernelSpec]:
    """A kernel in other tiles, where it has any that a launch may choose."""
    halved = {name: spec.tile[name] // 2 for name in ("BN", "C", "BM") if name in spec.tile}
    doubled = {name: 2 * spec.tile[name] for name in ("SPLITS",) if name in spec.tile}
    if changed := halved | doubled:
        yield replace(spec, name=f"{spec.name}-other", tile=spec.tile | changed)
