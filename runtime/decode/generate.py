"""Generation in layers: prompt → tokens → text chunks → one answer; each layer only consumes the one below.

The tokens layer also keeps the books of the KV cache: which content stands at which position. A new prompt keeps the
longest prefix it shares with what is cached, so a second question about a clip costs its own tokens only.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..bundle.manifest import GREEDY, GenerationSpec
from ..config import GenerationConfig
from ..errors import BackendError, Vl3EdgeError
from ..prompt.boxes import Box, BoxReading, Size, read_boxes
from ..prompt.splice import EmbeddingTable, SplicedPrompt, common_prefix
from ..prompt.tokenizer import Detokenizer, Tokenizer
from .cached_decoder import CachedDecoder
from .drafts import DraftedSteps
from .sequence import FinishReason, SequenceState, check_room


@dataclass(frozen=True)
class GenerationStats:
    """What one answer cost. reused_tokens of the prompt's tokens were in the cache already.

    prefill_s: in the decoder until the first token is known; where encoding and prefilling alternate, without encoding.
    """

    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it is generated.

    text may be empty. finish_reason and stats are None but in the last chunk, which always has both: "stop" when the
    model ended its answer, "length" when max_new_tokens or the context did. token_ids: what the text was made of,
    without the end token; those of all chunks are the answer as it was generated.
    """

    text: str
    finish_reason: FinishReason | None = None
    stats: GenerationStats | None = None
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A whole answer; token_ids are those of its chunks.

    source_sizes: height and width of the upright originals that were asked about, in pixels, one for each of the media.
    """

    text: str
    finish_reason: FinishReason
    stats: GenerationStats
    token_ids: tuple[int, ...] = ()
    source_sizes: tuple[Size, ...] = ()

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Where things are, by an answer to "Where is …? Answer in [[x0,y0,x1,y1]] format."; empty if it does not say.

        Of a video, it does not say in which of its frames. Pictures and videos of several sizes give no boxes, as it
        does not say in which of them either.
        """
        return self._read.boxes

    @property
    def boxes_note(self) -> str | None:
        """Why what looks like a box in the answer gives none; None if all of them do."""
        return self._read.note

    @property
    def _read(self) -> BoxReading:
        return read_boxes(self.text, self.source_sizes)


