"""Generation in layers: prompt → tokens → text chunks → one answer; each layer only consumes the one below.

The tokens layer also keeps the books of the KV cache: which content stands at which position. A new prompt keeps the
longest prefix it shares with what is cached, so a second question about a clip costs its own tokens only.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle.specs import GREEDY, GenerationSpec
from ..config import GenerationConfig
from ..errors import BackendError, Vl3EdgeError
from ..prompt.boxes import Box, BoxReading, Size, read_boxes
from ..prompt.splice import EmbeddingTable, SplicedPrompt, common_prefix
from ..prompt.tokenizer import Detokenizer, Tokenizer
from .answer_start import AnswerStart
from .best_of import attempts, best
from .cached_decoder import CachedDecoder
from .drafts import DraftedSteps
from .json_grammar import JsonGrammar
from .sequence import FinishReason, SequenceState, check_room


@dataclass(frozen=True)
class GenerationStats:
    """What one answer cost. reused_tokens of the prompt's tokens were in the cache already.

    prefill_s: in the decoder until the first token is known; where encoding and prefilling alternate, without encoding.
    score: the mean log-probability per token by which `GenerationConfig.best_of` chose it; then the other costs are the
        chosen answer's own, the prompt's those of the one prefill.
    """

    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    prefill_s: float
    decode_s: float
    score: float | None = None


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it is generated.

    text may be empty. finish_reason and stats are None but in the last chunk, which always has both: "stop" when the
    model ended its answer, "length" when max_new_tokens or the context did. token_ids: what the text was made of,
    without the end token; those of all chunks are the answer as it was generated. The prefix of a config comes first.
    With best_of there is one chunk.
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

    def json(self) -> Any:
        """The value of an answer that had to fit a JSON schema. Raises Vl3EdgeError if it was cut off."""
        try:
            value = json.loads(self.text)
        except (ValueError, RecursionError):
            value = None
        # Of a number, who knows whether more digits were to come.
        cut = self.finish_reason != "stop" and type(value) in (int, float)
        if cut or (value is None and self.text.strip() != "null"):
            raise Vl3EdgeError(
                f"the answer was cut off after {self.stats.generated_tokens} tokens and is no whole JSON: allow more "
                "(max_new_tokens, --max-new-tokens)"
            )
        return value


class Generator:
    """Answers prompts with one decoder, one at a time: starting an answer ends the one before.

    defaults: the model's own settings, for what a GenerationConfig leaves open. grammar: for answers of a JSON schema.
    """

    def __init__(
        self,
        decoder: CachedDecoder,
        table: EmbeddingTable,
        tokenizer: Tokenizer,
        eos_ids: tuple[int, ...],
        defaults: GenerationSpec = GREEDY,
        grammar: JsonGrammar | None = None,
    ) -> None:
        self._decoder = decoder
        self._table = table
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._defaults = defaults
        self._grammar = grammar
        self._steps = DraftedSteps(decoder, table)
        self._keys = np.zeros(0, np.int64)  # what stands at the decoder's positions; valid up to its length
        self._run = 0

    def stream(self, prompt: SplicedPrompt | Iterator[SplicedPrompt], config: GenerationConfig) -> Iterator[Chunk]:
        """The answer as text chunks; the last one has finish_reason and stats.

        prompt: whole, or its beginnings while it is being made, each continuing the one before and the last one whole.
        These are prefilled as they come, in the same steps as a whole prompt would be.
        Raises ConfigError for a config that cannot be followed. ContextLengthError if the prompt leaves no room for an
        answer: at the call if it is whole.
        """
        start = self.check(config)
        if isinstance(prompt, SplicedPrompt):
            self._state_of(prompt.followed_by(start.ids), config, start)
            prompt = iter([prompt])
        return self._stream(prompt, config) if config.best_of == 1 else self._best(prompt, config)

    def check(self, config: GenerationConfig) -> AnswerStart:
        """What an answer begins with. Raises ConfigError for a config that cannot be followed with this model."""
        attempts(config, self._defaults)
        return self._start(config)

    def _best(self, prompts: Iterator[SplicedPrompt], config: GenerationConfig) -> Iterator[Chunk]:
        """The best of several answers. Each after the first finds the prompt in the cache."""
        prompt = deque(prompts, maxlen=1).pop()
        chosen = best([join(self._stream(iter([prompt]), one)) for one in attempts(config, self._defaults)])
        yield Chunk(chosen.text, chosen.finish_reason, chosen.stats, chosen.token_ids)

    def _stream(self, prompts: Iterator[SplicedPrompt], config: GenerationConfig) -> Iterator[Chunk]:
        start = self._start(config)
        prompt, reused, prefill_s = self._prefilled(start.after(prompts))
        detokenizer = Detokenizer(self._tokenizer)
        finish_reason: FinishReason = "length"
        unshown = [*start.ids]
        if text := start.pushed(detokenizer):
            self._run += 1
            run = self._run
            yield Chunk(text, token_ids=tuple(unshown))
            self._check_run(run)
            unshown = []
        count = 0
        state = self._state_of(prompt, config, start)
        begin = first = time.perf_counter()
        for token in self._tokens(prompt, state, config.draft_tokens):
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
        prefill_s += first - begin
        stats = GenerationStats(len(prompt), reused, count, prefill_s, time.perf_counter() - first, state.score)
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
        start = self._start(config)
        prompt = prompt.followed_by(start.ids)
        return self._tokens(prompt, self._state_of(prompt, config, start), config.draft_tokens)

    def new_tokens(self, config: GenerationConfig, prompt_tokens: int) -> int:
        """The upper limit of tokens after a prompt of so many, by the config or else the model."""
        return config.new_tokens(self._defaults, prompt_tokens)

    def prefix_tokens(self, config: GenerationConfig) -> int:
        """How many tokens the prefix of a config has."""
        return len(self._tokenizer.encode(config.prefix))

    def _start(self, config: GenerationConfig) -> AnswerStart:
        return AnswerStart(config, self._tokenizer, self._grammar)

    def _state_of(self, prompt: SplicedPrompt, config: GenerationConfig, start: AnswerStart) -> SequenceState:
        """prompt: with the prefix, if it has one."""
        limit = self._decoder.spec.max_position_embeddings
        return SequenceState(prompt, config, self._eos_ids, limit, self._defaults, start.constraint)

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
            self._check_run(run)
            if answer.finish_reason is not None:
                steps.settle()
                return
            held = steps.advance(token, answer.max_length - answer.length)
            self._keys[answer.length - 1 :][: len(held)] = held

    def _check_run(self, run: int) -> None:
        if self._run != run:
            raise Vl3EdgeError("another question to the same model interrupted this answer")

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
