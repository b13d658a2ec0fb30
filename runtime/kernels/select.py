"""Which decoder a bundle gets: ONNX Runtime's or that of our own kernels. Nothing falls back from one to the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from ..backends.cuda import Device
from ..backends.onnxruntime import Backend
from ..backends.tensorrt import TARGET_OF
from ..backends.warm_up import WarmUp
from ..bundle.bundle import Bundle
from ..bundle.file_names import DECODER_GRAPH, FP16_DECODER_GRAPH, PREFILL_GRAPH
from ..bundle.kernel_set import FOLDER, MANIFEST, OLDEST_CAPABILITY, has_kernels
from ..bundle.tuning import read_tuning
from ..decode.cached_decoder import CachedDecoder, unchecked
from ..decode.decoder import Decoder, run_once
from ..decode.graph import load_decoder_graph
from ..decode.prefill_chunk import prefill_activation_bytes
from ..errors import ConfigError
from .decoder import KernelDecoder
from .launcher import open_launcher
from .network import Network
from .scratch import prompt_chunk
from .tiles import Tiles

DECODERS = ("auto", "onnxruntime", "kernels")
Kind = Literal["onnxruntime", "kernels"]
_FLOAT = 4


class Decoders(Protocol):
    """Makes decoders, which share their weights and have caches of their own; one runs at a time.

    info: what runs, as plain values. prefill_chunk: tokens of a prompt in one run, at most.
    """

    @property
    def info(self) -> dict[str, Any]: ...

    @property
    def prefill_chunk(self) -> int: ...

    def run_bytes(self, rows: int) -> int:
        """What a chunk of a prompt and steps of so many rows may still take, beside caches."""
        ...

    def make(self, check: Callable[[int], None] = unchecked) -> CachedDecoder:
        """check: see `CachedDecoder`."""
        ...


class GraphDecoders:
    """ONNX Runtime's."""

    def __init__(self, backend: Backend, bundle: Bundle, before: Callable[[], object] | None = None) -> None:
        """before: see `open_decoders`."""
        text = bundle.manifest.text
        self.graph = graph = load_decoder_graph(backend, bundle)
        self._text = text
        if backend.decodes_on_gpu and before is not None:
            graph.warming = WarmUp(before, lambda: run_once(graph, text))
        name = FP16_DECODER_GRAPH if backend.decodes_on_gpu else DECODER_GRAPH
        prompts = name if graph.prompts is None else PREFILL_GRAPH
        self.info = {
            "decoder": "onnxruntime",
            "decoder_graph": name,
            "prompt_graph": prompts,
            "cuda_graphs": graph.captures,
        }

    @property
    def prefill_chunk(self) -> int:
        return self.graph.prefill_chunk

    def run_bytes(self, rows: int) -> int:
        return prefill_activation_bytes(self._text, self.prefill_chunk) + rows * self._text.num_logits * _FLOAT

    def make(self, check: Callable[[int], None] = unchecked) -> CachedDecoder:
        return Decoder(self.graph, self._text, check)


class KernelDecoders:
    """Those on the bundle's kernels."""

    def __init__(self, backend: Backend, bundle: Bundle) -> None:
        kernels, launcher = open_launcher(backend, bundle)
        tuning = launcher.tuned_for and read_tuning(bundle.folder, launcher.tuned_for)
        self._network = Network(kernels, launcher, Tiles(tuning.choices if tuning else ()))
        self.prefill_chunk = prompt_chunk(kernels.text, launcher)  # of what the weights have left
        self._prompts = self._network.vectors(self.prefill_chunk)
        file = f"{FOLDER}/{MANIFEST}"
        self.info = {
            "decoder": launcher.description + (", tuned for it" if tuning else ""),
            "decoder_graph": file,
            "prompt_graph": file,
            "cuda_graphs": launcher.captures,
        }

    def run_bytes(self, rows: int) -> int:
        """Of steps alone: what prompts take is there since the kernels were loaded."""
        return rows * self._network.row_bytes

    def make(self, check: Callable[[int], None] = unchecked) -> CachedDecoder:
        return KernelDecoder(self._network, self._prompts, check)


def chosen_decoder(wanted: str, backend: str, bundle: Bundle, device: Device | None = None) -> Kind:
    """What `wanted` means; "auto" is the kernels on a GPU they are for, if the bundle has them, else ONNX Runtime.

    backend: its name. device: its GPU, once it is open. Beside TensorRT the kernels are chosen without it, as ONNX
    Runtime need not be there. Raises ConfigError for an unknown decoder.
    """
    if wanted not in DECODERS:
        raise ConfigError(f"decoder must be one of {', '.join(DECODERS)}, not {wanted!r}")
    if wanted == "auto":
        able = backend in TARGET_OF or (device is not None and device.capability >= OLDEST_CAPABILITY)
        return "kernels" if able and has_kernels(bundle) else "onnxruntime"
    return "kernels" if wanted == "kernels" else "onnxruntime"


def open_decoders(kind: Kind, backend: Backend, bundle: Bundle, before: Callable[[], object] | None = None) -> Decoders:
    """Loads the decoder; BundleError where the bundle has it not, BackendError where it cannot run.

    before: on a GPU, ONNX Runtime's is run once in a thread of its own as soon as this returns; decoders wait for it.
        Engines must not be loaded beside that, which a capture would not stand. None runs nothing.
    """
    return KernelDecoders(backend, bundle) if kind == "kernels" else GraphDecoders(backend, bundle, before)