class Generator:
    """Answers prompts with one decoder, one at a time: starting an answer ends the one before.

    defaults: the model's own settings, for what a GenerationConfig leaves open.
    """

    def __init__(
        self,
        decoder: CachedDecoder,
        table: EmbeddingTable,
        tokenizer: Tokenizer,
        eos_ids: tuple[int, ...],
        defaults: GenerationSpec = GREEDY,
    ) -> None:
        self._decoder = decoder
        self._table = table
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._defaults = defaults
        self._steps = DraftedSteps(decoder, table)
        self._keys = np.zeros(0, np.int64)  # what stands at the decoder's positions; valid up to its length
        self._run = 0

    def stream(self, prompt: SplicedPrompt | Iterator[SplicedPrompt], config: GenerationConfig) -> Iterator[Chunk]:
        """The answer as text chunks; the last one has finish_reason and stats.

        prompt: whole, or its beginnings while it is being made, each continuing the one before and the last one whole.
        These are prefilled as they come, in the same steps as a whole prompt would be.
        Raises ContextLengthError if the prompt leaves no room for an answer: at the call if it is whole.
        """
        if not isinstance(prompt, SplicedPrompt):
            return self._stream(prompt, config)
        self._state_of(prompt, config)
        return self._stream(iter([prompt]), config)

    def _stream(self, prompts: Iterator[SplicedPrompt], config: GenerationConfig) -> Iterator[Chunk]:
        prompt, reused, prefill_s = self._prefilled(prompts)
        detokenizer = Detokenizer(self._tokenizer)
        finish_reason: FinishReason = "length"
        unshown: list[int] = []
        count = 0
        begin = first = time.perf_counter()
        for token in self.tokens(prompt, config):
            if count == 0:
                first = time.perf_counter()
            count += 1
            if token in self._eos_ids:
                finish_reason = "stop"
                continue
            unshown.append(token)
            if text := detokenizer.push(token):
                yield Chunk(text, token_ids=tuple(unshown))
                unshown = []
        stats = GenerationStats(len(prompt), reused, count, prefill_s + first - begin, time.perf_counter() - first)
        yield Chunk(detokenizer.flush(), finish_reason, stats, tuple(unshown))

    def _prefilled(self, prompts: Iterator[SplicedPrompt]) -> tuple[SplicedPrompt, int, float]:
        """The whole prompt, all but its last steps in the cache; how much was there before; the seconds it took."""
        reused: int | None = None
        seconds = 0.0
        for prompt in prompts:
            check_room(prompt, self._decoder.spec.max_position_embeddings)
            begin = time.perf_counter()
            cached = self._cached(prompt)
            if cached < len(prompt):
                reused = cached if reused is None else reused
                # The last step is left for the logits, so that the steps are those of a whole prompt.
                chunk = self._decoder.prefill_chunk
                ready = (len(prompt) - cached - 1) // chunk * chunk
                if ready:
                    self.prefill(prompt.head(cached + ready))
            seconds += time.perf_counter() - begin
        return prompt, self.reusable(prompt) if reused is None else reused, seconds

    def tokens(self, prompt: SplicedPrompt, config: GenerationConfig) -> Iterator[int]:
        """Generated ids up to and with the end token, if one comes; the prompt is prefilled at the first `next`.

        Raises ContextLengthError if the prompt leaves no room for an answer, at the call.
        """
        return self._tokens(prompt, self._state_of(prompt, config), config.draft_tokens)

    def new_tokens(self, config: GenerationConfig, prompt_tokens: int) -> int:
        """The upper limit of tokens after a prompt of so many, by the config or else the model."""
        return config.new_tokens(self._defaults, prompt_tokens)

    def _state_of(self, prompt: SplicedPrompt, config: GenerationConfig) -> SequenceState:
        return SequenceState(prompt, config, self._eos_ids, self._decoder.spec.max_position_embeddings, self._defaults)

    def _tokens(self, prompt: SplicedPrompt, answer: SequenceState, drafts: int) -> Iterator[int]:
        self._run += 1
        run = self._run
        decoder, steps = self._decoder, self._steps
        decoder.reserve(answer.max_length)
        self._hold(prompt, self.reusable(prompt), np.zeros(answer.max_length - len(prompt), np.int64))
        steps.begin(prompt.ids, drafts)
        while True:
            try:
                token = answer.append_choice(steps.token, lambda: steps.logits)
            except BackendError:
                decoder.wipe()
                raise
            yield token
            if self._run != run:
                raise Vl3EdgeError("another question to the same model interrupted this answer")
            if answer.finish_reason is not None:
                steps.settle()
                return
            held = steps.advance(token, answer.max_length - answer.length)
            self._keys[answer.length - 1 :][: len(held)] = held

    def reusable(self, prompt: SplicedPrompt) -> int:
        """How many of the prompt's tokens are in the cache; its last one is always run, for its logits."""
        return min(self._cached(prompt), len(prompt) - 1)

    def prefill(self, prompt: SplicedPrompt) -> None:
        """Makes the cache hold exactly this prompt, keeping the beginning that both share; ends an answer in progress.

        Raises ContextLengthError if it does not fit the model's context.
        """
        self._run += 1
        self._hold(prompt, self._cached(prompt), np.zeros(0, np.int64), logits=False)

    def replace(self, start: int, count: int, part: SplicedPrompt) -> None:
        """Puts `part`, at most `count` tokens, for the `count` cached ones from `start` on; ends an answer in progress.

        What follows moves up and stays cached, as it was computed when it still saw what is dropped.
        """
        self._run += 1
        rest = self._keys[start + count : self._decoder.length]
        self._keys = np.concatenate([self._keys[:start], part.keys, rest])
        if len(part):
            self._decoder.replace(start, count, part.embeddings(self._table))
        else:
            self._decoder.discard(start, count)

    def _hold(self, prompt: SplicedPrompt, reused: int, room: np.ndarray, logits: bool = True) -> None:
        self._decoder.rewind(reused)
        self._keys = np.concatenate([prompt.keys, room])
        if reused < len(prompt):
            self._decoder.prefill(prompt.embeddings(self._table, reused), logits)

    def _cached(self, prompt: SplicedPrompt) -> int:
        return common_prefix(self._keys[: self._decoder.length], prompt.keys)


def join(chunks: Iterable[Chunk], source_sizes: Iterable[Size] = ()) -> Answer:
    """One answer from its chunks. source_sizes: see `Answer`."""
    parts = list(chunks)
    last = parts[-1]
    assert last.finish_reason is not None  # the last chunk always has both
    assert last.stats is not None
    ids = tuple(token for part in parts for token in part.token_ids)
    return Answer("".join(part.text for part in parts), last.finish_reason, last.stats, ids, tuple(source_sizes))
