"""What ONNX Runtime's CUDA says before a model is loaded, with a stand-in for a GPU build of it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_tensorrt import FakeDevice

from vl3edge.runtime.backends import cuda_start, select
from vl3edge.runtime.backends import tensorrt as tensorrt_backend
from vl3edge.runtime.backends.cuda_start import PROVIDER, start_cuda
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.errors import BackendError

ORIN, H100 = ("Orin", (8, 7)), ("NVIDIA H100", (9, 0))


class FakeOrt:
    """onnxruntime-gpu. result: what its CUDA makes of the graph, an error, or None where CUDA does not start."""

    __version__ = "1.31.1"
    SessionOptions = onnxruntime.SessionOptions

    def __init__(self, folder: Path, result: Any, library: bytes | None = None) -> None:
        self.__file__ = str(folder / "__init__.py")
        self.preloaded = 0
        self._result = result
        (folder / "capi").mkdir()
        if library is not None:
            (folder / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(library)

    def get_available_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.preloaded += 1
        print("Failed to load libcudnn.so.9")

    def InferenceSession(self, graph: bytes, options: Any, providers: list[str], enable_fallback: int) -> Any:
        assert (providers, enable_fallback, self.preloaded) == ([PROVIDER], 0, 1)
        if self._result is None:
            return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
        return SimpleNamespace(get_providers=lambda: [PROVIDER, "CPUExecutionProvider"], run=self._run)

    def _run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        if isinstance(self._result, Exception):
            raise self._result
        return [np.array(self._result, np.float32)]


def test_the_graph_is_one_that_onnx_runtime_takes() -> None:
    session = onnxruntime.InferenceSession(cuda_start._GRAPH, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.array([-1.0, 2.0], np.float32)})
    assert found.tolist() == [0.0, 2.0]


def test_libraries_are_loaded_first_and_stdout_stays_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ort = FakeOrt(tmp_path, [0.0, 2.0])
    start_cuda(ort, *H100)
    assert ort.preloaded == 1
    assert capsys.readouterr().out == ""


def test_an_older_one_that_loads_nothing_beforehand_starts_too(tmp_path: Path) -> None:
    ort = FakeOrt(tmp_path, [0.0, 2.0])
    plain = SimpleNamespace(
        SessionOptions=ort.SessionOptions,
        InferenceSession=lambda *a, **k: SimpleNamespace(get_providers=lambda: [PROVIDER], run=ort._run),
    )
    start_cuda(plain, *H100)


@pytest.mark.parametrize("name", ["auto", "cuda", "rtx", "jetson", "tensorrt"])
def test_every_backend_with_cuda_is_tried_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ort = FakeOrt(tmp_path, [0.0, 2.0])
    monkeypatch.setattr(select, "import_onnxruntime", lambda: ort)
    monkeypatch.setattr(select, "open_device", FakeDevice)
    monkeypatch.setattr(tensorrt_backend, "import_tensorrt", lambda target: object())
    assert select_backend(name).providers[0] == PROVIDER
    assert ort.preloaded == 1
    ort._result, ort.preloaded = [0.0, 0.0], 0
    with pytest.raises(BackendError, match=r"cannot compute on Fake GPU, compute capability 8\.9"):
        select_backend(name)


@pytest.mark.parametrize("name", ["rtx", "jetson", "tensorrt"])
def test_beside_tensorrt_onnx_runtime_is_needed_to_decode_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # not installed
    monkeypatch.setattr(select, "open_device", FakeDevice)
    monkeypatch.setattr(tensorrt_backend, "import_tensorrt", lambda target: object())
    with pytest.raises(BackendError, match="ONNX Runtime is not installed"):
        select_backend(name)
    backend = select_backend(name, decodes=False)
    assert (backend.name, backend.providers, backend.decodes_on_gpu) == (name, (), False)
    assert isinstance(backend.device, FakeDevice)


@pytest.mark.parametrize("result", [[0.0, 0.0], [-1.0, 2.0], [np.nan, 2.0]])
@pytest.mark.parametrize(
    ("machine", "advice"), [("aarch64", "NVIDIA's Jetson index"), ("x86_64", "another version of onnxruntime-gpu")]
)
def test_kernels_that_never_ran_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, advice: str, result: list[float]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(BackendError, match=rf"cannot compute on Orin, compute capability 8\.7: .*{advice}") as e:
        start_cuda(FakeOrt(tmp_path, result), *ORIN)
    assert "\n" not in str(e.value)


def test_an_error_of_the_run_is_told(tmp_path: Path) -> None:
    error = RuntimeError("CUDA error 209: no kernel image is available for execution on the device\nmore")
    with pytest.raises(BackendError, match=r"8\.7 \(CUDA error 209: no kernel image .* on the device\): "):
        start_cuda(FakeOrt(tmp_path, error), *ORIN)


@pytest.mark.parametrize("result", [None, RuntimeError("CUDA_PATH is set but CUDA wasn't able to be loaded")])
@pytest.mark.parametrize("library", ["libcublasLt.so.13", "libcudnn.so.9"])
def test_a_missing_library_and_what_installs_it_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, result: Any
) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{library}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr("ctypes.CDLL", refuse)
    with pytest.raises(BackendError, match=rf"1\.31\.1 needs {library}, .*pip install 'vl3edge\[cuda\]'"):
        start_cuda(FakeOrt(tmp_path, result, b""), *H100)


@pytest.mark.parametrize("library", [None, b"not a library"])
def test_what_does_not_start_for_another_reason_names_the_driver(tmp_path: Path, library: bytes | None) -> None:
    with pytest.raises(BackendError, match="could not start CUDA: check the driver"):
        start_cuda(FakeOrt(tmp_path, None, library), *H100)
