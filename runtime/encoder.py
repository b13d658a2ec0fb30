"""VideoLlama3Encoder: the vision encoder of a bundle alone, for search. No decoder is loaded, none need be there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from .backends.onnxruntime import Backend
from .backends.select import select_backend
from .bundle.bundle import Bundle, bundle_folder, open_bundle
from .media.limits import DEFAULT_LIMITS, MediaLimits
from .vision.frame_embedder import FrameEmbedder


class VideoLlama3Encoder(FrameEmbedder):
    """A loaded vision encoder. Use `VideoLlama3Encoder.load`. Not thread-safe: one call at a time."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        memory_limit: int | None = None,
        limits: MediaLimits = DEFAULT_LIMITS,
    ) -> None:
        alone = replace(bundle, manifest=bundle.manifest.encoder_alone())
        super().__init__(alone, backend, memory_limit, limits)

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        backend: str = "auto",
        num_threads: int = 0,
        memory_limit: int | None = None,
        limits: MediaLimits = DEFAULT_LIMITS,
    ) -> VideoLlama3Encoder:
        """Checks a bundle and loads its vision encoder; arguments and errors as of `VideoLlama3.load`.

        bundle: of a vision encoder alone, or of a whole model, of which nothing else is loaded.
        """
        opened = open_bundle(bundle_folder(bundle), quick=True, decoder=False)
        chosen = select_backend(backend, num_threads, decodes=False)
        return cls(opened, chosen, memory_limit, replace(limits, num_threads=limits.num_threads or num_threads))

    @property
    def info(self) -> dict[str, Any]:
        """What this encoder is and what it runs on, as plain values."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.folder),
            "name": manifest.name,
            "source": manifest.source,
            "layout": manifest.layout,
            "precision": manifest.precision,
            "vision_bits": manifest.vision_quantization.bits,
            "hidden_size": manifest.vision.hidden_size,
            "backend": self._backend.name,
            "vision_runtime": self._backend.vision_runtime,
            "vision_graph": self._backend.vision_file(self.bundle),
            "providers": list(self._backend.providers),
            "onnxruntime": self._backend.version or None,
            "num_threads": self._backend.num_threads or "one per physical core",
        }
