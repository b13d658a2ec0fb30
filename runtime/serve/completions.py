"""Chat completions: from a checked request to an answer, whole or in pieces."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from ..errors import ConfigError
from ..vision.clip import Clip
from .admission import Admission
from .api_error import TimeLimitError
from .chat_request import ChatRequest, MediaPart, chat_request
from .chat_response import ChatResponse
from .clips import Clips
from .decoding import Decoding
from .event_stream import EventStream
from .metrics import Metrics
from .request_body import json_body, unless_gone
from .running_answer import Ended, RunningAnswer
from .served_model import ServedModel
from .settings import ServeSettings

_REMEMBERED = 1024


class AnswerMemory:
    """The ids of what was said, by its text: a conversation that comes back is then a prefix of what is cached."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def note(self, text: str, ids: tuple[int, ...]) -> None:
        if text and ids:
            self._ids[text] = ids
            self._ids.move_to_end(text)
            while len(self._ids) > _REMEMBERED:
                self._ids.popitem(last=False)

    def recalled(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message whose text was said here, with its ids in the place of the text; any other as it is."""
        if message["role"] != "assistant" or not isinstance(message["content"], str):
            return message
        return {**message, "content": self._ids.get(message["content"], message["content"])}


class Completions:
    """The endpoint /v1/chat/completions."""

    def __init__(
        self,
        model: ServedModel,
        clips: Clips,
        decoding: Decoding,
        admission: Admission,
        metrics: Metrics,
        settings: ServeSettings,
    ) -> None:
        self._model = model
        self._clips = clips
        self._decoding = decoding
        self._admission = admission
        self._metrics = metrics
        self._limit_s = settings.answer_limit_s
        self._most_frames = settings.max_frames or model.max_frames
        self._memory = AnswerMemory()

    async def __call__(self, request: Request) -> ASGIApp:
        since_s = time.monotonic()
        asked = chat_request(await json_body(request), self._most_frames)
        with ExitStack() as held:
            held.enter_context(self._admission.place())
            answer, clips = await unless_gone(request.receive, self._begun(asked, since_s))
            held.callback(answer.cancel)
            response = ChatResponse(self._model.bundle.manifest.name, clips)
            if asked.stream:
                items = self._pieces(asked, answer, response)
                return EventStream(items, held.pop_all().close)
            return JSONResponse(await unless_gone(request.receive, self._whole(answer, response)))

    async def _begun(self, asked: ChatRequest, since_s: float) -> tuple[RunningAnswer, list[Clip]]:
        """The answer under way, and the clips it is about."""
        try:
            return await asyncio.wait_for(self._submitted(asked, since_s), self._limit_s)
        except (TimeoutError, asyncio.TimeoutError) as e:  # two classes before Python 3.11
            raise TimeLimitError(self._limit_s) from e

    async def _submitted(self, asked: ChatRequest, since_s: float) -> tuple[RunningAnswer, list[Clip]]:
        clips = [await self._clip(part, asked) for part in asked.media]
        messages = [self._with_clips(message, iter_clips) for iter_clips in [iter(clips)] for message in asked.messages]
        prompt = await self._clips.in_thread(lambda: self._model.prompt_of(messages, clips, asked.add_system_prompt))
        constraint = None
        if asked.schema is not None:
            schema = asked.schema
            constraint = await self._clips.in_thread(lambda: self._model.constraint(schema))
        eos_ids = self._model.bundle.manifest.tokens.eos_ids
        answer = RunningAnswer(self._model.tokenizer, eos_ids, asked.stop, since_s, self._limit_s, self._metrics.token)
        self._decoding.submit(answer, prompt, asked.generation, constraint)
        return answer, clips

    async def _clip(self, part: MediaPart, asked: ChatRequest) -> Clip:
        made = await self._clips.clip(part.url, part.kind, asked.sampling, asked.pruning)
        self._metrics.clip(made.clip.num_tokens, made.clip.num_pruned)
        return made.clip

    def _with_clips(self, message: dict[str, Any], clips: Any) -> dict[str, Any]:
        """A message of the model's format: clips in the place of their parts, ids in the place of what was said."""
        if not isinstance(message["content"], list):
            return self._memory.recalled(message)
        if message["role"] != "user" and any(part["type"] != "text" for part in message["content"]):
            raise ConfigError("pictures and videos belong into the user's messages")
        content = [
            part if part["type"] == "text" else {"type": part["type"], part["type"]: next(clips)}
            for part in message["content"]
        ]
        return {**message, "content": content}

    async def _whole(self, answer: RunningAnswer, response: ChatResponse) -> dict[str, Any]:
        text = ""
        async for event in answer.events():
            if isinstance(event, Ended):
                return response.whole(text, self._noted(text, event))
            text += event
        raise AssertionError("an answer ends with its end")

    async def _pieces(
        self, asked: ChatRequest, answer: RunningAnswer, response: ChatResponse
    ) -> AsyncGenerator[dict[str, Any], None]:
        text = ""
        yield response.first()
        async for event in answer.events():
            if isinstance(event, Ended):
                yield response.last(text, self._noted(text, event))
                if asked.include_usage:
                    yield response.usage(event)
            else:
                text += event
                yield response.text(event)

    def _noted(self, text: str, ended: Ended) -> Ended:
        self._memory.note(text, ended.token_ids)
        self._metrics.prompt_tokens.labels("yes").inc(ended.reused_tokens)
        self._metrics.prompt_tokens.labels("no").inc(ended.prompt_tokens - ended.reused_tokens)
        return ended
