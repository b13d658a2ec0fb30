"""Kernels as a stage of an export: what it writes, when it says no, and that the runtime finds all it needs there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from fake_driver import CapturingDevice, FakeDriver
from kernel_decoders import Pair, bundle_of, graph_decoder, ids_of, table_of, with_kernels, written
from random_decoders import Quantized
from test_compile import run

from vl3edge.export.cli import main
from vl3edge.export.errors import ExportError
from vl3edge.export.kernels import compile as compiler
from vl3edge.export.kernels import stage
from vl3edge.export.kernels.binaries import MACHINES, Binary, Compiled
from vl3edge.export.kernels.shape import read_shape
from vl3edge.export.kernels.stage import require_kernels, write_kernels
from vl3edge.export.kernels.variants import Kernel, variants
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, hash_file, open_bundle
from vl3edge.runtime.bundle.kernel_set import PORTABLE, has_kernels, kernel_files, read_kernel_set
from vl3edge.runtime.bundle.slim import slim
from vl3edge.runtime.bundle.specs import TextSpec
from vl3edge.runtime.bundle.tuning import Tuning, write_tuning
from vl3edge.runtime.cli import info
from vl3edge.runtime.cli.main import main as show
from vl3edge.runtime.errors import BackendWarning
from vl3edge.runtime.kernels import cuda_launcher
from vl3edge.runtime.kernels.select import KernelDecoders, chosen_decoder

FORMS = (PORTABLE, *MACHINES)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles to nothing but a name: Triton compiles in no process where it interprets."""

    def compiled(kernel: Kernel) -> Compiled:
        binaries = {form: Binary(f"{form} {kernel.name}".encode(), 1 << 10) for form in FORMS}
        return Compiled(kernel.function.__name__, 2, binaries)

    monkeypatch.setattr(compiler, "compiled", compiled)
    monkeypatch.setattr(compiler, "private_compiler", nullcontext)
    monkeypatch.setattr(compiler, "versions", lambda: {"triton": "none"})


def stage_in(folder: Path, text: TextSpec) -> list[tuple[str, int, int]]:
    said: list[tuple[str, int, int]] = []
    write_kernels(folder, text, lambda *progress: said.append(progress))
    return said


