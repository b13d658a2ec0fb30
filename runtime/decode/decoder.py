"""The decoder in ONNX Runtime: prompts chunk by chunk, then one token a step, for one sequence or for several together.

A step reads all weights once, whatever the number of sequences: that is why decoding several together pays. Prefills
go row by row (the graph takes several positions for one sequence only), each into its own row of the cache, which is a
contiguous part of every buffer.

On a GPU the host has the books and waits once a step, for the token. What a step needs is there already where the graph
looks tokens up (`DecoderGraph.looks_up`): the one before has written it. It is sent again only where it is something
else: a token that was drawn, a row that has moved.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..backends.buffers import Buffer
from ..bundle.specs import TextSpec
from ..config import MAX_DRAFTS
from ..prompt.splice import EmbeddingTable
from .cached_decoder import CachedDecoder, unchecked
from .graph import NEXT_LENGTHS, TOKENS_INPUT, Binding, BoundTensor, DecoderGraph, check_fit
from .step_buffers import KnownBuffer, StepBuffers

_CAPTURE_ROOM = 4  # positions beyond a step's own, which the runs of a capture may write to
_NO_TOKEN = -1  # its embedding is what stands there
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
        super().__init__(self._buffers.cache, check, graph.head)
        self._total = np.zeros((), np.int32)
        self._capacity = np.zeros((), np.int32)  # in the place of _total where steps are captured
        self._prompt: Buffer | None = None
        self._looks_up = graph.looks_up
        self._no_token = graph.memory.zeros((1,), np.int64)
        self._no_token.write(np.array(_NO_TOKEN))
        self._unsettled = False  # whether the last run may be going on
        self._steps: dict[int, Binding] = {}  # by the number of rows
        self._checked: dict[str, Buffer] = {}  # logits and tokens where drafts are checked
        self._checked_rows = 0  # as many were, in the last run

    @property
    def prefill_chunk(self) -> int:
        return self.graph.prefill_chunk

    @property
    def verifies_drafts(self) -> bool:
        return self.graph.verifies_drafts

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

    def _verify_drafts(self, embeddings: np.ndarray) -> None:
        if not self._checked:
            zeros, most = self.graph.memory.zeros, 1 + MAX_DRAFTS
            self._checked = {
                "logits": zeros((most, self.spec.num_logits), np.float32, staged=True),
                "tokens": zeros((most,), np.int64, staged=True),
                "lengths": zeros((most,), np.int32),
            }
        self._append(self.graph, 0, embeddings, len(embeddings))

    def _append(self, graph: DecoderGraph, row: int, embeddings: np.ndarray, checked: int = 0) -> None:
        """Runs embeddings [S, hidden_size], S >= 0, through a graph. checked: the last ones that all have logits."""
        count = len(embeddings)
        if count == 0:
            return
        if self._prompt is None:
            self._prompt = graph.memory.zeros((self.prefill_chunk, self.spec.hidden_size), np.float32, staged=True)
        self._settle()
        part = self._prompt.rows(0, count)
        part.write(embeddings)
        tensor = BoundTensor(part, (1, count, self.spec.hidden_size))
        rows = slice(row, row + 1)
        totals = self._announce(rows, count)
        binding = self._bind(graph, tensor, self._no_token, rows, self._total, checked=checked)
        self._run(graph, binding, rows, totals)
        if checked:
            self._buffers.seqlens.forget(rows)  # the lengths went elsewhere
        self._checked_rows = checked
        self._settle()

    def advance(self, ids: np.ndarray, table: EmbeddingTable) -> None:
        rows = self._head_rows(ids)
        if rows is None or not self._looks_up:
            super().advance(ids, table)
            return
        self._begin_step(len(ids))
        self._run_step(rows)

    def _step(self, embeddings: np.ndarray) -> None:
        self._settle()
        self._buffers.inputs.rows(0, len(embeddings)).write(embeddings)
        self._run_step(np.full(len(embeddings), _NO_TOKEN))

    def _run_step(self, ids: np.ndarray) -> None:
        """A step of tokens int64 [n], as rows of the head; where they are _NO_TOKEN, of the embeddings written."""
        count = len(ids)
        rows = slice(0, count)
        while True:
            if self._looks_up:
                self._send(self._buffers.tokens, rows, ids)
            totals = self._announce(rows, 1)
            if self._run(self.graph, self._step_binding(rows), rows, totals):
                self._checked_rows = 0
                return

    def _step_binding(self, rows: slice) -> Binding:
        count = rows.stop
        if count not in self._steps:
            tensor = BoundTensor(self._buffers.inputs.rows(0, count), (count, 1, self.spec.hidden_size))
            tokens, captured = self._buffers.tokens.buffer, self._buffers.captured
            # A step only wants a bound of its lengths here, so that one capture serves all of them.
            total = self._capacity if captured else self._total
            self._steps[count] = self._bind(self.graph, tensor, tokens, rows, total, captured)
        return self._steps[count]

    def _announce(self, rows: slice, tokens: int) -> np.ndarray:
        """Tells the graph how long the rows will be after a run; returns their lengths int32 [n]."""
        totals = self.cache.lengths[rows] + tokens
        self._send(self._buffers.seqlens, rows, totals - 1)
        self._total[...] = totals.max()
        return totals

    def _send(self, known: KnownBuffer, rows: slice, values: np.ndarray) -> None:
        if not known.holds(rows, values):
            self._settle()
            known.write(rows, values)

    def _run(self, graph: DecoderGraph, binding: Binding, rows: slice, totals: np.ndarray) -> bool:
        """Runs what is bound; on a GPU nobody waits for it yet. totals: lengths int32 [n] of the rows after it.

        False: it was captured, for which it ran more than once, on what it had written itself. It must begin anew.
        """
        for known in (self._buffers.tokens, self._buffers.seqlens):
            known.forget(rows)
        self._unsettled = True
        looks_up = graph is self.graph and self._looks_up
        room = self.cache.capacity - int(totals.max())
        if graph.run(binding, may_capture=not looks_up or room >= _CAPTURE_ROOM) and looks_up:
            return False
        if looks_up:
            self._buffers.seqlens.note(rows, totals)
        self.cache.lengths[rows] = totals
        return True

    def _settle(self) -> None:
        """Waits for the last run, and so for what was sent to it: before anything else is written there."""
        if self._unsettled:
            self.graph.memory.synchronize()
            self._unsettled = False

    def _read(self, name: str) -> np.ndarray:
        if self._checked_rows:
            return self._checked[name].rows(0, self._checked_rows).read()
        found = self._buffers.tokens.read() if name == "tokens" else self._buffers.logits.read()
        self._unsettled = False  # to read is to wait
        return found

    def _bind(
        self,
        graph: DecoderGraph,
        embeddings: BoundTensor,
        tokens: Buffer,
        rows: slice,
        total: np.ndarray,
        captured: bool = False,
        checked: int = 0,
    ) -> Binding:
        """A binding of every input and output to our own buffers, for some rows; what is appended to is bound twice.

        tokens: int64, as many as rows at least, of a graph that looks them up. checked: positions of the only row that
        have logits, if more than the last.
        """
        count = rows.stop - rows.start

        def part(buffer: Buffer) -> BoundTensor:
            return BoundTensor(buffer.rows(rows.start, rows.stop), (count, *buffer.shape[1:]))

        lengths = part(self._buffers.seqlens.buffer)
        inputs = {"inputs_embeds": embeddings, "seqlens_k": lengths}
        outputs: dict[str, BoundTensor] = {}
        if graph is self.graph:
            results = [part(self._buffers.logits), part(self._buffers.tokens.buffer), lengths]
            if checked:
                results = [BoundTensor(buffer, (checked, *buffer.shape[1:])) for buffer in self._checked.values()]
            outputs["logits"], outputs["token"], next_lengths = results
            if self._looks_up:
                inputs[TOKENS_INPUT] = BoundTensor(tokens.rows(0, count), (count, 1))
                outputs[NEXT_LENGTHS] = next_lengths
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
