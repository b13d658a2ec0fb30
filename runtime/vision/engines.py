"""Where the encoder and the projectors run: the vision engine and one projector engine per kind of media.

Attention is per frame, so frames are a batch, encoded in chunks of bounded memory. The projector sees kept tokens only:
that is where pruning saves work. Engines are loaded at first use; a model that is only asked about videos never loads
the image projector.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np

from ..backends.features import Features, on_host
from ..backends.onnxruntime import Backend, Engine
from ..backends.warm_up import WarmUp
from ..bundle.bundle import Bundle


class VisionEngines:
    """The vision encoder and the projectors of a bundle."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._bundle = bundle
        self._backend = backend
        self._engines: dict[str, Engine] = {}
        self._patch_size = bundle.manifest.vision.patch_size
        self._frame_limits = backend.frame_limits(bundle)
        self._warming: WarmUp | None = None

    @property
    def runs_beside_decoder(self) -> bool:
        """Whether encoding may overlap with prefilling. On a CPU both want every core, and would only share them."""
        return self._backend.name != "cpu"

    def warm_up(self) -> None:
        """On backend "cuda", starts loading the engines for videos and running them once, in a thread that the first
        use waits for.

        TensorRT's engines are loaded at first use, as on a CPU.
        """
        if self._backend.name == "cuda":
            self._warming = WarmUp(self._run_once)

    def wait(self) -> None:
        """Waits until warming up is done."""
        if self._warming is not None:
            self._warming.wait()

    def _run_once(self) -> None:
        side = self._patch_size * self._bundle.manifest.processor.video.merge_size
        features = self.features(np.zeros((1, side, side, 3), np.uint8))
        if self._bundle.manifest.kind == "encoder":
            return
        self.tokens(features, "video", np.ones((1, 1), np.bool_))

    @property
    def max_patches(self) -> int | None:
        """Limit of one frame: larger ones must be resized; None for any size."""
        return self._frame_limits.max_patches

    def frames_per_call(self, height: int, width: int) -> int:
        """How many frames of this size in pixels are encoded at once, at least one."""
        return self._frame_limits.frames_per_call((height // self._patch_size) * (width // self._patch_size))

    def features(self, frames: np.ndarray) -> Features:
        """Features [F, h, w, C], float32 or float16, of frames uint8 [F, H, W, 3]; h and w count patches.

        They stay where the engine leaves them: `features.on_host` copies them to an array.
        """
        return self._engine("vision").run({"frames": frames})[0]

    def tokens(self, features: Features, kind: str, keep: np.ndarray) -> np.ndarray:
        """Visual tokens float32 [K, hidden] of features [F, h, w, C].

        kind: "image" or "video", which choose the merge size. keep: bool [F, tokens of a frame], K of them true.
        """
        indices = np.flatnonzero(keep)
        return on_host(self._engine(f"projector-{kind}").run({"features": features, "keep": indices})[0])

    def _engine(self, name: str) -> Engine:
        self.wait()
        if name not in self._engines:
            device = self._backend.device  # a step that is captured meanwhile would be spoiled
            with device.lock if device is not None else nullcontext():
                self._engines[name] = self._backend.graph(self._bundle, name)
        return self._engines[name]
