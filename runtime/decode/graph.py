"""A decoder's graph, loaded: binding its tensors to buffers, and running it, steps as CUDA graphs where that is on.

A captured CUDA graph is every kernel of a run with the addresses, sizes and host values it had. ONNX Runtime captures
one for each `gpu_graph_id` of its run options and replays it for every run with that id, whatever is bound then. So an
id here stands for all that a capture has baked in: addresses, shapes, and `total_sequence_length`, which
GroupQueryAttention reads on the host. Buffers that come back at the addresses they had (`kept_buffers.py`) get their
old id. Prefills run with the id −1, which captures nothing. A capture lives as long as its session, so there is a limit
to their number; beyond it steps run kernel by kernel, slower and with the same result.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..backends.buffers import HOST, Buffer, DeviceMemory, Memory
from ..backends.kept_buffers import KeptBuffers
from ..backends.onnxruntime import Backend, guarded, import_onnxruntime
from ..backends.warm_up import WarmUp
from ..bundle.bundle import Bundle
from ..bundle.file_names import DECODER_GRAPH, FP16_DECODER_GRAPH, PREFILL_GRAPH
from ..bundle.head_tokens import HeadTokens
from ..bundle.specs import TextSpec
from ..config import MAX_DRAFTS
from ..errors import BackendError, BackendWarning, BundleError
from .prefill_chunk import GPU_CHUNKS, LIMITED_CHUNKS, PREFILL_CHUNK, gpu_chunk

TOKENS_INPUT, NEXT_LENGTHS = "tokens", "next_seqlens_k"
"""What a graph has, or has not, beside its inputs and outputs of old: see `DecoderGraph.looks_up`."""
LOGITS_FROM = "logits_from"
"""The input by which the last few positions have logits, which a graph has or has not, too."""
MAX_CAPTURES = 128  # six capacities of a context of 32,768, with up to 16 rows
_FROM = [np.array([-count], np.int64) for count in range(2 + MAX_DRAFTS)]  # its values, by the number of positions
_GRAPH_ID = "gpu_graph_id"
_NO_CAPTURE = -1
_CACHE_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class BoundTensor:
    """A buffer, and the shape that the graph is to see it in."""

    buffer: Buffer
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Binding:
    """Every input and output bound. baked: what a capture of it has in it; None for one that is not captured."""

    handle: Any
    baked: tuple[Any, ...] | None


class DecoderGraph:
    """A session of one of the decoder's graphs, and how it is run.

    session: an onnxruntime.InferenceSession. memory: of every tensor but total_sequence_length.
    captures: steps can be captured; the session must have been made for that (`enable_cuda_graph`).
    kept: where such steps get their buffers; None without captures.
    prefill_chunk: tokens of a prompt in one run, at most.
    warming: what must be done before it is used; None where nothing is.
    prompts: the graph that takes a prompt's tokens, all but the last, which makes the logits; None is this one.
    head: the tokens that its rows of logits stand for; None where they are ids.
    """

    def __init__(
        self,
        session: Any,
        memory: Memory = HOST,
        captures: bool = False,
        prompts: DecoderGraph | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        head: HeadTokens | None = None,
    ) -> None:
        self.session = session
        self.memory = memory
        self.captures = captures
        self.kept = KeptBuffers(memory) if captures else None
        self.prompts = prompts
        self.prefill_chunk = prefill_chunk
        self.head = head
        self.warming: WarmUp | None = None
        self._ids: dict[tuple[Any, ...], int] = {}
        self._options: dict[int, Any] = {}

    @cached_property
    def verifies_drafts(self) -> bool:
        """Whether the last few positions can have logits."""
        return any(value.name == LOGITS_FROM for value in self.session.get_inputs())

    @property
    def cache_dtype(self) -> type:
        """Of keys and values: numpy's float32 or float16."""
        types = {i.type for i in self.session.get_inputs() if i.name.startswith("past_key_values.")}
        return _CACHE_DTYPES[types.pop()] if types else np.float32

    @property
    def looks_up(self) -> bool:
        """Whether it takes the embeddings of tokens from the table itself, and says how long rows will be after them.

        A step then reads in its `tokens` and `seqlens_k` what the one before wrote: nothing of it crosses the bus.
        """
        return any(value.name == TOKENS_INPUT for value in self.session.get_inputs())

    def available_bytes(self) -> int | None:
        """What decoders may still take; None where it is not known."""
        available = self.memory.available_bytes()
        return available if available is None or self.kept is None else available + self.kept.idle_bytes

    def bind(
        self,
        inputs: Mapping[str, BoundTensor],
        outputs: Mapping[str, BoundTensor],
        total: np.ndarray,
        captured: bool = False,
        results: int = 1,
    ) -> Binding:
        """Binds all tensors, and `total` int32 [] as total_sequence_length; their addresses are kept, not they.

        results: the last positions that have logits, more than one if the graph takes it (`verifies_drafts`).

        captured: this binding will be run often; nothing but the content of its buffers will change.
        """
        handle = self.session.io_binding()
        for bind, tensors in ((handle.bind_input, inputs), (handle.bind_output, outputs)):
            for name, tensor in tensors.items():
                buffer = tensor.buffer
                bind(name, self.memory.kind, 0, buffer.dtype.type, tensor.shape, buffer.address)
        on_host = {"total_sequence_length": total} | ({LOGITS_FROM: _FROM[results]} if self.verifies_drafts else {})
        for name, array in on_host.items():
            handle.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        if not (captured and self.captures):
            return Binding(handle, None)
        places = [(name, t.buffer.address, t.shape) for tensors in (inputs, outputs) for name, t in tensors.items()]
        return Binding(handle, (int(total), *places))

    def run(self, binding: Binding, may_capture: bool = True) -> bool:
        """Asks for a run; on a GPU what it writes is there for whoever asks after it. Raises BackendError.

        may_capture: False runs kernel by kernel what has no capture yet.
        Returns whether it was captured now: ONNX Runtime runs a graph once before it captures it and once afterwards.
        """
        if self.kept is None:
            guarded(self.session.run_with_iobinding, binding.handle)
            return False
        graph_id = self._graph_id(binding.baked)
        new = graph_id != _NO_CAPTURE and graph_id not in self._options
        if new and not may_capture:
            graph_id, new = _NO_CAPTURE, False
        try:
            # While a step is captured, whatever reaches the device from another thread would spoil it.
            with self.memory.exclusive if new else nullcontext():
                guarded(self.session.run_with_iobinding, binding.handle, self._run_options(graph_id))
        except BackendError:
            self._options.pop(graph_id, None)  # it may not have been captured
            self.kept.drop()  # what was short is memory, most likely
            raise
        return new

    def _graph_id(self, baked: tuple[Any, ...] | None) -> int:
        """The id of a capture, counted from 1; 0 is ONNX Runtime's own."""
        if baked is None or (baked not in self._ids and len(self._ids) == MAX_CAPTURES):
            return _NO_CAPTURE
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
    the CPU; `DecoderGraph.captures` is False then.
    """
    if not backend.decodes_on_gpu:
        prompts = None
        if PREFILL_GRAPH in bundle.manifest.files:
            prompts = DecoderGraph(backend.session(bundle.path(PREFILL_GRAPH)))
        return DecoderGraph(backend.session(bundle.path(DECODER_GRAPH)), prompts=prompts, head=HeadTokens.of(bundle))
    if backend.device is None:
        raise BackendError("this backend has no device; make it with select_backend")
    if FP16_DECODER_GRAPH not in bundle.manifest.files and not bundle.manifest.slim:
        raise BundleError(
            f"{bundle.folder} has no decoder for NVIDIA GPUs: export it with --target cuda (rtx and jetson have it, "
            "too), or use backend 'cpu'."
        )
    path, memory = bundle.path(FP16_DECODER_GRAPH), DeviceMemory(backend.device)
    captures = True
    try:
        session = backend.session(path, captures)
    except BundleError as e:
        session, captures = backend.session(path), False  # raises what is wrong with the file itself
        warnings.warn(
            f"steps run kernel by kernel, slower and with the same result, as they cannot be captured: {e}",
            BackendWarning,
            stacklevel=2,
        )
    chunks = GPU_CHUNKS if backend.memory_limit is None else LIMITED_CHUNKS
    chunk = gpu_chunk(bundle.manifest.text, memory.available_bytes(), chunks=chunks)
    return DecoderGraph(session, memory, captures, prefill_chunk=chunk, head=HeadTokens.of(bundle))


def check_fit(graph: DecoderGraph, spec: TextSpec) -> None:
    """BundleError unless the graph, and that of prompts, have the tensors and sizes that the manifest gives."""
    files: list[tuple[Any, set[str], str]] = [(graph.session, {"logits", "token"}, DECODER_GRAPH)]
    if graph.prompts is not None:
        files.append((graph.prompts.session, set(), PREFILL_GRAPH))
    for session, results, name in files:
        if not _fits(session, spec, results):
            raise BundleError(
                f"{name} has other inputs, outputs or sizes than bundle.json says. Copy or export the bundle again."
            )


def _fits(session: Any, spec: TextSpec, results: set[str]) -> bool:
    """Whether a graph has the tensors that are bound, as many layers as the manifest says, and as wide ones.

    results: outputs beside keys and values.
    """
    layers = [f"{layer}.{kind}" for layer in range(spec.num_layers) for kind in ("key", "value")]
    inputs = {value.name: tuple(value.shape) for value in session.get_inputs()}
    outputs = {value.name: tuple(value.shape) for value in session.get_outputs()}
    caches = {f"past_key_values.{layer}" for layer in layers}
    looks_up = TOKENS_INPUT in inputs
    given = {"inputs_embeds", "seqlens_k", "total_sequence_length"} | ({TOKENS_INPUT} if looks_up else set())
    made = {f"present.{layer}" for layer in layers} | ({NEXT_LENGTHS} if looks_up else set())
    return (
        set(inputs) - {LOGITS_FROM} == given | caches
        and set(outputs) == made | results
        and {inputs[name][1::2] for name in caches} == {(spec.num_kv_heads, spec.head_dim)}
        and inputs["inputs_embeds"][-1] == spec.hidden_size
        and all(outputs[name][-1] == spec.num_logits for name in results & {"logits"})
    )
