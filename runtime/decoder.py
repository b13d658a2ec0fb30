"""The decoder with its KV cache: chunked prefill, then one token a step.

The cache is one append-only buffer per layer and kind that the graph reads and writes in place; nothing is copied
between steps. Going back is setting the length: that is how a second question about a clip reuses the clip's prefix.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .engine import guarded
from .errors import BundleError, ContextLengthError
from .manifest import TextSpec

PREFILL_CHUNK = 512  # tokens a call: bounds the attention scores' memory, and is long enough to be compute-bound
_CAPACITY_STEP = 256


class Decoder:
    """One sequence's decoder. Not thread-safe.

    session: an onnxruntime.InferenceSession of `decoder.onnx`.
    length: tokens in the cache. capacity: tokens the cache has room for; grows when `reserve` asks.
    """

    def __init__(self, session: Any, spec: TextSpec) -> None:
        self.spec = spec
        self.length = 0
        self.capacity = 0
        _check_fit(session, spec)
        self._session = session
        self._cache: list[np.ndarray] = []
        self._seqlens = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._step_input = np.zeros((1, 1, spec.hidden_size), np.float32)
        self._logits = np.zeros((1, spec.vocab_size), np.float32)
        self._token = np.zeros(1, np.int64)
        self._step_binding: Any = None

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` in all, keeping what is cached; ContextLengthError beyond the model's positions."""
        limit = self.spec.max_position_embeddings
        if tokens > limit:
            raise ContextLengthError(
                f"{tokens} tokens do not fit the model's context of {limit}: use fewer frames (max_frames), "
                "a higher pruning threshold, or a smaller max_new_tokens."
            )
        if tokens <= self.capacity:
            return
        capacity = min(limit, -(-tokens // _CAPACITY_STEP) * _CAPACITY_STEP)
        shape = (1, self.spec.num_kv_heads, capacity, self.spec.head_dim)
        if not self._cache:
            self._cache = [np.zeros(shape, np.float32) for _ in range(2 * self.spec.num_layers)]
        else:
            self._grow(shape)
        self._step_binding = self._bind(self._step_input)
        self.capacity = capacity

    def _grow(self, shape: tuple[int, ...]) -> None:
        try:
            for index, old in enumerate(self._cache):  # one buffer at a time: the peak is one buffer, not a cache
                grown = np.zeros(shape, np.float32)
                grown[:, :, : self.length] = old[:, :, : self.length]
                self._cache[index] = grown
        except BaseException:
            # Out of memory, or interrupted: the binding of a step still points at buffers that are gone.
            self._cache, self._step_binding = [], None
            self.length = self.capacity = 0
            raise

    def rewind(self, length: int) -> None:
        """Forgets everything after the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length} tokens: {self.length} are cached")
        self.length = length

    def prefill(self, embeddings: np.ndarray) -> None:
        """Appends embeddings float32 [S, hidden_size], S >= 1; `logits` and `token` then follow the last of them."""
        self.reserve(self.length + len(embeddings))
        for start in range(0, len(embeddings), PREFILL_CHUNK):
            chunk = np.ascontiguousarray(embeddings[None, start : start + PREFILL_CHUNK], np.float32)
            self._run(self._bind(chunk), chunk.shape[1])

    def step(self, embedding: np.ndarray) -> None:
        """Appends one token's embedding, float32 [hidden_size]."""
        self.reserve(self.length + 1)
        self._step_input[0, 0] = embedding
        self._run(self._step_binding, 1)

    @property
    def logits(self) -> np.ndarray:
        """Of the token after the last one appended: float32 [vocab_size], overwritten by the next call."""
        return self._logits[0]

    @property
    def token(self) -> int:
        """The greedy choice among `logits`."""
        return int(self._token[0])

    def _run(self, binding: Any, count: int) -> None:
        total = self.length + count
        self._seqlens[0] = total - 1
        self._total[...] = total
        guarded(self._session.run_with_iobinding, binding)
        self.length = total

    def _bind(self, embeddings: np.ndarray) -> Any:
        """A binding of every input and output to our own buffers, present on past."""
        binding = self._session.io_binding()

        def attach(bind: Any, name: str, array: np.ndarray) -> None:
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

        attach(binding.bind_input, "inputs_embeds", embeddings)
        attach(binding.bind_input, "seqlens_k", self._seqlens)
        attach(binding.bind_input, "total_sequence_length", self._total)
        attach(binding.bind_output, "logits", self._logits)
        attach(binding.bind_output, "token", self._token)
        for layer in range(self.spec.num_layers):
            for kind, name in enumerate(("key", "value")):
                buffer = self._cache[2 * layer + kind]
                attach(binding.bind_input, f"past_key_values.{layer}.{name}", buffer)
                attach(binding.bind_output, f"present.{layer}.{name}", buffer)
        return binding


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
