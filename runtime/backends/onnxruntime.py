"""ONNX Runtime behind a small protocol: what the vision path and the decoder need of an inference engine.

The module is imported only when an engine is made, because the base install has no ONNX Runtime (two distributions
provide the one module); the error then says which extra to install. `select.py` chooses the backend.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..bundle.bundle import Bundle
from ..bundle.file_names import fp16_file
from ..errors import BackendError, BundleError
from ..host import adds_8_bit_products_exactly
from .cuda import Device
from .cuda_start import PROVIDER as _CUDA
from .limited_device import limited

PATCHES_PER_CALL = 2048
"""Bounds the encoder's activations on a CPU: 150 MB at the released models' width. More at once is not faster there."""
GPU_PATCHES_PER_CALL = 8192
_INSTALL = "pip install 'vl3edge[cpu]' (or [cuda], [rtx] on an NVIDIA GPU)"


class Engine(Protocol):
    """One compiled graph: named arrays in, arrays out; either may be a buffer on the GPU (`features.py`)."""

    def run(self, inputs: Any) -> list[Any]: ...


class FrameLimits(Protocol):
    """How many frames the vision engine takes at once."""

    @property
    def max_patches(self) -> int | None:
        """Of one frame; None for any number."""
        ...

    def frames_per_call(self, patches: int) -> int:
        """How many frames of `patches` patches fit in one call; at least one."""
        ...


@dataclass(frozen=True)
class PatchLimit:
    """Frames of any size, so many patches at once."""

    patches_per_call: int = PATCHES_PER_CALL
    max_patches: int | None = None

    def frames_per_call(self, patches: int) -> int:
        return max(1, self.patches_per_call // patches)


@dataclass(frozen=True)
class Backend:
    """Where graphs run. num_threads 0 leaves the choice to ONNX Runtime.

    name: "cpu" or "cuda" for ONNX Runtime alone; `tensorrt.py` has those with TensorRT.
    device: the GPU, whose one stream everything runs in; None on a CPU.
    memory_limit: of the GPU's memory, in bytes; None without one. Set it by `within`.
    """

    name: str
    providers: tuple[str, ...]
    version: str
    num_threads: int = 0
    device: Device | None = field(default=None, compare=False)
    memory_limit: int | None = field(default=None, kw_only=True)

    @property
    def decodes_on_gpu(self) -> bool:
        """Whether the decoder runs in ONNX Runtime's CUDA provider."""
        return self.providers[:1] == (_CUDA,)

    def within(self, memory_limit: int | None) -> Backend:
        """The backend on a GPU of which so many bytes may be taken; the same without a limit, and on a CPU."""
        if memory_limit is None or self.device is None:
            return self
        return replace(self, device=limited(self.device, memory_limit), memory_limit=memory_limit)

    def session(self, path: Path, captures: bool = False) -> Any:
        """An onnxruntime.InferenceSession of the graph at path; BundleError if it cannot be loaded.

        captures: on a GPU, runs can be captured as CUDA graphs (`decode/graph.py`).
        """
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.num_threads
        # A pattern is a second arena for sizes seen before: 290 MB for an encoder of 86 M weights, and no faster.
        options.enable_mem_pattern = False
        if not adds_8_bit_products_exactly():  # wider sums, at less than half the speed
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            session = ort.InferenceSession(str(path), options, providers=self._providers(captures))
        except Exception as e:  # ONNX Runtime's errors have no common base class
            raise BundleError(f"{path} cannot be loaded by ONNX Runtime {self.version}: {_first_line(e)}") from e
        if session.get_providers()[0] != self.providers[0]:
            raise BackendError(
                f"ONNX Runtime could not start {self.providers[0]} (it offers {', '.join(session.get_providers())}); "
                "check the driver, or use backend='cpu'."
            )
        return session

    def _providers(self, captures: bool) -> list[str | tuple[str, dict[str, str]]]:
        """The providers with their options."""
        if self.device is None or not self.decodes_on_gpu:
            return list(self.providers)
        options = {"user_compute_stream": str(self.device.stream)}
        if self.memory_limit is not None:
            options["gpu_mem_limit"] = str(self.device.free_bytes())
        if captures:
            options["enable_cuda_graph"] = "1"
        return [(_CUDA, options), *self.providers[1:]]

    def graph(self, bundle: Bundle, name: str) -> Engine:
        """One of the vision path's graphs: "vision", "projector-image" or "projector-video"."""
        file = self.vision_file(bundle, name)
        session = self.session(bundle.path(file))
        if self.device is None:
            return OrtEngine(session)
        if file != fp16_file(name):
            return OrtEngine(session, self.device.lock)
        from .cuda_vision import cuda_engine  # it builds on this module

        return cuda_engine(session, self.device, name, bundle.manifest.vision.patch_size)

    def vision_file(self, bundle: Bundle, name: str = "vision") -> str:
        """The file in which this backend finds one of the vision path's graphs.

        On a GPU the float16 graphs, or the float32 ones in bundles that were exported before there were any.
        """
        fp16 = self.device is not None and all(
            fp16_file(graph) in bundle.manifest.files for graph in bundle.manifest.vision_graphs
        )
        return fp16_file(name) if fp16 else f"{name}.onnx"

    def frame_limits(self, bundle: Bundle) -> FrameLimits:
        """How many frames the vision graph takes at once; BackendError if it cannot run here."""
        file = self.vision_file(bundle)
        bundle.path(file)  # it may have been slimmed for another backend
        if self.name == "cuda" and bundle.manifest.vision_quantization.bits == 8 and file == "vision.onnx":
            raise BackendError(
                f"the encoder of {bundle.folder} is quantized to 8 bits, which ONNX Runtime runs on CPUs only, and "
                "there is no float16 encoder: export it again with --target cuda, or use backend='cpu'."
            )
        return PatchLimit(GPU_PATCHES_PER_CALL if self.name == "cuda" else PATCHES_PER_CALL)

    @property
    def vision_runtime(self) -> str:
        """Name of the library that runs the vision path."""
        return f"ONNX Runtime {self.version}"


class OrtEngine:
    """An ONNX Runtime session as an `Engine`. exclusive: held while it runs."""

    def __init__(self, session: Any, exclusive: AbstractContextManager[Any] | None = None) -> None:
        self._session = session
        self._exclusive = exclusive or nullcontext()

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Runs the graph; returns its outputs in the graph's order."""
        with self._exclusive:
            return list(guarded(self._session.run, None, inputs))


def guarded(call: Callable[..., Any], *arguments: Any) -> Any:
    """Wraps a call of ONNX Runtime, whose errors have no common base class: failures become a one-line BackendError."""
    try:
        return call(*arguments)
    except Exception as e:
        raise BackendError(f"ONNX Runtime failed: {_first_line(e)}") from e


def import_onnxruntime() -> Any:
    """The onnxruntime module; BackendError that says what to install when there is none."""
    try:
        import onnxruntime
    except ImportError as e:
        raise BackendError(f"ONNX Runtime is not installed: {_INSTALL}.") from e
    return onnxruntime


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
