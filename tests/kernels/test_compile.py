"""Kernels really compiled, without a GPU: what the manifest says, and what the archives hold.

Triton compiles nothing in a process where it interprets, so all of this happens in others.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

pytest.importorskip("triton")

from vl3edge.export.errors import ExportError
from vl3edge.export.kernels.binaries import Binary, Compiled
from vl3edge.export.kernels.compile import _without_spills
from vl3edge.export.kernels.shape import MatrixKind, read_shape
from vl3edge.export.kernels.variants import variants
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH

MACHINES = {"cubin-8.7": 87, "cubin-8.9": 89, "cubin-9.0": 90, "cubin-12.0": 120}
TARGETS = ["ptx-8.0", *MACHINES]
HOPPER, DENSE = "cubin-9.0", ("dequantize", "dense_product")  # which no other GPU has a use for
SHARED_BYTES = {"cubin-8.7": 163 << 10, "cubin-9.0": 227 << 10}  # of a block; elsewhere:
LEAST_SHARED_BYTES = 99 << 10
_COMPILE = """
import sys
from pathlib import Path
from vl3edge.export.graphs.decoder import text_spec
from vl3edge.export.kernels.compile import compile_kernels
from vl3edge.export.errors import ExportError
from vl3edge.export.kernels.binaries import Binary, Compiled
from vl3edge.export.kernels.compile import _without_spills
from vl3edge.export.kernels.shape import read_shape, uniform_shape
from vl3edge.models.synthetic.random import preset
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle

model, folder, *wanted = sys.argv[1:]
if model == "demo":
    shape = read_shape(DEMO_BUNDLE, open_bundle(DEMO_BUNDLE).manifest.text)
else:
    text = preset(model).text
    shape = uniform_shape(text_spec(text), text.rms_norm_eps, bits=4, group=128, head_bits=8)

def is_wanted(kernel):
    constants = dict(kernel.constants)
    facts = {kernel.function.__name__, *(f"{name}={value}" for name, value in constants.items())}
    return not wanted or any(set(one.split()) <= facts for one in wanted)

compile_kernels(shape, Path(folder), is_wanted)
"""


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that may compile."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=False)


def compiled(model: str, folder: Path, *wanted: str) -> dict[str, Any]:
    """Compiles what has all the words of one of `wanted`; the manifest."""
    folder.mkdir(exist_ok=True)
    done = run("-c", _COMPILE, model, folder, *wanted)
    assert done.returncode == 0, done.stderr
    return dict(json.loads((folder / "kernels.json").read_text(encoding="utf-8")))


def check(manifest: dict[str, Any], folder: Path) -> None:
    """Everything that a device relies on before it launches one of them."""
    assert manifest["format"] == "vl3edge-kernels"
    assert set(manifest["archives"]) == {f"{target}.zip" for target in TARGETS}
    for name, archive in manifest["archives"].items():
        content = (folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (archive["bytes"], archive["sha256"])
    names = [kernel["name"] for kernel in manifest["kernels"]]
    assert len(set(names)) == len(names) > 0
    for target in TARGETS:
        of_it = [kernel for kernel in manifest["kernels"] if target == HOPPER or kernel["function"] not in DENSE]
        with zipfile.ZipFile(folder / f"{target}.zip") as archive:
            assert archive.namelist() == [kernel["name"] for kernel in of_it]
            for kernel in of_it:
                check_binary(kernel, target, archive.read(kernel["name"]))


def check_binary(kernel: dict[str, Any], target: str, content: bytes) -> None:
    binary = kernel["binaries"][target]
    assert hashlib.sha256(content).hexdigest() == binary["sha256"]
    assert binary["shared_bytes"] <= SHARED_BYTES.get(target, LEAST_SHARED_BYTES)
    assert binary["spilled_bytes"] == 0, kernel
    assert binary["overlaps"] == (MACHINES.get(target, 0) >= 90)
    if target in MACHINES:
        assert content[:4] == b"\x7fELF"
        (machine,), (flags,) = struct.unpack_from("<H", content, 18), struct.unpack_from("<I", content, 48)
        assert machine == 190  # CUDA
        assert MACHINES[target] in (flags & 255, flags >> 8 & 255)
        assert 0 < binary["registers"] * 32 * kernel["num_warps"] <= 65536
        return
    text = content.decode()
    assert ".version 8.2\n" in text
    assert ".target sm_80\n" in text
    assert not re.search(r"^\s*\.(loc|file)\b", text, re.MULTILINE)  # it would name folders of the machine
    head = text[text.index(f".entry {kernel['function']}(") :]
    sizes = re.findall(r"\.param \.(u64|u32|f32)", head[: head.index(")")])
    expected = ["u64" if kind.startswith("*") else "u32" for _, kind in kernel["arguments"]]
    assert sizes == expected + ["u64"] * kernel["scratch"]
    assert f".reqntid {32 * kernel['num_warps']}" in head


def test_kernels_of_the_demo_compile_to_the_same_bytes_twice(tmp_path: Path) -> None:
    wanted = ("product K=128 BITS=4 RESIDUAL=True BN=4", "prompt_product K=384 BM=16")
    first = compiled("demo", tmp_path / "first", *wanted)
    check(first, tmp_path / "first")
    assert {kernel["function"] for kernel in first["kernels"]} == {"product", "prompt_product"}
    assert compiled("demo", tmp_path / "second", *wanted) == first
    assert sum(path.stat().st_size for path in (tmp_path / "first").iterdir()) < 1 << 17


def test_kernels_of_the_2b_sizes_compile(tmp_path: Path) -> None:
    several = ("few_product K=8960 BM=8 BN=64", "dense_product K=1536 BN=64 BIAS=True", "dequantize K=8960", "choose")
    manifest = compiled("2b", tmp_path, "attend SPLITS=8", "product K=8960 C=512", *several)
    check(manifest, tmp_path)
    attend, product = (
        next(kernel for kernel in manifest["kernels"] if kernel["function"] == name) for name in ("attend", "product")
    )
    assert len({kernel["function"] for kernel in manifest["kernels"]}) == 6
    assert dict(attend["arguments"])["cache_ptr"] == "*i64"
    assert (attend["constants"]["HEADS"], attend["constants"]["KV_HEADS"]) == (12, 2)
    with zipfile.ZipFile(tmp_path / "ptx-8.0.zip") as archive:
        step, row = (archive.read(kernel["name"]).decode() for kernel in (attend, product))
    # Keys and values come 16 bytes at a time though their address is in memory, and words of codes likewise.
    assert "cp.async.cg.shared.global" in step
    assert "cp.async.ca" not in step  # which copies less
    assert "ld.global.v4.b32" in row


@pytest.mark.long
@pytest.mark.parametrize("model", ["demo", "2b", "7b"])
def test_every_kernel_compiles_and_none_spills(model: str, tmp_path: Path) -> None:
    manifest = compiled(model, tmp_path)
    check(manifest, tmp_path)
    assert sum(archive["bytes"] for archive in manifest["archives"].values()) < 8 << 20


def test_what_cannot_be_compiled_is_said_in_one_line(tmp_path: Path) -> None:
    command = ("-m", "vl3edge.export.kernels.compile")
    interpreting = run(*command, DEMO_BUNDLE, "-o", tmp_path / "out", TRITON_INTERPRET="1")
    nowhere = run(*command, tmp_path, "-o", tmp_path / "out")
    for done, said in ((interpreting, "TRITON_INTERPRET"), (nowhere, "bundle.json")):
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.startswith("vl3edge: error: ")
        assert done.stderr.count("\n") == 1


def test_the_shape_of_a_quantized_bundle() -> None:
    shape = read_shape(DEMO_BUNDLE, open_bundle(DEMO_BUNDLE).manifest.text)
    assert shape.head == shape.embeddings == MatrixKind(128, 8, 32)
    assert shape.matrices["down"] == {MatrixKind(384, 4, 32)}
    assert shape.gated == {(MatrixKind(128, 4, 32), MatrixKind(128, 4, 32))}
    assert shape.epsilon == pytest.approx(1e-6)


def test_the_shape_of_a_bundle_that_is_not_quantized(bundle: Path) -> None:
    shape = read_shape(bundle, open_bundle(bundle).manifest.text)
    assert shape.head == MatrixKind(96, 16, 32)
    assert shape.embeddings == MatrixKind(96, 32, 96)
    assert shape.matrices["down"] == {MatrixKind(160, 16, 32)}
    assert shape.matrices["output"] == {MatrixKind(128, 16, 64)}


def renamed(folder: Path, old: str, new: str) -> Path:
    """A folder with the demo's decoder graph, one of whose nodes is called otherwise."""
    graph = onnx.load(DEMO_BUNDLE / DECODER_GRAPH, load_external_data=False)
    (node,) = [node for node in graph.graph.node if node.name == old]
    node.name = new
    (folder / DECODER_GRAPH).write_bytes(graph.SerializeToString())
    return folder


