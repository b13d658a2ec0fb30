"""The decoder in ONNX Runtime: chunked prefill, then one token a step, for one sequence or for several together.

A step reads all weights once, whatever the number of sequences: that is why decoding several together pays. Prefills
go row by row (the graph takes several positions for one sequence only), each into its own row of the cache, which is a
contiguous part of every buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backends.buffers import Buffer
from ..bundle.manifest import DECODER_GRAPH, PREFILL_GRAPH, TextSpec
from ..errors import BundleError
from .cached_decoder import CachedDecoder, unchecked
from .graph import Binding, BoundTensor, DecoderGraph

PREFILL_CHUNK = 512  # tokens a call: bounds the attention scores' memory, and is long enough to be compute-bound


class Decoder(CachedDecoder):
    """Runs one bundle's decoder graph."""

    def __init__(self, graph: DecoderGraph, spec: TextSpec, check: Callable[[int], None] = unchecked) -> None:
        _check_fit(graph, spec)
        super().__init__(spec, graph.memory, graph.cache_dtype, check)
        self.graph = graph
        self._total = np.zeros((), np.int32)
        self._capacity = np.zeros((), np.int32)  # in the place of _total where steps are recorded
        self._prompt: Buffer | None = None
        self._steps: dict[int, Binding] = {}  # by the number of rows
        self._make_rows(0)

    def _make_rows(self, rows: int) -> None:
        def zeros(columns: int, dtype: type) -> Buffer:
            return self.graph.memory.zeros((rows, columns) if columns else (rows,), dtype, staged=True)

        self._outputs = {"logits": zeros(self.spec.vocab_size, np.float32), "tokens": zeros(0, np.int64)}
        self._inputs, self._seqlens = zeros(self.spec.hidden_size, np.float32), zeros(0, np.int32)

    def _moved(self) -> None:
        self._steps.clear()  # they point at the buffers that have gone
        self._capacity[...] = self.cache.capacity

    def _read(self, name: str) -> np.ndarray:
        return self._outputs[name].read()

    def _prefill(self, embeddings: np.ndarray, logits: bool, row: int) -> None:
        if self.graph.prompts is None:
            self._append(self.graph, row, embeddings)
            return
        last = len(embeddings) - logits
        self._append(self.graph.prompts, row, embeddings[:last])
        self._append(self.graph, row, embeddings[last:])

    def _append(self, graph: DecoderGraph, row: int, embeddings: np.ndarray) -> None:
        """Runs embeddings [S, hidden_size], S >= 0, through a graph, chunk by chunk."""
        if self._prompt is None:
            shape = (PREFILL_CHUNK, self.spec.hidden_size)
            self._prompt = graph.memory.zeros(shape, np.float32, staged=True)
        for start in range(0, len(embeddings), PREFILL_CHUNK):
            chunk = embeddings[start : start + PREFILL_CHUNK]
            part = self._prompt.rows(0, len(chunk))
            part.write(chunk)
            tensor = BoundTensor(part, (1, len(chunk), self.spec.hidden_size))
            totals = self._announce(slice(row, row + 1), len(chunk))
            graph.run(self._bind(graph, tensor, row, 1, self._total))
            self.cache.lengths[row] = totals[0]

    def _step(self, embeddings: np.ndarray) -> None:
        count = len(embeddings)
        inputs = self._inputs.rows(0, count)
        inputs.write(embeddings)
        totals = self._announce(slice(count), 1)
        binding = self._steps.get(count)
        if binding is None:
            tensor = BoundTensor(inputs, (count, 1, self.spec.hidden_size))
            # A step only wants a bound of its lengths here, so that one recording serves all of them.
            total = self._capacity if self.graph.records else self._total
            binding = self._steps[count] = self._bind(self.graph, tensor, 0, count, total, recorded=True)
        self.graph.run(binding)
        self.cache.lengths[:count] = totals

    def _announce(self, rows: slice, tokens: int) -> np.ndarray:
        """Tells the graph how long the rows will be after a run; returns their lengths int32 [n]."""
        totals = self.cache.lengths[rows] + tokens
        self._seqlens.rows(rows.start or 0, rows.stop).write(totals - 1)
        self._total[...] = totals.max()
        return totals

    def _bind(
        self,
        graph: DecoderGraph,
        embeddings: BoundTensor,
        row: int,
        rows: int,
        total: np.ndarray,
        recorded: bool = False,
    ) -> Binding:
        """A binding of every input and output to our own buffers, present on past, for `rows` rows from `row` on."""

        def part(buffer: Buffer) -> BoundTensor:
            return BoundTensor(buffer.rows(row, row + rows), (rows, *buffer.shape[1:]))

        inputs = {"inputs_embeds": embeddings, "seqlens_k": part(self._seqlens)}
        outputs = (
            {"logits": part(self._outputs["logits"]), "token": part(self._outputs["tokens"])}
            if graph is self.graph
            else {}
        )
        for layer in range(self.spec.num_layers):
            for kind, name in enumerate(("key", "value")):
                buffer = part(self.cache.buffers[2 * layer + kind])
                inputs[f"past_key_values.{layer}.{name}"] = outputs[f"present.{layer}.{name}"] = buffer
        return graph.bind(inputs, outputs, total, recorded)


def _check_fit(graph: DecoderGraph, spec: TextSpec) -> None:
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
    return (
        set(inputs) == {"inputs_embeds", "seqlens_k", "total_sequence_length"} | caches
        and set(outputs) == {f"present.{layer}" for layer in layers} | results
        and {inputs[name][1::2] for name in caches} == {(spec.num_kv_heads, spec.head_dim)}
        and inputs["inputs_embeds"][-1] == spec.hidden_size
        and all(outputs[name][-1] == spec.vocab_size for name in results & {"logits"})
    )
