"""How a stream is written: which tokens stand between what was seen, asked and answered before and what comes now.

All text comes from the checkpoint's own chat template: a conversation of just the previous entry and the new one is
rendered, and what stands between the two is cut out, where `splice` cuts too, at slots and answers. So a stream
written entry by entry has the tokens of the conversation written at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigError
from ..prompt.boxes import Size
from ..prompt.chat_template import MediaItem, Piece, PromptTemplate, VisualSlot, with_system
from ..prompt.messages import conversation_pieces

StreamFormat = Literal["video", "stream"]
STREAM_FORMATS = ("video", "stream")
_ANSWER = -1  # no token's id: where the previous answer stood


@dataclass(frozen=True)
class FrameEntry:
    """A frame and the time it stands for, in seconds. source_size: of the frame as it was pushed."""

    timestamp_s: float
    source_size: Size


@dataclass(frozen=True)
class AnswerEntry:
    """A question and, as its body, the answer."""

    question: str


Entry = FrameEntry | AnswerEntry


class StreamLayout:
    """The layout of one session.

    format: "video": frames stand in a user's turn as those of a clip do, a question closes the turn, and frames that
        come after its answer open the next. "stream": frames stand in turns of the role `stream`, questions in turns of
        their own.
    system, add_system_prompt: see `VideoLlama3.open_session`.
    Raises ConfigError for an unknown format, or one that the template does not have.
    """

    def __init__(
        self, template: PromptTemplate, format: StreamFormat, system: str | None, add_system_prompt: bool = False
    ) -> None:
        if format not in STREAM_FORMATS:
            raise ConfigError(f"format must be one of {', '.join(STREAM_FORMATS)}, not {format!r}")
        self._template = template
        self._format = format
        self._system = with_system([], system)
        self._add_system_prompt = add_system_prompt
        if format == "stream" and self._opening("stream") == self._opening("user"):
            raise ConfigError("the checkpoint's chat template has no tokens for the stream role: use format='video'")

    def lead(self, previous: Entry | None, entry: Entry) -> list[Piece]:
        """What stands between the body of `previous` (None: the beginning) and that of `entry`.

        The body of a frame is its visual tokens; their place, VisualSlot(0, 0), ends the result. The body of a question
        is its answer; the result ends where it begins.
        """
        messages = [*self._system]
        if isinstance(previous, AnswerEntry):
            messages += [{"role": "user", "content": "?"}, {"role": "assistant", "content": (_ANSWER,)}]
        times = [e.timestamp_s for e in (previous, entry) if isinstance(e, FrameEntry)]
        question = entry.question if isinstance(entry, AnswerEntry) else None
        turns, media = self._turns(times, question)
        pieces = conversation_pieces(
            self._template, [*messages, *turns], media, question is not None, self._add_system_prompt
        )
        slots = [at for at, piece in enumerate(pieces) if isinstance(piece, VisualSlot)]
        start = 0
        if isinstance(previous, FrameEntry):
            start = slots[0] + 1
        elif previous is not None:
            start = pieces.index(_ANSWER) + 1
        if question is not None:
            return pieces[start:]
        return [*pieces[start : slots[-1]], VisualSlot(0, 0)]

    def _turns(self, times: list[float], question: str | None) -> tuple[list[dict[str, Any]], list[MediaItem]]:
        """The turns of frames and a question, and the frames as the template's media."""
        text = [] if question is None else [{"type": "text", "text": question}]
        if self._format == "video" or not times:
            video = [{"type": "video"}] if times else []
            return [{"role": "user", "content": video + text}], [MediaItem("video", tuple(times))] if times else []
        content: list[dict[str, Any]] = []
        for time_s in times:
            content += [{"type": "text", "text": f"Time {time_s:.1f}s: "}, {"type": "image"}]
        turns = [{"role": "stream", "content": content}]
        if text:
            turns.append({"role": "user", "content": text})
        return turns, [MediaItem("image", (time_s,)) for time_s in times]

    def _opening(self, role: str) -> list[Piece]:
        """The special tokens that begin and end a turn."""
        pieces = self._template.pieces([{"role": role, "content": "?"}], [], add_generation_prompt=False)
        return [piece for piece in pieces if isinstance(piece, int)]
