"""Messages to prompt pieces: the checkpoint's chat template, with media slots and without injection.

The template (Jinja, run in a sandbox within limits, `sandbox.py`) turns messages into one string with placeholder
tokens for media. Added tokens that stand in *users'* text are masked before the template runs and restored, as plain
text, afterwards; so whatever a user writes, only the template itself can place a special token. Text between special
tokens is kept in one piece, so it is tokenized as the reference tokenizes it, across the border of template and user
text.

There is no system text unless it is asked for: that is the default of the authors' processor, and how they evaluate
their models. Their published example has the system message "You are a helpful assistant."; `add_system_prompt=True`,
which it passes as well, puts the template's own text only where a conversation has no system message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import jinja2

from ..bundle.bundle import Bundle
from ..bundle.specs import TokenSpec
from ..config import MediaKind
from ..errors import BundleError, ConfigError
from .sandbox import TemplateSandbox, refuse
from .tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "stream")
DESCRIBE = {"video": "Describe this video.", "image": "Describe this image."}
_MAX_TEMPLATE_CHARS = 1 << 20
_PRIVATE_USE = range(0x100000, 0x10FFFD)  # of all 65,000, a conversation leaves one unused


@dataclass(frozen=True)
class MediaItem:
    """What a prompt needs to know of an image or a video: its kind and its frames' times in seconds."""

    kind: str
    timestamps_s: tuple[float, ...]


@dataclass(frozen=True)
class VisualSlot:
    """The place of the visual tokens of one frame (or image): frame number `frame` of media item `media`."""

    media: int
    frame: int


Piece = int | str | VisualSlot  # a special token's id, plain text, or visual tokens


class HasKind(Protocol):
    """A clip, or one that is still being encoded."""

    @property
    def kind(self) -> str: ...


def question_about(clips: Sequence[HasKind], question: str) -> list[dict[str, Any]]:
    """The conversation that asks one question about clips."""
    content: list[dict[str, Any]] = [{"type": clip.kind, clip.kind: clip} for clip in clips]
    content.append({"type": "text", "text": question})
    return [{"role": "user", "content": content}]


def with_system(messages: Sequence[Mapping[str, Any]], system: str | None) -> list[Mapping[str, Any]]:
    """The conversation, begun with a system message of this text; None begins it with nothing.

    Raises ConfigError for what is no text, and for a conversation that has a system message already.
    """
    if system is None:
        return [*messages]
    if not isinstance(system, str):
        raise ConfigError(f"system must be a string, not {type(system).__name__}")
    if any(isinstance(message, Mapping) and message.get("role") == "system" for message in messages):
        raise ConfigError("the conversation has a system message: leave out system, or the message")
    begun: list[Mapping[str, Any]] = [{"role": "system", "content": system}]
    media_items(begun)  # refuses what is not UTF-8
    return [*begun, *messages]


class PromptTemplate:
    """A checkpoint's chat template, compiled once."""

    def __init__(self, source: str, tokenizer: Tokenizer, tokens: TokenSpec, layout: str) -> None:
        if len(source) > _MAX_TEMPLATE_CHARS:
            raise BundleError("chat_template.jinja is too large to be a chat template.")
        self._sandbox = TemplateSandbox({"raise_exception": refuse, "strftime_now": _strftime_now})
        try:
            self._template = self._sandbox.from_string(source)
            self._image, self._video = tokenizer.token(tokens.image_id), tokenizer.token(tokens.video_id)
        except KeyError as e:
            raise BundleError(f"tokenizer.json has no token of id {e}, which marks media in prompts.") from e
        except Exception as e:  # Jinja, and the compiler of Python code after it
            raise BundleError(f"chat_template.jinja cannot be compiled ({e}). Export the bundle again.") from e
        self._per_frame = layout == "authors"
        self._added = tokenizer.added
        # Bundles of before special tokens were written had an empty bos_token.
        self._special = {"bos_token": ""} if tokenizer.special is None else tokenizer.special
        by_length = sorted(self._added, key=len, reverse=True)
        self._splitter = re.compile("|".join(map(re.escape, by_length)) or r"(?!)")

    @classmethod
    def of(cls, bundle: Bundle, tokenizer: Tokenizer) -> PromptTemplate:
        return cls(bundle.chat_template(), tokenizer, bundle.manifest.tokens, bundle.manifest.layout)

    def pieces(
        self,
        messages: Sequence[Mapping[str, Any]],
        media: Sequence[MediaItem],
        add_generation_prompt: bool = True,
        add_system_prompt: bool = False,
    ) -> list[Piece]:
        """The prompt of a conversation.

        add_system_prompt: lets the template put its own system text where the conversation has none.
        messages: {"role", "content"}; content is a string or a list of {"type": "text", "text"}, {"type": "image"} and
        {"type": "video"} items; the k-th image or video item, over all messages, is media[k].
        Raises ConfigError for malformed messages or a template that does not take them.
        """
        escape = _Escape(self._splitter, messages)
        context: dict[str, Any] = {
            "image_token": self._image,
            **self._special,
            "messages": _template_messages(messages, media, escape),
            "add_generation_prompt": add_generation_prompt,
            "add_system_prompt": add_system_prompt,
            "tools": None,
            "documents": None,
        }
        try:
            rendered = self._sandbox.render(self._template, context)
        except jinja2.TemplateError as e:
            raise ConfigError(f"the chat template rejects this conversation: {e}") from e
        except Exception as e:  # a template can do anything that raises
            raise BundleError(f"chat_template.jinja fails ({type(e).__name__}: {e}). Export the bundle again.") from e
        return self._split(rendered, media, escape)

    @property
    def has_system_prompt(self) -> bool:
        """Whether add_system_prompt changes anything."""
        messages = [{"role": "user", "content": "?"}]
        return self.pieces(messages, []) != self.pieces(messages, [], add_system_prompt=True)

    def _split(self, rendered: str, media: Sequence[MediaItem], escape: _Escape) -> list[Piece]:
        slots = self._slots(media)
        pieces: list[Piece] = []
        text: list[str] = []

        def flush() -> None:
            if joined := escape.restore("".join(text)):
                pieces.append(joined)
            text.clear()

        position = 0
        for match in self._splitter.finditer(rendered):
            text.append(rendered[position : match.start()])
            position = match.end()
            if match.group() not in (self._image, self._video):
                flush()
                pieces.append(self._added[match.group()])
                continue
            for part in next(slots, ()):
                if isinstance(part, str):
                    text.append(part)
                else:
                    flush()
                    pieces.append(part)
        text.append(rendered[position:])
        flush()
        placed = sum(isinstance(piece, VisualSlot) for piece in pieces)
        wanted = sum(len(item.timestamps_s) for item in media)
        if placed != wanted or next(slots, None) is not None:
            raise ConfigError(
                f"the chat template placed {placed} of {wanted} frames and images; does it support this conversation?"
            )
        return pieces

    def _slots(self, media: Sequence[MediaItem]) -> Any:
        """For each placeholder the template writes, in order: text and visual slots to put in its place."""
        for index, item in enumerate(media):
            frames = [VisualSlot(index, frame) for frame in range(len(item.timestamps_s))]
            if item.kind == "image" or self._per_frame:  # the authors' template writes the times itself
                yield from ([slot] for slot in frames)
                continue
            parts: list[str | VisualSlot] = []
            for slot, time_s in zip(frames, item.timestamps_s, strict=True):
                parts += [f"{',' if slot.frame else ''}Time {time_s:.1f}s:", slot]
            yield parts


