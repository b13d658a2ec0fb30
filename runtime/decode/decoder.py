"""The decoder with its KV cache: chunked prefill, then one token a step, for one sequence or for several together.

A step reads all weights once, whatever the number of sequences: that is why decoding several together pays. Prefills
go row by row (the graph takes several positions for one sequence only), each into its own row of the cache, which is a
contiguous part of every buffer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..backends.buffers import Buffer
from ..bundle.manifest import TextSpec
from ..errors import ContextLengthError
from .graph import Binding, BoundTensor, DecoderGraph, check_fit
from .kv_cache import capacity_for
from .rope import Rotary
from .step_buffers import StepBuffers

_WARM_TOKENS = 256  # enough that products are those of a prompt


class Decoder:
    """Decodes sequences side by side, one in each row of its cache. Not thread-safe.

    A single row grows as it is needed; several have the capacity that `resize` gave them. Where steps are captured as
    CUDA graphs, capacities are a few rungs (`kv_cache.py`), and all buffers of a rung are kept by the graph for the
    next decoder that has so many rows on it.
    check: is told how many tokens there will be before a single row grows; it raises if they are too many.
    """

    def __init__(self, graph: DecoderGraph, spec: TextSpec, check: Callable[[int], None] = lambda tokens: None) -> None:
        check_fit(graph, spec)
        self.graph = graph
        self.spec = spec
        self._buffers = StepBuffers(graph, spec)
        self.cache = self._buffers.cache
        self._check = check
        self._total = np.zeros((), np.int32)
        self._capacity = np.zeros((), np.int32)  # in the place of _total where steps are captured
        self._prompt: Buffer | None = None
        self._steps: dict[int, Binding] = {}  # by the number of rows
        self._results: dict[str, np.ndarray] = {}  # of the last run, as far as they were read
        self._answered = True  # whether the last run was one for logits

    @property
    def logits(self) -> np.ndarray:
        """Float32 [rows, vocab_size], of the token after the last one appended to each row; void after the next call.

        On a GPU they are brought to the host when they are asked for.
        """
        return self._result("logits", self._buffers.logits)

    @property
    def tokens(self) -> np.ndarray:
        """Int64 [rows], the greedy choice among `logits`; void after the next call."""
        return self._result("tokens", self._buffers.tokens)

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
        if self.graph.warming is not None:
            self.graph.warming.wait()
        self._steps.clear()  # they point at buffers that are about to go
        self._keep_results(rows)
        self._buffers.resize(rows, capacity)
        self._capacity[...] = self.cache.capacity

    def _keep_results(self, rows: int) -> None:
        """Brings to the host what must outlive the buffers it is in; with other rows nothing must."""
        if rows != self.cache.rows:
            self._results.clear()
        elif self.graph.kept is not None and self._answered:
            self._results = {"logits": self.logits.copy(), "tokens": self.tokens.copy()}

    def reserve(self, tokens: int) -> None:
        """Makes one row with room for `tokens`, keeping what is cached.

        Raises ContextLengthError beyond the model's positions, and what `check` raises.
        """
        if tokens > self.capacity:
            least, best = capacity_for(self.spec, tokens), self.roomiest(tokens)
            self._check(least)
            self.resize(1, best if best == least or self._has_room(best) else least)

    def roomiest(self, tokens: int) -> int:
        """The capacity for so many tokens where memory is no matter: a rung if steps are captured."""
        return self._buffers.roomiest(tokens)

    def _has_room(self, rung: int) -> bool:
        """Whether one row of a rung is within the memory and what `check` takes."""
        try:
            self._check(rung)
        except ContextLengthError:
            return False
        return self._buffers.has_room(rung)

    @property
    def prefill_chunk(self) -> int:
        """Tokens of a prompt in one run, at most."""
        return self.graph.prefill_chunk

    def prefill(self, embeddings: np.ndarray, logits: bool = True, row: int = 0) -> None:
        """Appends embeddings float32 [S, hidden_size], S >= 1, to one row.

        They are run in chunks of `prefill_chunk`, beginning with the first; where chunks begin is in the bits of the
        result (`prefill_chunk.py`), and nothing else of them is.
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
        size = self.prefill_chunk
        if self._prompt is None:
            self._prompt = graph.memory.zeros((size, self.spec.hidden_size), np.float32, staged=True)
        for start in range(0, len(embeddings), size):
            chunk = embeddings[start : start + size]
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
        self._buffers.seqlens.rows(rows.start or 0, rows.stop).write(totals - 1)
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
        captured: bool = False,
    ) -> Binding:
        """A binding of every input and output to our own buffers, present on past, for `rows` rows from `row` on."""

        def part(buffer: Buffer) -> BoundTensor:
            return BoundTensor(buffer.rows(row, row + rows), (rows, *buffer.shape[1:]))

        inputs = {"inputs_embeds": embeddings, "seqlens_k": part(self._buffers.seqlens)}
        outputs = (
            {"logits": part(self._buffers.logits), "token": part(self._buffers.tokens)} if graph is self.graph else {}
        )
        for layer in range(self.spec.num_layers):
            for kind, name in enumerate(("key", "value")):
                buffer = part(self.cache.buffers[2 * layer + kind])
                inputs[f"past_key_values.{layer}.{name}"] = outputs[f"present.{layer}.{name}"] = buffer
        return graph.bind(inputs, outputs, total, captured)

    def _result(self, name: str, buffer: Buffer) -> np.ndarray:
        if not self._answered:
            raise RuntimeError("there are no logits after a prefill without them")
        if name not in self._results:
            self._results[name] = buffer.read()
        return self._results[name]


def run_once(graph: DecoderGraph, spec: TextSpec) -> None:
    """A short prompt and a step, for what a GPU does at its first: loading kernels, and the capture of the first rung.

    The buffers are kept for the next decoder. Raises BackendError and MemoryError.
    """
    decoder = Decoder(graph, spec)
    decoder.prefill(np.zeros((min(_WARM_TOKENS, spec.max_position_embeddings - 1), spec.hidden_size), np.float32))
    decoder.step(np.zeros((1, spec.hidden_size), np.float32))
    decoder.resize(0, 0)
