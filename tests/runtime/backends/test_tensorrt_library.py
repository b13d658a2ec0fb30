"""TensorRT's Python modules: which are looked for, and what is said where there is none."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_tensorrt import FakeTensorRt

from vl3edge.runtime.backends.cuda import open_device
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.backends.tensorrt_library import import_tensorrt
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.errors import BackendError


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("rtx", "tensorrt_rtx"),
        ("rtx", "tensorrt_rtx_bindings"),
        ("jetson", "tensorrt"),
        ("jetson", "tensorrt_bindings"),
    ],
)
def test_the_package_may_have_either_name(monkeypatch: pytest.MonkeyPatch, target: str, name: str) -> None:
    def only(asked: str) -> Any:
        if asked != name:
            raise ModuleNotFoundError(asked)
        return SimpleNamespace(name=asked)

    monkeypatch.setattr(importlib, "import_module", only)
    assert import_tensorrt(target).name == name


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BackendError, match=r"pip install 'vl3edge\[rtx\]'"):
        import_tensorrt("rtx")
    for backend in ("jetson", "tensorrt"):
        with pytest.raises(BackendError, match=r"it comes with JetPack .* pip install 'vl3edge\[tensorrt\]'"):
            select_backend(backend)
    with pytest.raises(BackendError, match="pip install cuda-python"):
        open_device()


def test_the_command_says_what_a_bundle_lacks(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vl3edge.runtime.backends.tensorrt_build.import_tensorrt", lambda target: FakeTensorRt({}))
    assert main(["build", str(bundle), "--target", "rtx"]) == 1
    err = capsys.readouterr().err
    assert "vision-tensorrt.onnx" in err
    assert "vl3edge export CHECKPOINT -o BUNDLE --target rtx" in err
    assert main(["build", str(bundle), "--target", "jetson", "--compute-capability", "8.9"]) == 2
    assert "--compute-capability is for --target rtx" in capsys.readouterr().err
