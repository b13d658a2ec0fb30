"""TensorRT's Python module, whichever flavour: TensorRT for RTX from PyPI, or TensorRT as JetPack and servers have it.

Only what versions 10.3 to 11 of TensorRT and TensorRT for RTX share is used of it. It is imported when it is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ..errors import BackendError

_MODULES = {"rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"), "jetson": ("tensorrt", "tensorrt_bindings")}
_INSTALL = {
    "rtx": "TensorRT for RTX is not installed: pip install 'vl3edge[rtx]' (x86-64 Linux or Windows)",
    "jetson": (
        "TensorRT is not installed: it comes with JetPack (sudo apt install python3-libnvinfer, and a virtual "
        "environment made with --system-site-packages); elsewhere, pip install 'vl3edge[tensorrt]'"
    ),
}


def import_tensorrt(target: str) -> Any:
    """The module for "rtx" or "jetson"; BackendError that says what to install when there is none."""
    for name in _MODULES[target]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError, RuntimeError) as e:  # present, but its libraries or the driver's are not
            raise BackendError(f"{name} is installed but does not load ({e}); {_INSTALL[target]}.") from e
    raise BackendError(f"{_INSTALL[target]}.")


def make_logger(trt: Any, listen: Callable[[str], None] = lambda message: None) -> tuple[Any, list[str]]:
    """A silent logger, and the list that collects its errors.

    listen: called with every message of less weight.
    """
    errors: list[str] = []
    grave = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in grave:
                errors.append(message)
            else:
                listen(message)

    return Logger(), errors
