"""A chat completion as OpenAI's clients expect it, whole or in pieces."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from ..prompt.boxes import read_boxes
from ..vision.clip import Clip
from .running_answer import Ended


class ChatResponse:
    """The shapes of one answer. clips: those that were asked about."""

    def __init__(self, model: str, clips: Sequence[Clip]) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._clips = clips

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": ended.reason, "logprobs": None}
        body = {**self._head, "object": "chat.completion", "choices": [choice]}
        return body | {"usage": self._usage(ended), "clips": self._described(), **self._boxes(text)}

    def first(self) -> dict[str, Any]:
        """Before any text: whose turn it is, and what was seen of the clips."""
        return self._piece({"role": "assistant", "content": ""}, None) | {"clips": self._described()}

    def text(self, text: str) -> dict[str, Any]:
        return self._piece({"content": text}, None)

    def last(self, text: str, ended: Ended) -> dict[str, Any]:
        """text: of the whole answer."""
        return self._piece({}, ended.reason) | self._boxes(text)

    def usage(self, ended: Ended) -> dict[str, Any]:
        return self._chunk([]) | {"usage": self._usage(ended)}

    def _piece(self, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}

    def _usage(self, ended: Ended) -> dict[str, Any]:
        kept, pruned = sum(clip.num_tokens for clip in self._clips), sum(clip.num_pruned for clip in self._clips)
        return {
            "prompt_tokens": ended.prompt_tokens,
            "completion_tokens": ended.tokens,
            "total_tokens": ended.prompt_tokens + ended.tokens,
            "prompt_tokens_details": {"cached_tokens": ended.reused_tokens},
            "visual_tokens": {"kept": kept, "pruned": pruned},
        }

    def _boxes(self, text: str) -> dict[str, Any]:
        return read_boxes(text, [clip.source_size for clip in self._clips]).to_json()

    def _described(self) -> list[dict[str, Any]]:
        return [
            {
                "kind": clip.kind,
                "width_px": clip.width_px,
                "height_px": clip.height_px,
                "source_width_px": clip.source_size[1],
                "source_height_px": clip.source_size[0],
                "timestamps_s": list(clip.timestamps_s),
                "tokens_per_frame": list(clip.tokens_per_frame),
                "num_pruned": clip.num_pruned,
                "threshold": clip.threshold,
            }
            for clip in self._clips
        ]