@pytest.mark.parametrize("rows", [1, 4])
def test_what_is_written_decodes_with_its_own_tiles(
    uncompiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Every variant that the runtime chooses, with the tiles that a GPU gets."""
    folder, text = written(tmp_path, Quantized(), {"num_layers": 1, "intermediate_size": 128, "num_heads": 2})
    said = stage_in(folder, text)
    bundle = with_kernels(folder, text)
    kernels = {spec.name: spec for spec in read_kernel_set(bundle).manifest.kernels}
    functions = {kernel.name: kernel.function for kernel in variants(read_shape(folder, text))}
    assert kernels.keys() == functions.keys()
    assert said[-1] == ("kernels", len(kernels), len(kernels))
    driver = FakeDriver(CapturingDevice(), kernels, functions, "cubin-8.9")
    monkeypatch.setattr(cuda_launcher, "_import_driver", lambda: driver)
    decoders = KernelDecoders(Backend("rtx", (), "", device=driver.device), bundle)
    pair = Pair(graph_decoder(folder, text), decoders.make(), table_of(folder, text))
    pair.tell(lambda decoder: decoder.resize(rows, 32))
    pair.prefill(ids_of(text, 20))
    for row in range(1, rows):
        pair.prefill(ids_of(text, 1, row), row, logits=False)
    pair.advance(ids_of(text, rows, 9))


def copied_with_kernels(folder: Path) -> Path:
    """The demo bundle with kernels, as an export would leave it."""
    copy = Path(shutil.copytree(DEMO_BUNDLE, folder / "bundle"))
    manifest = open_bundle(copy).manifest
    stage_in(copy, manifest.text)
    added = {f"kernels/{path.name}": hash_file(path) for path in (copy / "kernels").iterdir()}
    text = json.dumps(replace(manifest, files=manifest.files | added).to_json())
    (copy / "bundle.json").write_text(text, encoding="utf-8")
    return copy


def test_a_bundle_vouches_for_its_kernels(uncompiled: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = copied_with_kernels(tmp_path)
    bundle = open_bundle(copy)
    assert show(["info", str(copy)]) == 0
    count = len(read_kernel_set(bundle).manifest.kernels)
    assert f"kernels      {count} of the decoder, as ptx-8.0, cubin-8.7, cubin-8.9, cub" in capsys.readouterr().out
    names = {"kernels.json", "weights.json", *(f"{form}.zip" for form in FORMS)}
    assert {name for name in bundle.manifest.files if "/" in name} == {f"kernels/{name}" for name in names}
    archive = copy / "kernels" / "cubin-8.7.zip"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    with pytest.raises(OSError, match=r"kernels/cubin-8\.7\.zip was changed"):
        open_bundle(copy)


def test_info_says_whether_this_device_is_tuned(
    uncompiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copied_with_kernels(tmp_path)
    driver = FakeDriver(CapturingDevice(), {}, {}, "cubin-8.9")
    monkeypatch.setattr(cuda_launcher, "_import_driver", lambda: driver)
    monkeypatch.setattr(info, "open_device", lambda: driver.device)
    assert show(["info", str(copy)]) == 0
    assert "tuned        not for this device; run `vl3edge tune`" in capsys.readouterr().out
    here = cuda_launcher.CudaLauncher(driver.device, read_kernel_set(open_bundle(copy))).tuned_for
    write_tuning(copy, Tuning(here, ()))
    assert show(["info", str(copy)]) == 0
    assert f"tuned        for {here.device} 8.9, used on this device" in capsys.readouterr().out


@pytest.mark.parametrize(("target", "kept"), [("cuda", True), ("cpu", False)])
def test_a_slimmed_bundle_keeps_what_its_kernels_read(
    uncompiled: None, tmp_path: Path, target: Any, kept: bool
) -> None:
    copy = copied_with_kernels(tmp_path)
    before, weights = kernel_files(open_bundle(copy)), read_kernel_set(open_bundle(copy)).weights
    slim(copy, target)
    bundle = open_bundle(copy)
    assert has_kernels(bundle) == kept
    if kept:
        assert before <= bundle.manifest.files.keys()
        assert read_kernel_set(bundle).weights == weights


def test_auto_takes_kernels_on_gpus_that_they_are_for(uncompiled: None, tmp_path: Path) -> None:
    plain, bundle = open_bundle(DEMO_BUNDLE), open_bundle(copied_with_kernels(tmp_path))
    backends = ("auto", "cpu", "cuda", "rtx", "jetson", "tensorrt")
    assert {chosen_decoder("auto", backend, plain) for backend in backends} == {"onnxruntime"}
    chosen = [chosen_decoder("auto", backend, bundle) for backend in backends]
    assert chosen == ["onnxruntime"] * 3 + ["kernels"] * 3
    for capability, kind in (((7, 5), "onnxruntime"), ((8, 0), "kernels"), ((9, 0), "kernels")):
        device = CapturingDevice()
        device.capability = capability
        assert chosen_decoder("auto", "cuda", bundle, device) == kind
        assert chosen_decoder("auto", "cuda", plain, device) == "onnxruntime"
    assert chosen_decoder("onnxruntime", "rtx", bundle) == "onnxruntime"
    assert chosen_decoder("kernels", "cuda", plain) == "kernels"  # and then there are none, which is an error


@pytest.mark.parametrize("width", [{"hidden_size": 120}, {"intermediate_size": 200}])
def test_a_decoder_that_they_do_not_know_is_named_in_a_line(
    uncompiled: None, tmp_path: Path, width: dict[str, int]
) -> None:
    folder, text = written(tmp_path, "fp16", {"num_layers": 1} | width)
    with pytest.warns(BackendWarning, match=r"has no kernels, ONNX Runtime decodes: .* multiple of 16 inputs, not"):
        stage_in(folder, text)
    assert not (folder / "kernels").exists()
    assert not has_kernels(bundle_of(folder, text))


def test_without_triton_the_export_says_what_to_install(
    checkpoints: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(checkpoints("tiny")), "-o", str(tmp_path / "bundle"), "--quant", "none", "--target", "cuda"]
    assert main(command) == 1
    assert (
        "TRITON_INTERPRET is set, so Triton compiles nothing: unset it, or give --no-kernels" in capsys.readouterr().err
    )
    monkeypatch.setattr(stage, "find_spec", lambda name: None)
    assert main(command) == 1
    assert "pip install 'vl3edge[kernels]', or leave them out with --no-kernels" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(ExportError, match="which is not installed"):
        require_kernels()


@pytest.mark.long
def test_an_export_compiles_them(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    """By the command, in a process where Triton compiles; what it wrote is ELF and PTX."""
    command = ["-m", "vl3edge", "export", checkpoints("tiny"), "-o", tmp_path / "bundle", "--quant", "none"]
    done = run(*command, "--target", "cuda")
    assert done.returncode == 0, done.stderr
    bundle = open_bundle(tmp_path / "bundle")
    kernels = read_kernel_set(bundle)
    assert {spec.function for spec in kernels.manifest.kernels} >= {"product", "gated_product", "attend", "choose"}
    assert kernels.manifest.archives.keys() == {f"{form}.zip" for form in FORMS}
    assert "kernels" in done.stderr
