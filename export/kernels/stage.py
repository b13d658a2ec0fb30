"""The kernel stage of an export. Triton, which compiles them, is imported only if they are requested."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from vl3edge.export.errors import ExportError
from vl3edge.runtime.bundle.kernel_set import FOLDER
from vl3edge.runtime.bundle.specs import TextSpec
from vl3edge.runtime.errors import BackendWarning


def require_kernels() -> None:
    """Raises ExportError, before any work is done, where kernels cannot be compiled."""
    if find_spec("triton") is None:
        raise ExportError(
            "the decoder's kernels for NVIDIA GPUs are compiled by Triton, which is not installed: "
            "pip install 'vl3edge[kernels]', or leave them out with --no-kernels"
        )
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise ExportError("TRITON_INTERPRET is set, so Triton compiles nothing: unset it, or give --no-kernels")


def write_kernels(folder: Path, text: TextSpec, progress: Callable[[str, int, int], None]) -> None:
    """Compiles the kernels of the decoder in `folder` into its folder `kernels/`.

    Warns (BackendWarning) if they do not support the decoder; the bundle is complete without them.
    """
    from .compile import compile_kernels, write_weights
    from .shape import read_shape

    target = folder / FOLDER
    target.mkdir()
    try:
        shape = read_shape(folder, text)
        write_weights(folder, shape, target)
        compile_kernels(shape, target, progress=lambda done, total: progress("kernels", done, total))
    except ExportError as e:
        shutil.rmtree(target)
        warnings.warn(f"the bundle has no kernels, ONNX Runtime decodes: {e}", BackendWarning, stacklevel=2)
