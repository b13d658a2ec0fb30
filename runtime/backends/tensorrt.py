"""The backends "rtx", "jetson", "tensorrt": vision in TensorRT, the decoder in ONNX Runtime or our own kernels.

Whatever is missing is an error that says which command to run; nothing falls back to the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..bundle.bundle import Bundle
from ..bundle.plans import InstalledEngines, choose_engines, plans_of, read_engine_sets
from ..bundle.profiles import Profile, frames_per_call, max_patches
from ..bundle.specs import MediaSpec
from ..errors import BackendError
from .buffers import DeviceMemory
from .cuda import Device
from .onnxruntime import Backend, Engine, FrameLimits
from .tensorrt_engine import TensorRtEngine
from .tensorrt_library import import_tensorrt
from .tensorrt_vision import BlockProjector, ResidentPatchEncoder

TARGET_OF = {"rtx": "rtx", "jetson": "jetson", "tensorrt": "jetson"}
"""Backend names and the target whose plans they run: "tensorrt" is TensorRT proper on any GPU, built as for Jetson."""

RUNTIME_CACHE = "runtime.cache"


@dataclass(frozen=True)
class ProfileLimits:
    """What the profiles of the vision plan take."""

    profiles: tuple[Profile, ...]

    @property
    def max_patches(self) -> int | None:
        return max_patches(self.profiles)

    def frames_per_call(self, patches: int) -> int:
        return max(1, frames_per_call(self.profiles, patches))


@dataclass(frozen=True)
class TensorRtBackend(Backend):
    """ONNX Runtime's providers for the decoder; the library for the vision path. Use `open_backend`."""

    target: str = "rtx"
    library: Any = None
    _loaded: dict[str, TensorRtEngine] = field(default_factory=dict, compare=False)

    @property
    def vision_runtime(self) -> str:
        flavour = "TensorRT for RTX" if self.target == "rtx" else "TensorRT"
        return f"{flavour} {self.library.__version__} on {self._gpu.name}"

    def graph(self, bundle: Bundle, name: str) -> Engine:
        engines = self._engines(bundle)
        if name == "vision":
            profiles = engines.spec.plans["vision"].profiles
            vision, memory = bundle.manifest.vision, DeviceMemory(self._gpu)
            plan = self.plan(engines, "vision")
            return ResidentPatchEncoder(plan, profiles, vision.patch_size, memory, vision.hidden_size)
        media: MediaSpec = getattr(bundle.manifest.processor, name.rpartition("-")[2])
        profiles = engines.spec.plans["projector"].profiles
        plan = self.plan(engines, "projector")  # one plan for both kinds of media
        return BlockProjector(plan, profiles, media.merge_size, bundle.manifest.text.hidden_size)

    def vision_file(self, bundle: Bundle, name: str = "vision") -> str:
        plan = "vision" if name == "vision" else "projector"
        return self._engines(bundle).plan_path(plan).relative_to(bundle.folder).as_posix()

    def frame_limits(self, bundle: Bundle) -> FrameLimits:
        return ProfileLimits(self._engines(bundle).spec.plans["vision"].profiles)

    @property
    def _gpu(self) -> Device:
        if self.device is None:
            raise BackendError("this backend has no device; make it with select_backend")
        return self.device

    def _engines(self, bundle: Bundle) -> InstalledEngines:
        needed = plans_of(bundle.manifest)
        found = [
            engines
            for engines in read_engine_sets(bundle.folder, self.target)
            if all(plan in engines.spec.plans for plan in needed)
        ]
        gpu = self._gpu
        return choose_engines(found, self.target, str(self.library.__version__), gpu.name, gpu.capability)

    def plan(self, engines: InstalledEngines, name: str) -> TensorRtEngine:
        """One of an installed set's, loaded once."""
        path = engines.plan_path(name)
        key = str(path)
        if key not in self._loaded:
            cache = path.with_name(f"{name}.{RUNTIME_CACHE}") if self.target == "rtx" else None
            self._loaded[key] = TensorRtEngine(self.library, self._gpu, path, engines.spec.plans[name], cache)
        return self._loaded[key]


def open_backend(name: str, decoder: Callable[[], Backend]) -> TensorRtBackend:
    """The TensorRT backend of this name, with the decoder where the backend that `decoder` gives runs.

    Raises BackendError when TensorRT, cuda-python, the driver or the GPU is missing.
    """
    target = TARGET_OF[name]
    library = import_tensorrt(target)
    other = decoder()
    return TensorRtBackend(name, other.providers, other.version, other.num_threads, other.device, target, library)
