"""Conversations whose answers are the tokens that were generated, not their text.

Text that a model wrote may be tokenized in another way than it was generated. With the generated ids themselves in
place, the next turn's prompt begins with exactly what the KV cache holds, and none of it is computed again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from .chat_template import MediaItem, Piece, PromptTemplate

_PRIVATE_USE = range(0xF0000, 0xFFFFD)  # another range than the template's own marks


def conversation_pieces(
    template: PromptTemplate,
    messages: Sequence[Mapping[str, Any]],
    media: Sequence[MediaItem],
    add_generation_prompt: bool = True,
    add_system_prompt: bool = False,
) -> list[Piece]:
    """Like `PromptTemplate.pieces`, but a message's content may be a tuple of token ids: an answer as generated.

    Its ids stand in the result one by one. Raises ConfigError if the template does not write every answer once.
    """
    taken = {c for message in messages for text in _texts(message["content"]) for c in text}
    mark = next(chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
    answers: list[tuple[int, ...]] = []
    marked: list[Mapping[str, Any]] = []
    for message in messages:
        if isinstance(message["content"], tuple):
            answers.append(message["content"])
            message = {**message, "content": f"{mark}{len(answers) - 1}{mark}"}
        marked.append(message)
    pieces: list[Piece] = []
    placed: list[int] = []
    for piece in template.pieces(marked, media, add_generation_prompt, add_system_prompt):
        if not isinstance(piece, str):
            pieces.append(piece)
            continue
        for index, part in enumerate(re.split(f"{mark}(\\d+){mark}", piece)):
            if index % 2:
                placed.append(int(part))
                pieces += answers[int(part)]
            elif part:
                pieces.append(part)
    if placed != list(range(len(answers))):
        raise ConfigError("the chat template does not write the answers of a conversation in order")
    return pieces


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [item["text"] for item in content if isinstance(item, Mapping) and item["type"] == "text"]
