"""Conversations: several turns, media in any of them, nothing computed twice.

Every turn's prompt begins with the whole conversation before it, the answers as the tokens that were generated, so the
KV cache holds that beginning already, and a turn costs its own media and question.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .config import GenerationConfig
from .decode.generate import Answer, Chunk, join
from .errors import Vl3EdgeError
from .prompt.chat_template import media_items, question_about, with_system
from .vision.clip import Clip
from .vision.pending_clip import AnyClip

Answering = Callable[[Sequence[Mapping[str, Any]], Sequence[AnyClip], GenerationConfig], Iterator[Chunk]]


@dataclass(frozen=True)
class Turn:
    """A question about clips that came with it (often none), and its answer: the text and the ids generated."""

    clips: tuple[Clip, ...]
    question: str
    answer: str
    answer_ids: tuple[int, ...]


class Chat:
    """A conversation. Use `VideoLlama3.chat`.

    turns: what was said so far.
    """

    def __init__(self, encode: Callable[[Sequence[Any]], list[AnyClip]], answer: Answering, system: str | None) -> None:
        self.turns: list[Turn] = []
        self._encode = encode
        self._answer = answer
        self._turn = 0
        self._system = with_system([], system)

    @property
    def messages(self) -> list[Mapping[str, Any]]:
        """The conversation in the message format of `VideoLlama3.generate`, answers as text."""
        messages = [*self._system]
        for turn in self.turns:
            messages += question_about(turn.clips, turn.question)
            messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def ask(self, question: str, *media: Any, config: GenerationConfig | None = None) -> Answer:
        """The whole answer; see `stream`."""
        clips = self._encode(media)
        chunks = self.stream(question, *clips, config=config)
        return join(chunks, [clip.source_size for clip in (*self._clips, *clips)])

    def stream(self, question: str, *media: Any, config: GenerationConfig | None = None) -> Generator[Chunk]:
        """The answer to the next question, piece by piece; media are clips or what `VideoLlama3.encode` takes.

        What was generated stays in the conversation, also of an answer that is not taken to its end. A turn that fails,
        or is stopped before it has said anything, does not.
        Raises ConfigError, MediaError, ContextLengthError; for media that are not encoded yet, some only on the way.
        """
        clips = self._encode(media)
        asked = question_about(clips, question)
        media_items(asked)  # refuses a question that is no text
        messages = [*self._system]
        for turn in self.turns:
            messages += question_about(turn.clips, turn.question)
            messages.append({"role": "assistant", "content": turn.answer_ids})
        chunks = self._answer([*messages, *asked], [*self._clips, *clips], config or GenerationConfig())
        self._turn += 1
        return self._taken(clips, question, chunks, self._turn)

    @property
    def _clips(self) -> list[AnyClip]:
        return [clip for turn in self.turns for clip in turn.clips]

    def undo(self) -> Turn | None:
        """Removes the last turn and returns it; None if there is none."""
        self._turn += 1
        return self.turns.pop() if self.turns else None

    def _taken(self, clips: Sequence[AnyClip], question: str, chunks: Iterator[Chunk], turn: int) -> Generator[Chunk]:
        said: list[Chunk] = []
        if self._turn != turn:
            raise Vl3EdgeError("the conversation moved on before this answer was read: ask again")
        try:
            for chunk in chunks:
                said.append(chunk)
                yield chunk
        except (GeneratorExit, KeyboardInterrupt):
            if self._turn == turn and any(chunk.token_ids for chunk in said):
                self._keep(clips, question, said)
            raise
        self._keep(clips, question, said)

    def _keep(self, clips: Sequence[AnyClip], question: str, said: Sequence[Chunk]) -> None:
        whole = tuple(clip if isinstance(clip, Clip) else clip.finish() for clip in clips)
        ids = tuple(token for chunk in said for token in chunk.token_ids)
        self.turns.append(Turn(whole, question, "".join(chunk.text for chunk in said), ids))
