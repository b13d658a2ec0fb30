"""Which decoder a bundle gets: ONNX Runtime's or that of our own kernels. Nothing falls back from one to the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from ..backends.onnxruntime import Backend
from ..backends.tensorrt import TARGET_OF
from ..bundle.bundle import Bundle
from ..bundle.kernel_set import FOLDER, MANIFEST, has_kernels
from ..bundle.manifest import DECODER_GRAPH, FP16_DECODER_GRAPH, PREFILL_GRAPH
from ..decode.cached_decoder import CachedDecoder, unchecked
from ..decode.decoder import PREFILL_CHUNK, Decoder
from ..decode.graph import load_decoder_graph
from ..errors import ConfigError
from .decoder import KernelDecoder
from .launcher import open_launcher
from .network import Network

DECODERS = ("auto", "onnxruntime", "kernels")
Kind = Literal["onnxruntime", "kernels"]


class Decoders(Protocol):
    """Makes decoders, which share their weights and have caches of their own; one runs at a time.

    info: what runs, as plain values.
    """

    @property
    def info(self) -> dict[str, Any]: ...

    def make(self, check: Callable[[int], None] = unchecked) -> CachedDecoder:
        """check: see `CachedDecoder`."""
        ...


class GraphDecoders:
    """ONNX Runtime's."""

    def __init__(self, backend: Backend, bundle: Bundle) -> None:
        self._graph = load_decoder_graph(backend, bundle)
        self._text = bundle.manifest.text
        name = FP16_DECODER_GRAPH if backend.decodes_on_gpu else DECODER_GRAPH
        prompts = name if self._graph.prompts is None else PREFILL_GRAPH
        self.info = {
            "decoder": "onnxruntime",
            "decoder_graph": name,
            "prompt_graph": prompts,
            "cuda_graphs": self._graph.records,
        }

    def make(self, check: Callable[[int], None] = unchecked) -> CachedDecoder:
        return Decoder(self._graph, self._text, check)


class KernelDecoders:
    """Those on the bundle's kernels."""

    def __init__(self, backend: Backend, bundle: Bundle) -> None:
        kernels, launcher = open_launcher(backend, bundle)
        self._network = Network(kernels, launcher)
        self._prompts = self._network.vectors(PREFILL_CHUNK)
        file = f"{FOLDER}/{MANIFEST}"
        self.info = {
            "decoder": launcher.description,
            "decoder_graph": file,
            "prompt_graph": file,
            "cuda_graphs": launcher.records,
        }

    def make(self, check: Callable[[int], None] = unchecked) -> CachedDecoder:
        return KernelDecoder(self._network, self._prompts, check)


def chosen_decoder(wanted: str, backend: str, bundle: Bundle) -> Kind:
    """What `wanted` means; "auto" is the kernels beside TensorRT if the bundle has them, else ONNX Runtime.

    backend: its name. Raises ConfigError for an unknown decoder.
    """
    if wanted not in DECODERS:
        raise ConfigError(f"decoder must be one of {', '.join(DECODERS)}, not {wanted!r}")
    if wanted == "auto":
        return "kernels" if backend in TARGET_OF and has_kernels(bundle) else "onnxruntime"
    return "kernels" if wanted == "kernels" else "onnxruntime"


def open_decoders(kind: Kind, backend: Backend, bundle: Bundle) -> Decoders:
    """Loads the decoder; BundleError where the bundle has it not, BackendError where it cannot run."""
    return KernelDecoders(backend, bundle) if kind == "kernels" else GraphDecoders(backend, bundle)
