"""Generation in layers: prompt → tokens → text chunks → one answer; each layer only consumes the one below.

The tokens layer also keeps the books of the KV cache: which content stands at which position. A new prompt keeps the
longest prefix it shares with what is cached, so a second question about a clip costs its own tokens only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .config import GenerationConfig
from .decoder import Decoder
from .errors import ContextLengthError, Vl3EdgeError
from .sampling import Sampler
from .splice import EmbeddingTable, SplicedPrompt, common_prefix
from .tokenizer import Detokenizer, Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class GenerationStats:
    """What one answer cost. reused_tokens of the prompt's tokens were in the cache already."""

    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it is generated.

    text may be empty. finish_reason and stats are None but in the last chunk, which always has both: "stop" when the
    model ended its answer, "length" when max_new_tokens or the context did.
    """

    text: str
    finish_reason: FinishReason | None = None
    stats: GenerationStats | None = None


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    stats: GenerationStats


class Generator:
    """Answers prompts with one decoder, one at a time: starting an answer ends the one before."""

    def __init__(self, decoder: Decoder, table: EmbeddingTable, tokenizer: Tokenizer, eos_ids: tuple[int, ...]) -> None:
        self._decoder = decoder
        self._table = table
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._keys = np.zeros(0, np.int64)  # what stands at the decoder's positions; valid up to its length
        self._run = 0

    def tokens(self, prompt: SplicedPrompt, config: GenerationConfig) -> Iterator[int]:
        """Generated ids up to and with the end token, if one comes; the prompt is prefilled at the first `next`.

        Raises ContextLengthError if the prompt leaves no room for an answer, at the call.
        """
        limit = self._decoder.spec.max_position_embeddings
        if len(prompt) >= limit:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, the model's context is {limit}: use fewer frames (max_frames) "
                "or a higher pruning threshold."
            )
        return self._tokens(prompt, config, min(config.max_new_tokens, limit - len(prompt)))

    def reusable(self, prompt: SplicedPrompt) -> int:
        """How many of the prompt's tokens are in the cache; its last one is always run, for its logits."""
        cached = self._keys[: self._decoder.length]
        return min(common_prefix(cached, prompt.keys), len(prompt) - 1)

    def _tokens(self, prompt: SplicedPrompt, config: GenerationConfig, count: int) -> Iterator[int]:
        self._run += 1
        run = self._run
        sampler = Sampler(config)
        room = np.zeros(count, np.int64)
        history = np.concatenate([prompt.ids, room])
        self._decoder.reserve(len(history))
        self._prefill(prompt, room)
        decoder = self._decoder
        for position in range(len(prompt), len(history)):
            if sampler.needs_logits:
                token = sampler.choose(decoder.logits, history[:position])
            else:
                token = decoder.token
            history[position] = token
            yield token
            if self._run != run:
                raise Vl3EdgeError("this answer was ended by another question to the same model")
            if token in self._eos_ids or position + 1 == len(history):
                return
            self._keys[position] = token
            decoder.step(self._table.row(token))

    def _prefill(self, prompt: SplicedPrompt, room: np.ndarray) -> None:
        reused = self.reusable(prompt)
        self._decoder.rewind(reused)
        self._keys = np.concatenate([prompt.keys, room])
        self._decoder.prefill(prompt.embeddings(self._table, reused))

    def chunks(self, prompt: SplicedPrompt, config: GenerationConfig) -> Iterator[Chunk]:
        """The answer as text chunks; the last one has finish_reason and stats."""
        reused = self.reusable(prompt)
        return self._chunks(self.tokens(prompt, config), len(prompt), reused)

    def _chunks(self, tokens: Iterator[int], prompt_tokens: int, reused: int) -> Iterator[Chunk]:
        detokenizer = Detokenizer(self._tokenizer)
        finish_reason: FinishReason = "length"
        count = 0
        begin = time.perf_counter()
        first = begin
        for token in tokens:
            if count == 0:
                first = time.perf_counter()
            count += 1
            if token in self._eos_ids:
                finish_reason = "stop"
            elif text := detokenizer.push(token):
                yield Chunk(text)
        stats = GenerationStats(prompt_tokens, reused, count, first - begin, time.perf_counter() - first)
        yield Chunk(detokenizer.flush(), finish_reason, stats)


def join(chunks: Iterator[Chunk]) -> Answer:
    """One answer from its chunks."""
    parts = list(chunks)
    last = parts[-1]
    assert last.finish_reason is not None  # the last chunk always has both
    assert last.stats is not None
    return Answer("".join(part.text for part in parts), last.finish_reason, last.stats)
