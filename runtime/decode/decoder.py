"""The decoder in ONNX Runtime: prompts chunk by chunk, then one token a step, for one sequence or for several together.

A step reads all weights once, whatever the number of sequences: that is why decoding several together pays. Prefills
go row by row (the graph takes several positions for one sequence only), each into its own row of the cache, which is a
contiguous part of every buffer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..backends.buffers import Buffer
from ..bundle.manifest import TextSpec
from ..config import MAX_DRAFTS
from .cached_decoder import CachedDecoder, unchecked
from .graph import Binding, BoundTensor, DecoderGraph, check_fit
from .step_buffers import StepBuffers

_WARM_TOKENS = 256  # enough that products are those of a prompt


class Decoder(CachedDecoder):
    """Runs one bundle's decoder graph.

    Where steps are captured as CUDA graphs, capacities are a few rungs (`kv_cache.py`), and all buffers of a rung are
    kept by the graph for the next decoder that has so many rows on it.
    """

    def __init__(self, graph: DecoderGraph, spec: TextSpec, check: Callable[[int], None] = unchecked) -> None:
        check_fit(graph, spec)
        self.graph = graph
        self._buffers = StepBuffers(graph, spec)
        super().__init__(self._buffers.cache, check)
        self._total = np.zeros((), np.int32)
        self._capacity = np.zeros((), np.int32)  # in the place of _total where steps are captured
        self._prompt: Buffer | None = None
        self._steps: dict[int, Binding] = {}  # by the number of rows
        self._checked: dict[str, Buffer] = {}  # logits and tokens where drafts are checked
        self._checked_rows = 0  # as many were, in the last run

    @property
    def prefill_chunk(self) -> int:
        return self.graph.prefill_chunk

    @property
    def checks_drafts(self) -> bool:
        return self.graph.checks_drafts

    def available_bytes(self) -> int | None:
        return self.graph.available_bytes()

    def roomiest(self, tokens: int) -> int:
        """A rung if steps are captured."""
        return self._buffers.roomiest(tokens)

    def _has_room(self, capacity: int) -> bool:
        return super()._has_room(capacity) and self._buffers.has_room(capacity)

    def _resize(self, rows: int, capacity: int) -> None:
        if self.graph.warming is not None:
            self.graph.warming.wait()
        self._steps.clear()  # they point at buffers that are about to go
        if rows == self.cache.rows and self.graph.kept is not None and self._answered:
            self._results = {"logits": self.logits.copy(), "tokens": self.tokens.copy()}
        self._buffers.resize(rows, capacity)
        self._capacity[...] = self.cache.capacity

    def _prefill(self, embeddings: np.ndarray, logits: bool, row: int) -> None:
        if self.graph.prompts is None:
            self._append(self.graph, row, embeddings)
            return
        last = len(embeddings) - logits
        self._append(self.graph.prompts, row, embeddings[:last])
        self._append(self.graph, row, embeddings[last:])

    def _check_drafts(self, embeddings: np.ndarray) -> None:
        if not self._checked:
            zeros, most = self.graph.memory.zeros, 1 + MAX_DRAFTS
            self._checked = {
                "logits": zeros((most, self.spec.vocab_size), np.float32, staged=True),
                "tokens": zeros((most,), np.int64, staged=True),
            }
        self._append(self.graph, 0, embeddings, len(embeddings))

    def _append(self, graph: DecoderGraph, row: int, embeddings: np.ndarray, checked: int = 0) -> None:
        """Runs embeddings [S, hidden_size], S >= 0, through a graph. checked: the last ones that all have logits."""
        count = len(embeddings)
        if count == 0:
            return
        if self._prompt is None:
            self._prompt = graph.memory.zeros((self.prefill_chunk, self.spec.hidden_size), np.float32, staged=True)
        part = self._prompt.rows(0, count)
        part.write(embeddings)
        tensor = BoundTensor(part, (1, count, self.spec.hidden_size))
        totals = self._announce(slice(row, row + 1), count)
        graph.run(self._bind(graph, tensor, row, 1, self._total, checked=checked))
        self._checked_rows = checked
        self.cache.lengths[row] = totals[0]

    def _step(self, embeddings: np.ndarray) -> None:
        count = len(embeddings)
        inputs = self._buffers.inputs.rows(0, count)
        inputs.write(embeddings)
        totals = self._announce(slice(count), 1)
        binding = self._steps.get(count)
        if binding is None:
            tensor = BoundTensor(inputs, (count, 1, self.spec.hidden_size))
            # A step only wants a bound of its lengths here, so that one capture serves all of them.
            total = self._capacity if self._buffers.captured else self._total
            binding = self._steps[count] = self._bind(
                self.graph, tensor, 0, count, total, captured=self._buffers.captured
            )
        self.graph.run(binding)
        self._checked_rows = 0
        self.cache.lengths[:count] = totals

    def _announce(self, rows: slice, tokens: int) -> np.ndarray:
        """Tells the graph how long the rows will be after a run; returns their lengths int32 [n]."""
        totals = self.cache.lengths[rows] + tokens
        self._buffers.seqlens.rows(rows.start or 0, rows.stop).write(totals - 1)
        self._total[...] = totals.max()
        return totals

    def _read(self, name: str) -> np.ndarray:
        if self._checked_rows:
            return self._checked[name].rows(0, self._checked_rows).read()
        return {"logits": self._buffers.logits, "tokens": self._buffers.tokens}[name].read()

    def _bind(
        self,
        graph: DecoderGraph,
        embeddings: BoundTensor,
        row: int,
        rows: int,
        total: np.ndarray,
        captured: bool = False,
        checked: int = 0,
    ) -> Binding:
        """A binding of every input and output to our own buffers, present on past, for `rows` rows from `row` on.

        checked: positions of the only row that have logits, if more than the last.
        """

        def part(buffer: Buffer) -> BoundTensor:
            return BoundTensor(buffer.rows(row, row + rows), (rows, *buffer.shape[1:]))

        inputs = {"inputs_embeds": embeddings, "seqlens_k": part(self._buffers.seqlens)}
        outputs: dict[str, BoundTensor] = {}
        if checked:
            logits, tokens = self._checked["logits"], self._checked["tokens"]
            outputs["logits"] = BoundTensor(logits, (checked, self.spec.vocab_size))
            outputs["token"] = BoundTensor(tokens, (checked,))
        elif graph is self.graph:
            outputs |= {"logits": part(self._buffers.logits), "token": part(self._buffers.tokens)}
        for layer in range(self.spec.num_layers):
            for kind, name in enumerate(("key", "value")):
                buffer = part(self.cache.buffers[2 * layer + kind])
                inputs[f"past_key_values.{layer}.{name}"] = outputs[f"present.{layer}.{name}"] = buffer
        return graph.bind(inputs, outputs, total, captured, checked or 1)


def run_once(graph: DecoderGraph, spec: TextSpec) -> None:
    """A short prompt and a step, for what a GPU does at its first: loading kernels, and the capture of the first rung.

    The buffers are kept for the next decoder. Raises BackendError and MemoryError.
    """
    decoder = Decoder(graph, spec)
    decoder.prefill(np.zeros((min(_WARM_TOKENS, spec.max_position_embeddings - 1), spec.hidden_size), np.float32))
    decoder.step(np.zeros((1, spec.hidden_size), np.float32))
    decoder.resize(0, 0)