def test_graphs_of_another_version_are_refused(tmp_path: Path) -> None:
    text = open_bundle(DEMO_BUNDLE).manifest.text
    for old, new in (("layers.2.gate.matmul", "layers.2.gate_up.matmul"), ("lm_head.matmul", "head.matmul")):
        with pytest.raises(ExportError, match="export again"):
            read_shape(renamed(tmp_path, old, new), text)


def test_a_variant_that_spills_is_left_out_where_another_does_not() -> None:
    shape = read_shape(DEMO_BUNDLE, open_bundle(DEMO_BUNDLE).manifest.text)
    kernels = [kernel for kernel in variants(shape) if kernel.function.__name__ in ("attend_prompt", "choose")]
    clean, spilling = (Compiled("name", 2, {"cubin-8.7": Binary(b"", 0, 99, spilled)}) for spilled in (0, 8))
    prompts = [kernel for kernel in kernels if kernel.function.__name__ == "attend_prompt"]
    results = [clean if kernel is prompts[1] else spilling for kernel in kernels]
    kept, their_results = _without_spills(kernels, results)
    (choice,) = set(kernels) - set(prompts)  # the only one of its purpose
    assert set(kept) == {prompts[1], choice}
    assert their_results == [results[kernels.index(kernel)] for kernel in kept]


def test_settings_that_differ_by_layer_have_kernels_of_their_own() -> None:
    uniform = read_shape(DEMO_BUNDLE, open_bundle(DEMO_BUNDLE).manifest.text)
    exact = MatrixKind(128, 8, 32, zeros=True)
    mixed = replace(
        uniform,
        matrices=uniform.matrices | {"qkv": uniform.matrices["qkv"] | {exact}},
        gated=uniform.gated | {(exact, MatrixKind(128, 4, 32))},
    )
    added = [dict(kernel.constants) for kernel in set(variants(mixed)) - set(variants(uniform))]
    assert all(constants["BITS"] == 8 and constants["ZEROS"] for constants in added)
    assert any(constants.get("UP_BITS") == 4 for constants in added)
    assert any(constants.get("BIAS") and "BM" in constants for constants in added)
    assert len({kernel.name for kernel in variants(mixed)}) == len(variants(mixed))
