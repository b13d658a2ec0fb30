"""With `--backend jetson` and the kernels nothing imports ONNX Runtime, and the extra does not install it."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")
pytest.importorskip("tomllib")

from fake_driver import CapturingDevice, FakeDriver
from gpu_bundles import gpu_bundle
from wheel_sizes import EXTRA, JETPACKS, RESULTS, requirements

from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.backends import select, tensorrt
from vl3edge.runtime.backends.onnxruntime import PatchLimit
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, hash_file, open_bundle
from vl3edge.runtime.bundle.kernel_set import read_kernel_set
from vl3edge.runtime.errors import BackendError
from vl3edge.runtime.kernels import cuda_launcher
from vl3edge.runtime.kernels.select import chosen_decoder


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Bundle, dict[str, Any]]:
    """The demo bundle with a random decoder of one layer, and its kernels."""
    bundle, functions = gpu_bundle(tmp_path, vocab_size=448)
    folder, text = bundle.folder, bundle.manifest.text
    for path in DEMO_BUNDLE.iterdir():
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    files = {name: hash_file(folder / name) for name in names}
    return Bundle(folder, replace(open_bundle(DEMO_BUNDLE).manifest, text=text, files=files)), functions


@pytest.mark.parametrize("name", ["jetson", "rtx"])
def test_an_answer_on_a_jetson_needs_no_onnx_runtime(
    exported: tuple[Bundle, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bundle, functions = exported
    config, question = GenerationConfig(max_new_tokens=3), "What?"
    frames = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)
    reference = VideoLlama3(bundle, select_backend("cpu", 1))
    clip = reference.encode(frames, kind="video")  # TensorRT would; it is not here
    expected = reference.ask(clip, question, config).token_ids

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="ONNX Runtime is not installed"):  # the block holds
        select_backend("cpu")
    kernels = {spec.name: spec for spec in read_kernel_set(bundle).manifest.kernels}
    device = CapturingDevice()
    driver = FakeDriver(device, kernels, functions, "cubin-8.9")
    monkeypatch.setattr(cuda_launcher, "_import_driver", lambda: driver)
    monkeypatch.setattr(select, "open_device", lambda: device)
    monkeypatch.setattr(tensorrt, "import_tensorrt", lambda target: object())
    monkeypatch.setattr(tensorrt.TensorRtBackend, "frame_limits", lambda self, bundle: PatchLimit())  # of its plans
    kind = chosen_decoder("auto", name, bundle)
    assert kind == "kernels"
    model = VideoLlama3(bundle, select_backend(name, decodes=kind == "onnxruntime"), decoder=kind)
    assert model.ask(clip, question, config).token_ids == expected
    assert driver.launches


def test_the_wheels_of_a_jetson_are_few_and_all_there() -> None:
    """As pip downloaded them, for the requirements of today."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert found["extra"] == EXTRA == "jetson"
    for name, (python, _) in JETPACKS.items():
        device = found["devices"][name]
        assert (device["python"], device["requirements"]) == (python, requirements(python))
        assert device["bytes"] == sum(device["wheels"].values()) < 150_000_000
        assert all(wheel.endswith(("aarch64.whl", "none-any.whl")) for wheel in device["wheels"])
        packages = {wheel.partition("-")[0] for wheel in device["wheels"]}
        assert "cuda_bindings" in packages
        assert not {package for package in packages if package.startswith(("onnxruntime", "nvidia", "torch", "triton"))}
