"""Compiles one kernel without a GPU: PTX for every GPU from 8.0 on, and machine code for specific ones.

Triton makes the PTX; its own `ptxas`, or the one that TRITON_PTXAS_PATH names, makes the machine code and reports the
registers used. The PTX is version 8.2, which drivers from CUDA 12.2 on read. The same PTX becomes the machine code of
8.7 and 8.9, for which Triton would emit the same instructions. From 9.0 on kernels are compiled again: they overlap in
the stream (`words.after_previous`) by two instructions that the PTX for all cannot have, and `wgmma`, which exists on
9.0 alone, is several times as fast as what the others have.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vl3edge.export.errors import ExportError
from vl3edge.runtime.bundle.kernel_set import PORTABLE

from .variants import OVERLAPS, Kernel

PTX_VERSION = 82
MACHINES = {"cubin-8.7": 87, "cubin-8.9": 89, "cubin-9.0": 90, "cubin-12.0": 120}
_HOPPER = 90
_LATER_PTX_VERSION = 87  # the first that knows 12.0; it becomes machine code here
_ALIGNED = 16  # bytes: of every array that a kernel is given


@dataclass(frozen=True)
class Binary:
    """A kernel for one kind of GPU. registers, spilled_bytes: per thread; 0 for PTX, which does not specify them.
    shared_bytes: per block, to request at the launch. overlaps: whether it may be launched beside the one before it.
    """

    content: bytes
    shared_bytes: int
    registers: int = 0
    spilled_bytes: int = 0
    overlaps: bool = False


@dataclass(frozen=True)
class Compiled:
    """entry: the function's name in every binary. scratch: null pointers that follow the arguments."""

    entry: str
    scratch: int
    binaries: dict[str, Binary]


@contextmanager
def private_compiler() -> Iterator[None]:
    """Triton without its cache in the home folder, and without the paths of its sources in what it writes."""
    knobs = triton.knobs
    if knobs.runtime.interpret:
        raise ExportError("TRITON_INTERPRET is set, so Triton compiles nothing: unset it.")
    with (
        tempfile.TemporaryDirectory() as folder,
        knobs.cache.scope(),
        knobs.compilation.scope(),
    ):
        knobs.cache.dir = folder
        knobs.compilation.disable_line_info = True
        yield


def compiled(kernel: Kernel) -> Compiled:
    """Compiles one kernel, inside `private_compiler`, for all that have a use for it; ExportError if that fails."""
    binaries = {}
    first = overlapping = _ptx(kernel, _HOPPER, overlaps=True)
    if not kernel.for_dense:
        first = _ptx(kernel, 80)
        binaries[PORTABLE] = Binary(first.asm["ptx"].encode(), first.metadata.shared)
    for name, capability in MACHINES.items():
        if kernel.for_dense and capability != _HOPPER:
            continue
        if capability < _HOPPER:
            binaries[name] = _assembled(first.asm["ptx"], f"sm_{capability}", first.metadata.shared)
            continue
        again = kernel.tensor_cores and capability != _HOPPER
        special = _ptx(kernel, capability, overlaps=True) if again else overlapping
        ptx = special.asm["ptx"]
        if not kernel.tensor_cores:
            ptx = ptx.replace(f".target sm_{_HOPPER}a", f".target sm_{_HOPPER}")
        binaries[name] = _assembled(ptx, f"sm_{capability}a", special.metadata.shared, overlaps=True)
    parameters = len(re.findall(r"^\s*\.param ", first.asm["ptx"].partition("(")[2].partition(")")[0], re.MULTILINE))
    return Compiled(first.metadata.name, parameters - len(kernel.arguments), binaries)


def versions() -> dict[str, str]:
    """Versions of Triton and of the assembler."""
    return {"triton": str(triton.__version__), "ptxas": str(triton.knobs.nvidia.ptxas.version)}


def _ptx(kernel: Kernel, capability: int, overlaps: bool = False) -> Any:
    """The kernel as Triton compiles it for a compute capability, ten times over."""
    constants = dict(kernel.constants) | {OVERLAPS: overlaps}
    types = dict(kernel.arguments)
    signature = {name: types.get(name, "constexpr") for name in kernel.function.arg_names}
    aligned = {
        (place,): [["tt.divisibility", _ALIGNED]] for place, kind in enumerate(signature.values()) if kind[0] == "*"
    }
    options = {
        "num_warps": kernel.num_warps,
        "num_stages": kernel.num_stages,
        "ptx_version": PTX_VERSION if capability <= _HOPPER else _LATER_PTX_VERSION,
        "enable_fp_fusion": True,
    }
    source = ASTSource(kernel.function, signature, constants, aligned)
    try:
        found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    except Exception as e:  # Triton raises whatever its passes do
        raise ExportError(f"{kernel.function.__name__} does not compile with Triton {triton.__version__}: {e}") from e
    if found.metadata.global_scratch_size or found.metadata.profile_scratch_size:
        raise ExportError(f"{kernel.function.__name__} needs scratch memory, which launches do not provide")
    return found


def _assembled(ptx: str, machine: str, shared_bytes: int, overlaps: bool = False) -> Binary:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={machine}", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ExportError(f"ptxas cannot compile for {machine}: {done.stderr.strip()[-300:]}")
        registers = re.search(r"Used (\d+) registers", done.stderr)
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
        count = int(registers.group(1)) if registers else 0
        return Binary(target.read_bytes(), shared_bytes, count, sum(map(int, spills)), overlaps)
