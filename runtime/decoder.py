"""The decoder with its KV cache: chunked prefill, then one token a step, for one sequence or for several together.

A step reads all weights once, whatever the number of sequences: that is why decoding several together pays. Prefills
go row by row (the graph takes several positions for one sequence only), each into its own row of the cache, which is a
contiguous part of every buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .engine import guarded
from .errors import BundleError
from .kvcache import KvCache, capacity_for
from .manifest import TextSpec
from .rotary import Rotary

PREFILL_CHUNK = 512  # tokens a call: bounds the attention scores' memory, and is long enough to be compute-bound


class BatchDecoder:
    """Decodes sequences side by side, one in each row of its cache. Not thread-safe.

    session: an onnxruntime.InferenceSession of `decoder.onnx`.
    logits: float32 [rows, vocab_size], of the token after the last one appended to each row.
    tokens: int64 [rows], the greedy choice among them. Both are overwritten by the next call.
    """

    def __init__(self, session: Any, spec: TextSpec) -> None:
        _check_fit(session, spec)
        self.spec = spec
        self.cache = KvCache(spec)
        self._session = session
        self._total = np.zeros((), np.int32)
        self._steps: dict[int, Any] = {}  # the binding of a step, by its number of rows
        self._make_rows(0)

    def _make_rows(self, rows: int) -> None:
        self.logits = np.zeros((rows, self.spec.vocab_size), np.float32)
        self.tokens = np.zeros(rows, np.int64)
        self._inputs = np.zeros((rows, 1, self.spec.hidden_size), np.float32)
        self._seqlens = np.zeros(rows, np.int32)

    def resize(self, rows: int, capacity: int) -> None:
        """Makes room for so many sequences and tokens a sequence, keeping the content of the rows that remain.

        `logits` and `tokens` are lost when the number of rows changes. MemoryError leaves no rows.
        """
        self._steps.clear()  # they point at buffers that are about to go
        self.cache.resize(rows, capacity)
        if rows != len(self.tokens):
            self._make_rows(rows)

    def prefill(self, row: int, embeddings: np.ndarray) -> None:
        """Appends embeddings float32 [S, hidden_size], S >= 1, to one row."""
        self._check_room(int(self.cache.lengths[row]) + len(embeddings))
        for start in range(0, len(embeddings), PREFILL_CHUNK):
            chunk = np.ascontiguousarray(embeddings[None, start : start + PREFILL_CHUNK], np.float32)
            self._run(self._bind(chunk, row), row, 1, chunk.shape[1])

    def step(self, embeddings: np.ndarray) -> None:
        """Appends one token to each of the first n rows; embeddings float32 [n, hidden_size]."""
        count = len(embeddings)
        self._check_room(int(self.cache.lengths[:count].max()) + 1)
        self._inputs[:count, 0] = embeddings
        binding = self._steps.get(count)
        if binding is None:
            binding = self._steps[count] = self._bind(self._inputs[:count], 0)
        self._run(binding, 0, count, 1)

    def _check_room(self, tokens: int) -> None:
        if tokens > self.cache.capacity:  # the graph would write beyond the row
            raise ValueError(f"{tokens} tokens do not fit the cache's capacity of {self.cache.capacity}: resize it")

    def _run(self, binding: Any, row: int, rows: int, tokens: int) -> None:
        lengths = self.cache.lengths[row : row + rows]
        totals = lengths + tokens
        self._seqlens[row : row + rows] = totals - 1
        self._total[...] = totals.max()
        guarded(self._session.run_with_iobinding, binding)
        lengths[:] = totals

    def _bind(self, embeddings: np.ndarray, row: int) -> Any:
        """A binding of every input and output to our own buffers, present on past, from `row` on.

        embeddings: float32 [rows, S, hidden_size]; the binding keeps its address.
        """
        binding = self._session.io_binding()
        rows = slice(row, row + len(embeddings))

        def attach(bind: Any, name: str, array: np.ndarray) -> None:
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

        attach(binding.bind_input, "inputs_embeds", embeddings)
        attach(binding.bind_input, "seqlens_k", self._seqlens[rows])
        attach(binding.bind_input, "total_sequence_length", self._total)
        attach(binding.bind_output, "logits", self.logits[rows])
        attach(binding.bind_output, "token", self.tokens[rows])
        for layer in range(self.spec.num_layers):
            for kind, name in enumerate(("key", "value")):
                buffer = self.cache.buffers[2 * layer + kind][rows]
                attach(binding.bind_input, f"past_key_values.{layer}.{name}", buffer)
                attach(binding.bind_output, f"present.{layer}.{name}", buffer)
        return binding


class Decoder:
    """One sequence's decoder, whose cache grows as it is needed. Not thread-safe.

    session: an onnxruntime.InferenceSession of `decoder.onnx`.
    check: is told how many tokens there will be before the cache grows; it raises if they are too many.
    """

    def __init__(self, session: Any, spec: TextSpec, check: Callable[[int], None] | None = None) -> None:
        self.spec = spec
        self._batch = BatchDecoder(session, spec)
        self._check = check

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self._batch.cache.lengths[0]) if self._batch.cache.rows else 0

    @property
    def capacity(self) -> int:
        """Tokens the cache has room for; grows when `reserve` asks."""
        return self._batch.cache.capacity

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` in all, keeping what is cached; ContextLengthError beyond the model's positions."""
        if tokens > self.capacity:
            capacity = capacity_for(self.spec, tokens)
            if self._check is not None:
                self._check(capacity)
            self._batch.resize(1, capacity)

    def rewind(self, length: int) -> None:
        """Forgets everything after the first `length` tokens."""
        if length != self.length:
            self._batch.cache.rewind(0, length)

    def discard(self, start: int, count: int) -> None:
        """Drops the `count` tokens from `start` on; those after them move up, and their keys turn to their new places.

        BundleError if the bundle does not say how keys turn.
        """
        self.replace(start, count, np.zeros((0, self.spec.hidden_size), np.float32))

    def replace(self, start: int, count: int, embeddings: np.ndarray) -> None:
        """`discard`, with embeddings float32 [n, hidden_size], n <= count, in the place of what is dropped.

        If it fails, the cache holds the first `start` tokens at least. `logits` and `token` are void afterwards.
        """
        end, length = start + count, self.length
        if not 0 <= start <= end <= length or len(embeddings) > count:
            raise ValueError(f"cannot put {len(embeddings)} tokens for {start} to {end} of the {length} cached")
        rotary = Rotary.of(self.spec)
        self.rewind(start)
        if len(embeddings):
            self._batch.prefill(0, embeddings)  # what is cached from `end` on is out of its reach
        self._batch.cache.append_moved(0, end, length - end, rotary)

    def prefill(self, embeddings: np.ndarray) -> None:
        """Appends embeddings float32 [S, hidden_size], S >= 1; `logits` and `token` then follow the last of them."""
        self.reserve(self.length + len(embeddings))
        self._batch.prefill(0, embeddings)

    def step(self, embedding: np.ndarray) -> None:
        """Appends one token's embedding, float32 [hidden_size]."""
        self.reserve(self.length + 1)
        self._batch.step(embedding[None])

    @property
    def logits(self) -> np.ndarray:
        """Of the token after the last one appended: float32 [vocab_size], overwritten by the next call."""
        return np.asarray(self._batch.logits[0])

    @property
    def token(self) -> int:
        """The greedy choice among `logits`."""
        return int(self._batch.tokens[0])


def _check_fit(session: Any, spec: TextSpec) -> None:
    """BundleError unless the graph has the layers and sizes that the manifest gives."""
    caches = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    sizes = {tuple(i.shape[1::2]) for i in caches}
    embeddings = next((i.shape[-1] for i in session.get_inputs() if i.name == "inputs_embeds"), None)
    if (
        len(caches) != 2 * spec.num_layers
        or sizes != {(spec.num_kv_heads, spec.head_dim)}
        or embeddings != spec.hidden_size
        or session.get_outputs()[0].shape[-1] != spec.vocab_size
    ):
        raise BundleError("decoder.onnx has other sizes than bundle.json says. Copy or export the bundle again.")
