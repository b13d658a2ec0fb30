"""Checks before a model is loaded whether ONNX Runtime's CUDA works here: its libraries, and one kernel.

The wheels of onnxruntime-gpu hold machine code for some GPUs and nothing that a driver could compile for others
(1.31.1: x86-64 7.5, 8.0, 8.6, 8.9, 9.0, 12.0; aarch64 8.9, 9.0, 12.0, 12.1, so neither Orin, 8.7, nor Thor, 11.0).
Where there is none for this GPU, ONNX Runtime need not say so: a launch that failed leaves memory as it was.
"""

from __future__ import annotations

import ctypes
import io
import platform
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError

PROVIDER = "CUDAExecutionProvider"
# y = Relu(x) on two floats, opset 17.
_GRAPH = (
    b'\x08\x08:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01g'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02B\x04\n\x00\x10\x11"
)
INSTALL = "pip install 'vl3edge[cuda]', or on a Jetson onnxruntime-gpu from NVIDIA's Jetson index"


def start_cuda(ort: Any, gpu: str, capability: tuple[int, int]) -> None:
    """Loads CUDA's libraries from the packages that pip installed, if any, and computes two numbers on the GPU.

    gpu, capability: of the device, for the message. Raises BackendError that says what is missing and what to install.
    """
    with redirect_stdout(io.StringIO()):  # what is missing is printed; stdout is for captions
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        try:
            found = _compute(ort)
        except Exception as e:  # ONNX Runtime's errors have no common base class
            if missing := _missing(ort):
                raise BackendError(missing) from e
            raise BackendError(f"{_unusable(gpu, capability)} ({_first_line(e)}): {_other_wheel()}.") from e
    if found is None:
        other = (
            f"ONNX Runtime {ort.__version__} could not start CUDA: check the driver (nvidia-smi), or use backend='cpu'."
        )
        raise BackendError(_missing(ort) or other)
    if found != [0.0, 2.0]:
        raise BackendError(f"{_unusable(gpu, capability)}: {_other_wheel()}.")


def _compute(ort: Any) -> list[float] | None:
    """The graph's result by CUDA; None if the provider did not start."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it would print is said better below
    session = ort.InferenceSession(_GRAPH, options, providers=[PROVIDER], enable_fallback=0)
    if session.get_providers()[0] != PROVIDER:
        return None
    (result,) = session.run(None, {"x": np.array([-1.0, 2.0], np.float32)})
    return [float(value) for value in result]


def _missing(ort: Any) -> str | None:
    """The first library that ONNX Runtime's CUDA needs and the machine lacks, and what installs it.

    To be asked only after it failed: loaded before ONNX Runtime has made itself known to it, it would be of no use.
    """
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as e:
        found = re.match(r"(\S+): cannot open shared object file", str(e))
        if found and found[1] != str(library):
            needs = f"ONNX Runtime {ort.__version__} needs {found[1]}, which this machine does not have"
            return f"{needs}: pip install 'vl3edge[cuda]', which includes it."
    return None


def _unusable(gpu: str, capability: tuple[int, int]) -> str:
    return f"this onnxruntime-gpu cannot compute on {gpu}, compute capability {capability[0]}.{capability[1]}"


def _other_wheel() -> str:
    if platform.machine() == "aarch64":
        return (
            "the wheel on PyPI has no machine code for Jetson; pip uninstall onnxruntime-gpu, then install the one "
            "from NVIDIA's Jetson index for this JetPack; it serves --backend jetson and cuda"
        )
    return "another version of onnxruntime-gpu may have machine code for it, or use backend='cpu'"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
