"""A decoder's graph, loaded: binding its tensors to buffers, and running it, steps as CUDA graphs where that is on.

A CUDA graph is a recording of every kernel of a run with the addresses, sizes and host values it had. ONNX Runtime
keeps one for each `gpu_graph_id` of its run options and replays it for every run with that id, whatever is bound then.
So an id here stands for all that a recording has baked in: addresses, shapes, and `total_sequence_length`, which
GroupQueryAttention reads on the host. Buffers that come back at the addresses they had get their old id. Prefills run
with the id −1, which records nothing. A recording lives as long as its session, so there is a limit to their number;
beyond it steps run kernel by kernel, slower and with the same result.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.buffers import HOST, Buffer, DeviceMemory, Memory
from ..backends.onnxruntime import Backend, guarded, import_onnxruntime
from ..bundle.bundle import Bundle
from ..bundle.manifest import DECODER_GRAPH, FP16_DECODER_GRAPH, PREFILL_GRAPH
from ..errors import BackendError, BackendWarning, BundleError

MAX_RECORDINGS = 64
_GRAPH_ID = "gpu_graph_id"
_NO_RECORDING = -1
_CACHE_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class BoundTensor:
    """A buffer, and the shape that the graph is to see it in."""

    buffer: Buffer
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Binding:
    """Every input and output bound. baked: what a recording of it has in it; None for one that is not recorded."""

    handle: Any
    baked: tuple[Any, ...] | None


class DecoderGraph:
    """A session of one of the decoder's graphs, and how it is run.

    session: an onnxruntime.InferenceSession. memory: of every tensor but total_sequence_length.
    records: steps are recorded; the session must have been made for that (`enable_cuda_graph`).
    prompts: the graph that takes a prompt's tokens, all but the last, which makes the logits; None is this one.
    """

    def __init__(
        self, session: Any, memory: Memory = HOST, records: bool = False, prompts: DecoderGraph | None = None
    ) -> None:
        self.session = session
        self.memory = memory
        self.records = records
        self.prompts = prompts
        self._ids: dict[tuple[Any, ...], int] = {}
        self._options: dict[int, Any] = {}

    @property
    def cache_dtype(self) -> type:
        """Of keys and values: numpy's float32 or float16."""
        types = {i.type for i in self.session.get_inputs() if i.name.startswith("past_key_values.")}
        return _CACHE_DTYPES[types.pop()] if types else np.float32

    def bind(
        self,
        inputs: Mapping[str, BoundTensor],
        outputs: Mapping[str, BoundTensor],
        total: np.ndarray,
        recorded: bool = False,
    ) -> Binding:
        """Binds all tensors, and `total` int32 [] as total_sequence_length; their addresses are kept, not they.

        recorded: this binding will be run often; nothing but the content of its buffers will change.
        """
        handle = self.session.io_binding()
        for bind, tensors in ((handle.bind_input, inputs), (handle.bind_output, outputs)):
            for name, tensor in tensors.items():
                buffer = tensor.buffer
                bind(name, self.memory.kind, 0, buffer.dtype.type, tensor.shape, buffer.address)
        handle.bind_input("total_sequence_length", "cpu", 0, total.dtype.type, total.shape, total.ctypes.data)
        if not (recorded and self.records):
            return Binding(handle, None)
        places = [(name, t.buffer.address, t.shape) for tensors in (inputs, outputs) for name, t in tensors.items()]
        return Binding(handle, (int(total), *places))

    def run(self, binding: Binding) -> None:
        """Runs the graph; everything is done when it returns. Raises BackendError."""
        if not self.records:
            guarded(self.session.run_with_iobinding, binding.handle)
        else:
            graph_id = self._graph_id(binding.baked)
            # While a recording is made, whatever reaches the device from another thread would spoil it.
            new = graph_id != _NO_RECORDING and graph_id not in self._options
            with self.memory.exclusive if new else nullcontext():
                guarded(self.session.run_with_iobinding, binding.handle, self._run_options(graph_id))
        self.memory.synchronize()

    def _graph_id(self, baked: tuple[Any, ...] | None) -> int:
        """The id of a recording, counted from 1; 0 is ONNX Runtime's own."""
        if baked is None or (baked not in self._ids and len(self._ids) == MAX_RECORDINGS):
            return _NO_RECORDING
        return self._ids.setdefault(baked, len(self._ids) + 1)

    def _run_options(self, graph_id: int) -> Any:
        if graph_id not in self._options:
            options = import_onnxruntime().RunOptions()
            options.add_run_config_entry(_GRAPH_ID, str(graph_id))
            self._options[graph_id] = options
        return self._options[graph_id]


def load_decoder_graph(backend: Backend, bundle: Bundle) -> DecoderGraph:
    """The decoder's graph for this backend; BundleError if the bundle has none or it cannot be loaded.

    Warns (BackendWarning) where a GPU's ONNX Runtime does not take it for CUDA graphs, as when an operator is left to
    the CPU; `DecoderGraph.records` is False then.
    """
    if not backend.decodes_on_gpu:
        prompts = None
        if PREFILL_GRAPH in bundle.manifest.files:
            prompts = DecoderGraph(backend.session(bundle.path(PREFILL_GRAPH)))
        return DecoderGraph(backend.session(bundle.path(DECODER_GRAPH)), prompts=prompts)
    if backend.device is None:
        raise BackendError("this backend has no device; make it with select_backend")
    if FP16_DECODER_GRAPH not in bundle.manifest.files and not bundle.manifest.slim:
        raise BundleError(
            f"{bundle.folder} has no decoder for NVIDIA GPUs: export it with --target cuda (rtx and jetson have it, "
            "too), or use backend 'cpu'."
        )
    path, memory = bundle.path(FP16_DECODER_GRAPH), DeviceMemory(backend.device)
    try:
        return DecoderGraph(backend.session(path, records=True), memory, records=True)
    except BundleError as e:
        graph = DecoderGraph(backend.session(path), memory)  # raises what is wrong with the file itself
        warnings.warn(
            f"steps run kernel by kernel, slower and with the same result, as they cannot be recorded: {e}",
            BackendWarning,
            stacklevel=2,
        )
        return graph
