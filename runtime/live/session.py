"""A streaming session: frames are pushed as they come, and a question at any moment costs the time of the question.

Each frame is pruned against its predecessor, encoded, and appended to the session's own KV cache at once. When the
context is full the oldest quarter leaves in one go: the instructions stay, the first frame that stays opens the turn
anew, and later keys are rotated to their new positions, so positions never exceed the context. What a frame left unsaid
because it had not changed may leave with the frames before it, so the next frame is kept whole, like a keyframe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..config import GenerationConfig, SamplingPlan
from ..decode.generate import Answer, Chunk, Generator, join
from ..errors import ContextLengthError, MediaError, Vl3EdgeError
from ..media.video import VideoSource, open_video
from ..prompt.boxes import Size
from ..prompt.chat_template import VisualSlot, media_items
from ..prompt.splice import SplicedPrompt, VisualTokens, common_prefix, splice
from ..prompt.tokenizer import Tokenizer
from ..vision.clip import new_uid
from ..vision.stream_encoder import StreamFrames
from .session_clock import SessionClock
from .session_prompt import AnswerEntry, Entry, FrameEntry, StreamLayout

_KEPT_SHARE = 0.75  # of the room for frames, when the oldest leave
_ANSWER_SHARE = 0.125  # of the context, kept free of frames for a question and its answer
_NOTHING = SplicedPrompt(np.zeros(0, np.int64), np.zeros(0, np.int64), ())
_MANY_FRAMES = 1 << 30  # more than any source has


@dataclass(frozen=True)
class FrameReport:
    """What pushing one frame did.

    timestamp_s: the time written for it. kept_tokens: of its max_tokens visual tokens. dropped_s: the times of the
    frames that left the context since the last report. seconds: of the whole push. notes: what was unusual, in words.
    """

    timestamp_s: float
    kept_tokens: int
    max_tokens: int
    dropped_s: tuple[float, ...]
    seconds: float
    notes: tuple[str, ...]

    @property
    def dropped_frames(self) -> int:
        """How many frames left the context."""
        return len(self.dropped_s)


@dataclass(frozen=True)
class _Placed:
    """An entry of the context: the tokens of its lead and of its body."""

    entry: Entry
    lead: int
    body: int


class Session:
    """One stream and what was said about it. Use `VideoLlama3.open_session`. Not thread-safe.

    max_tokens: of the context. num_seen: frames pushed. dropped_frames: those of them that have left the context.
    """

    def __init__(
        self,
        layout: StreamLayout,
        open_frames: Callable[[int, int], StreamFrames],
        generator: Generator,
        tokenizer: Tokenizer,
        placeholder_id: int,
        max_tokens: int,
    ) -> None:
        self.max_tokens = max_tokens
        self.num_seen = 0
        self.dropped_frames = 0
        self._layout = layout
        self._open_frames = open_frames
        self._generator = generator
        self._tokenizer = tokenizer
        self._placeholder_id = placeholder_id
        self._frames: StreamFrames | None = None
        self._source_size = (0, 0)
        self._clock = SessionClock()
        self._placed: list[_Placed] = []
        self._context = _NOTHING
        self._unreported_s: list[float] = []
        self._run = 0

    @property
    def num_tokens(self) -> int:
        """Tokens in the context: instructions, frames, questions and answers."""
        return len(self._context)

    @property
    def num_frames(self) -> int:
        """Frames in the context."""
        return self.num_seen - self.dropped_frames

    @property
    def source_sizes(self) -> tuple[Size, ...]:
        """Height and width in pixels, as they were pushed, of the frames in the context; what boxes are told in."""
        return tuple(placed.entry.source_size for placed in self._placed if isinstance(placed.entry, FrameEntry))

    def push(self, frame: np.ndarray, timestamp_s: float) -> FrameReport:
        """Shows the model the next frame, uint8 [H, W, 3] RGB, and its time in seconds; ends an unfinished answer.

        The first frame fixes the size at which frames are encoded; frames of other sizes are resized to it. Times that
        jump backwards are counted on from the last one. Both are noted in the report.
        Raises MediaError or ConfigError for what is no frame or no time, ContextLengthError for a frame larger than the
        context. After such an error the session goes on with what it had.
        """
        begin = time.perf_counter()
        self._run += 1
        _check_frame(frame)
        clock = self._clock.follow(timestamp_s)
        assert clock.last_s is not None  # it has followed
        entry = FrameEntry(clock.last_s, frame.shape[:2])
        frames = self._frames or self._open_frames(*frame.shape[:2])
        notes = self._notes(frame, frames, timestamp_s, clock)
        self._make_room(entry, frames.max_tokens, self._room_for_frames)
        try:
            tokens = frames.tokens(frame)
            self._append(entry, self._after(entry, VisualTokens(tokens, (len(tokens),), new_uid())), len(tokens))
        except BaseException:
            frames.restart()  # the next frame must not be pruned against one that is not in the context
            raise
        self._frames, self._source_size, self._clock = frames, frame.shape[:2], clock
        self.num_seen += 1
        dropped, self._unreported_s = tuple(self._unreported_s), []
        return FrameReport(clock.last_s, len(tokens), frames.max_tokens, dropped, time.perf_counter() - begin, notes)

    def pull(self, source: VideoSource, sampling: SamplingPlan | None = None) -> Iterator[FrameReport]:
        """Pushes the frames of a source that `open_video` takes, one by one, as the reports are taken.

        sampling: None is one frame per second, all of them. Raises MediaError.
        """
        plan = sampling or SamplingPlan()
        reader = open_video(source, replace(plan, max_frames=plan.max_frames or _MANY_FRAMES))
        return (self.push(frame.pixels, frame.timestamp_s) for frame in reader.frames())

    def ask(self, question: str, config: GenerationConfig | None = None, keep: bool = True) -> Iterator[Chunk]:
        """The answer from what has been seen, piece by piece; the last chunk has finish_reason and stats.

        keep: question and answer stay in the context, as far as the answer was taken. False leaves no trace of them.
        Where question and answer need more room than is kept free of frames, the oldest frames leave.
        Raises ConfigError for a question that is no text, or a config that cannot be followed, ContextLengthError if it
        does not fit, all at the call.
        """
        self._run += 1
        media_items([{"role": "user", "content": question}])  # refuses what is no text
        config = config or GenerationConfig()
        self._generator.check(config)
        entry, prefix = AnswerEntry(question), self._generator.prefix_tokens(config)
        if prefix >= self._room_for_answers:
            raise ContextLengthError(f"a prefix of {prefix} tokens leaves no room for an answer: use a shorter one")
        wanted = self._generator.new_tokens(config, 0)  # the model's max_length is about prompts, not about streams
        self._make_room(entry, min(wanted + prefix, self._room_for_answers), self.max_tokens)
        prompt = self._after(entry)
        self._check_cache(prompt)
        limit = min(wanted, self.max_tokens - len(prompt) - prefix)
        chunks = self._generator.stream(prompt, replace(config, max_new_tokens=limit))
        return self._answer(entry, prompt, chunks, keep, self._run)

    def answer(self, question: str, config: GenerationConfig | None = None, keep: bool = True) -> Answer:
        """The whole answer, with its boxes in pixels of the frames as they were pushed; see `ask`."""
        chunks = self.ask(question, config, keep)
        return join(chunks, self.source_sizes)

    def prompt(self, question: str) -> SplicedPrompt:
        """What `ask` would begin with. The visual tokens themselves are not in it: they are in the KV cache."""
        return self._after(AnswerEntry(question))

    def _answer(
        self, entry: Entry, prompt: SplicedPrompt, chunks: Iterator[Chunk], keep: bool, run: int
    ) -> Iterator[Chunk]:
        ids: list[int] = []
        if self._run != run:
            raise Vl3EdgeError("the session moved on before this answer was read: ask again")
        try:
            for chunk in chunks:
                ids += chunk.token_ids
                yield chunk
        except (GeneratorExit, KeyboardInterrupt):  # whoever takes the answer has had enough of it
            if keep and ids and self._run == run:
                self._keep(entry, prompt, ids)
            raise
        if keep:
            self._keep(entry, prompt, ids)

    def _keep(self, entry: Entry, prompt: SplicedPrompt, ids: list[int]) -> None:
        self._append(entry, replace(prompt, spans=()).followed_by(ids), len(ids))

    def _notes(
        self, frame: np.ndarray, frames: StreamFrames, timestamp_s: float, clock: SessionClock
    ) -> tuple[str, ...]:
        """What is unusual about a frame."""
        notes = []
        if self._frames is not None and frame.shape[:2] != self._source_size:
            notes.append(
                "frames changed from {1}×{0} to {3}×{2} pixels; they are still encoded at {5}×{4}".format(
                    *self._source_size, *frame.shape[:2], *frames.size
                )
            )
        if clock.jumped:
            notes.append(f"timestamps jumped back to {timestamp_s:.1f} s; continuing from {clock.last_s:.1f} s")
        return tuple(notes)

    @property
    def _room_for_answers(self) -> int:
        return int(self.max_tokens * _ANSWER_SHARE)

    @property
    def _room_for_frames(self) -> int:
        return self.max_tokens - self._room_for_answers

    def _after(self, entry: Entry, visual: VisualTokens | None = None) -> SplicedPrompt:
        """The context continued by the lead of an entry and, where given, its visual tokens."""
        part = self._lead(self._placed[-1].entry if self._placed else None, entry, visual)
        start = len(self._context)
        return SplicedPrompt(
            np.concatenate([self._context.ids, part.ids]),
            np.concatenate([self._context.keys, part.keys]),
            tuple((start + position, tokens) for position, tokens in part.spans),
        )

    def _lead(self, previous: Entry | None, entry: Entry, visual: VisualTokens | None = None) -> SplicedPrompt:
        pieces = self._layout.lead(previous, entry)
        if visual is not None:
            return splice(pieces, [visual], [self._placeholder_id], self._tokenizer)
        return splice([piece for piece in pieces if not isinstance(piece, VisualSlot)], [], [], self._tokenizer)

    def _append(self, entry: Entry, context: SplicedPrompt, body: int) -> None:
        """Takes `context`, the present one with an entry more, whose last `body` tokens are the entry's own."""
        self._check_cache(context)
        self._generator.prefill(context)
        self._placed.append(_Placed(entry, len(context) - len(self._context) - body, body))
        self._context = SplicedPrompt(context.ids, context.keys, ())

    def _check_cache(self, prompt: SplicedPrompt) -> None:
        """The visual tokens of the context are nowhere else."""
        if self._generator.reusable(prompt) < len(self._context):
            raise Vl3EdgeError(
                "the session's KV cache was lost when an earlier call was interrupted: open a new session"
            )

    def _make_room(self, entry: Entry, body: int, limit: int) -> None:
        """Drops the oldest entries if one more, with `body` tokens after its lead, would exceed `limit` tokens."""
        needed = len(self._after(entry)) + body
        if needed <= limit:
            return
        alone = len(self._lead(None, entry)) + body
        if alone > limit:
            shorter = "a shorter question" if isinstance(entry, AnswerEntry) else "smaller frames (frames_expected)"
            raise ContextLengthError(
                f"{alone} tokens do not fit into {limit} of the session's context of {self.max_tokens}: use {shorter}, "
                "shorter system text, or a larger max_tokens."
            )
        wanted = min(int(limit * _KEPT_SHARE), limit - needed + len(self._context))
        kept, count = len(self._context), 0
        while count < len(self._placed) and kept > wanted:
            count += 1
            following = self._placed[count : count + 1] or self._placed[:1]
            kept -= self._placed[count - 1].body + following[0].lead
        # What was asked before the first frame that stays was about those that leave.
        frames = (i for i, placed in enumerate(self._placed) if i >= count and isinstance(placed.entry, FrameEntry))
        self._drop(next(frames, count))

    def _drop(self, count: int) -> None:
        """Drops the first `count` entries; the next one then opens the context as if it had always been the first."""
        context, rest = _NOTHING, self._placed[count:]
        if rest:
            end = sum(placed.lead + placed.body for placed in self._placed[:count]) + rest[0].lead
            head = self._lead(None, rest[0].entry)
            start = common_prefix(head.keys, self._context.keys[:end])
            self._generator.replace(start, end - start, SplicedPrompt(head.ids[start:], head.keys[start:], ()))
            ids, keys = self._context.ids[end:], self._context.keys[end:]
            context = SplicedPrompt(np.concatenate([head.ids, ids]), np.concatenate([head.keys, keys]), ())
            rest[0] = replace(rest[0], lead=len(head))
        gone = [placed.entry.timestamp_s for placed in self._placed[:count] if isinstance(placed.entry, FrameEntry)]
        self._placed, self._context = rest, context
        self._unreported_s += gone
        self.dropped_frames += len(gone)
        if gone and self._frames is not None:
            self._frames.restart()


def _check_frame(frame: np.ndarray) -> None:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        given = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise MediaError(f"a frame must be a uint8 array [height, width, 3], not {given}")
