"""The decoder with its KV cache: chunked prefill, then one token a step, for one sequence or for several together.

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
from .graph import Binding, BoundTensor, DecoderGraph
from .kv_cache import KvCache, capacity_for
from .rope import Rotary

PREFILL_CHUNK = 512  # tokens a call: bounds the attention scores' memory, and is long enough to be compute-bound


class Decoder:
    """Decodes sequences side by side, one in each row of its cache. Not thread-safe.

    A single row grows as it is needed; several have the capacity that `resize` gave them.
    check: is told how many tokens there will be before a single row grows; it raises if they are too many.
    """

    def __init__(self, graph: DecoderGraph, spec: TextSpec, check: Callable[[int], None] = lambda tokens: None) -> None:
        _check_fit(graph, spec)
        self.graph = graph
        self.spec = spec
        self.cache = KvCache(spec, self.graph.memory, self.graph.cache_dtype)
        self._check = check
        self._total = np.zeros((), np.int32)
        self._capacity = np.zeros((), np.int32)  # in the place of _total where steps are recorded
        self._prompt: Buffer | None = None
        self._steps: dict[int, Binding] = {}  # by the number of rows
        self._results: dict[str, np.ndarray] = {}  # of the last run, as far as they were read
        self._answered = True  # whether the last run was one for logits
        self._make_rows(0)

    def _make_rows(self, rows: int) -> None:
        def zeros(columns: int, dtype: type) -> Buffer:
            return self.graph.memory.zeros((rows, columns) if columns else (rows,), dtype, staged=True)

        self._logits, self._tokens = zeros(self.spec.vocab_size, np.float32), zeros(0, np.int64)
        self._inputs, self._seqlens = zeros(self.spec.hidden_size, np.float32), zeros(0, np.int32)
        self._results.clear()

    @property
    def logits(self) -> np.ndarray:
        """Float32 [rows, vocab_size], of the token after the last one appended to each row; void after the next call.

        On a GPU they are brought to the host when they are asked for.
        """
        return self._result("logits", self._logits)

    @property
    def tokens(self) -> np.ndarray:
        """Int64 [rows], the greedy choice among `logits`; void after the next call."""
        return self._result("tokens", self._tokens)

    @property
    def token(self) -> int:
        """The first of `tokens`."""
        return int(self.tokens[0])

    @property
    def length(self) -> int:
        """Tokens in the first row."""
        return int(self.cache.lengths[0]) if self.cache.rows else 0

    @property
    def capacity(self) -> int:
        """Tokens that each row has room for."""
        return self.cache.capacity

    def resize(self, rows: int, capacity: int) -> None:
        """Makes room for so many sequences and tokens a sequence, keeping the content of the rows that remain.

        `logits` and `tokens` are lost when the number of rows changes. MemoryError and BackendError leave no rows.
        """
        self._steps.clear()  # they point at buffers that are about to go
        self.cache.resize(rows, capacity)
        self._capacity[...] = self.cache.capacity
        if rows != self._tokens.shape[0]:
            self._make_rows(rows)

    def reserve(self, tokens: int) -> None:
        """Makes one row with room for `tokens`, keeping what is cached.

        Raises ContextLengthError beyond the model's positions, and what `check` raises.
        """
        if tokens > self.capacity:
            capacity = capacity_for(self.spec, tokens)
            self._check(capacity)
            self.resize(1, capacity)

    def prefill(self, embeddings: np.ndarray, logits: bool = True, row: int = 0) -> None:
        """Appends embeddings float32 [S, hidden_size], S >= 1, to one row.

        logits: False where the answer does not begin yet; to read `logits` or `tokens` is then a RuntimeError.
        """
        self._make_room(row, len(embeddings))
        self._answered = logits
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

    def step(self, embeddings: np.ndarray) -> None:
        """Appends one token to each of the first n rows; embeddings float32 [n, hidden_size]."""
        count = len(embeddings)
        self._make_room(0, 1, count)
        self._answered = True
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

    def _make_room(self, row: int, tokens: int, rows: int = 1) -> None:
        """Sees to it that each of `rows` rows has room for so many tokens more: the graph would write beyond them."""
        wanted = int(self.cache.lengths[row : row + rows].max(initial=0)) + tokens
        if wanted > self.capacity:
            if self.cache.rows > 1:
                raise ValueError(f"{wanted} tokens do not fit the cache's capacity of {self.capacity}: resize it")
            self.reserve(wanted)

    def _announce(self, rows: slice, tokens: int) -> np.ndarray:
        """Tells the graph how long the rows will be after a run; returns their lengths int32 [n]."""
        totals = self.cache.lengths[rows] + tokens
        self._seqlens.rows(rows.start or 0, rows.stop).write(totals - 1)
        self._total[...] = totals.max()
        self._results.clear()
        return totals

    def rewind(self, length: int) -> None:
        """Forgets everything of the first row after its first `length` tokens."""
        if length != self.length:
            self.cache.rewind(0, length)

    def wipe(self) -> None:
        """Forgets everything of the first row, and what the memory held."""
        self.cache.wipe(0)

    def discard(self, start: int, count: int) -> None:
        """Drops `count` tokens of the first row from `start` on; what follows moves up, and its keys turn with it.

        BundleError if the bundle does not say how keys turn.
        """
        self.replace(start, count, np.zeros((0, self.spec.hidden_size), np.float32))

    def replace(self, start: int, count: int, embeddings: np.ndarray) -> None:
        """`discard`, with embeddings float32 [n, hidden_size], n <= count, in the place of what is dropped.

        If it fails, the cache holds the first `start` tokens at least. `logits` and `tokens` are void afterwards.
        """
        end, length = start + count, self.length
        if not 0 <= start <= end <= length or len(embeddings) > count:
            raise ValueError(f"cannot put {len(embeddings)} tokens for {start} to {end} of the {length} cached")
        rotary = Rotary.of(self.spec)
        self.rewind(start)
        if len(embeddings):
            self.prefill(embeddings, logits=False)  # what is cached from `end` on is out of its reach
        self.cache.append_moved(0, end, length - end, rotary)

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
        outputs = {"logits": part(self._logits), "token": part(self._tokens)} if graph is self.graph else {}
        for layer in range(self.spec.num_layers):
            for kind, name in enumerate(("key", "value")):
                buffer = part(self.cache.buffers[2 * layer + kind])
                inputs[f"past_key_values.{layer}.{name}"] = outputs[f"present.{layer}.{name}"] = buffer
        return graph.bind(inputs, outputs, total, recorded)

    def _result(self, name: str, buffer: Buffer) -> np.ndarray:
        if not self._answered:
            raise RuntimeError("there are no logits after a prefill without them")
        if name not in self._results:
            self._results[name] = buffer.read()
        return self._results[name]


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