class _Escape:
    """Masks added tokens in users' text through the template, as a private-use character around a number.

    A template may write text as JSON in ASCII: then a mark comes out as its escape, and so do the characters of the
    token it stands for.
    """

    def __init__(self, tokens: re.Pattern[str], messages: Sequence[Mapping[str, Any]]) -> None:
        texts = "".join(_texts(messages))
        taken = set(repr(messages)) | set(texts)
        unused = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        self._mark, escaped = next((c, e) for c in unused if (e := json.dumps(c)[1:-1]) not in texts)
        self._tokens = tokens
        self._found: list[str] = []
        escaped = re.escape(escaped)
        self._marked = re.compile(f"{self._mark}(\\d+){self._mark}|{escaped}(\\d+){escaped}")

    def mask(self, text: str) -> str:
        def replace(match: re.Match[str]) -> str:
            self._found.append(match.group())
            return f"{self._mark}{len(self._found) - 1}{self._mark}"

        return self._tokens.sub(replace, text)

    def restore(self, text: str) -> str:
        plain = {str(number): token for number, token in enumerate(self._found)}
        escaped = {number: json.dumps(token)[1:-1] for number, token in plain.items()}

        def meant(match: re.Match[str]) -> str:
            number, in_ascii = match.groups()
            return plain.get(number, match[0]) if in_ascii is None else escaped.get(in_ascii, match[0])

        return self._marked.sub(meant, text)  # templates may hold marks, too


def media_items(messages: Sequence[Mapping[str, Any]]) -> list[tuple[MediaKind | None, Any]]:
    """(kind, source) of every image and video of a conversation, in order; ConfigError for malformed messages."""
    found: list[tuple[MediaKind | None, Any]] = []
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise ConfigError("each message must be a mapping with 'role' and 'content'")
        if message["role"] not in ROLES:
            raise ConfigError(f"role must be one of {', '.join(ROLES)}, not {message['role']!r}")
        content = message["content"]
        if isinstance(content, str):
            continue
        if not isinstance(content, Sequence):
            raise ConfigError(f"content must be a string or a list of items, not {type(content).__name__}")
        for item in content:
            kind = item.get("type") if isinstance(item, Mapping) else None
            if kind not in ("text", "image", "video"):
                raise ConfigError(f"each content item needs a 'type' of text, image or video, not {item!r}")
            if kind not in item:
                raise ConfigError(f"a content item of type {kind!r} needs a {kind!r} entry")
            if kind == "text" and not isinstance(item["text"], str):
                raise ConfigError(f"the text of a content item must be a string, not {type(item['text']).__name__}")
            if kind != "text":
                found.append((kind, item[kind]))
    for text in _texts(messages):
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise ConfigError("the conversation contains bytes that are not UTF-8")
    return found


def _texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    texts = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            texts.append(content)
        else:
            texts += [item["text"] for item in content if item["type"] == "text"]
    return texts


def _template_messages(
    messages: Sequence[Mapping[str, Any]], media: Sequence[MediaItem], escape: _Escape
) -> list[dict[str, Any]]:
    """The messages as templates expect them: masked text, and media described instead of contained."""
    result = []
    items = iter(media)
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            result.append({"role": message["role"], "content": escape.mask(content)})
            continue
        parts: list[dict[str, Any]] = []
        for item in content:
            if item["type"] == "text":
                parts.append({"type": "text", "text": escape.mask(item["text"])})
                continue
            described = next(items)
            part: dict[str, Any] = {"type": described.kind, described.kind: ""}
            if described.kind == "video":
                times = list(described.timestamps_s)
                part |= {"num_frames": len(times), "timestamps": times}
            parts.append(part)
        result.append({"role": message["role"], "content": parts})
    return result


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
