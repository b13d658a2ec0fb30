"""The backends by name. To add one, name it in `BACKENDS` and open it in `select_backend`.

There is no fallback from one backend to another: what was asked for runs or fails, and `info` names it.
"""

from __future__ import annotations

from ..errors import BackendError, ConfigError
from .cuda import open_device
from .cuda_start import INSTALL, PROVIDER, start_cuda
from .onnxruntime import Backend, import_onnxruntime
from .tensorrt import TARGET_OF, open_backend

BACKENDS = ("auto", "cpu", "cuda", *TARGET_OF)
MAX_THREADS = 1024


def select_backend(name: str = "auto", num_threads: int = 0, decodes: bool = True) -> Backend:
    """The backend of this name; "auto" takes CUDA when this ONNX Runtime was built with it, else the CPU.

    "rtx", "jetson" and "tensorrt" run the vision path in TensorRT and the decoder as "cuda" does.
    decodes: False where the decoder does not use ONNX Runtime, which then need not be installed beside TensorRT.

    Raises ConfigError for an unknown name, BackendError when the backend is not available here.
    """
    if name not in BACKENDS:
        raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, not {name!r}")
    if not 0 <= num_threads <= MAX_THREADS:
        raise ConfigError(f"the number of threads must be 0 (one per core) to {MAX_THREADS}, not {num_threads}")
    if name in TARGET_OF:
        return open_backend(name, lambda: select_backend("cuda", num_threads) if decodes else _without_onnxruntime())
    ort = import_onnxruntime()
    available = ort.get_available_providers()
    has_cuda = PROVIDER in available
    if name == "cuda" and not has_cuda:
        raise BackendError(f"this ONNX Runtime has no CUDA (it offers {', '.join(available)}): {INSTALL}.")
    if name == "cuda" or (name == "auto" and has_cuda):
        device = open_device()
        start_cuda(ort, device.name, device.capability)
        return Backend("cuda", (PROVIDER, "CPUExecutionProvider"), ort.__version__, num_threads, device)
    return Backend("cpu", ("CPUExecutionProvider",), ort.__version__, num_threads)


def _without_onnxruntime() -> Backend:
    return Backend("cuda", (), "", device=open_device())
