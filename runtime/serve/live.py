"""Live sessions over a WebSocket: frames come as pictures, questions as JSON, answers go back piece by piece.

The client begins with {"type": "start"}, with `key` where the server has one, and perhaps `system` and `threshold`.
Then every binary message is a frame (JPEG, PNG, WebP), and {"type": "ask", "text": …} a question about what was seen;
{"type": "stop"} ends what was asked before. The server says ready, frame, answer, end (with the boxes of the answer),
error. While the model is at work the newest frame alone is kept, and the others are counted as dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..config import GenerationConfig, PruningConfig
from ..errors import ConfigError
from ..live.session import Session
from ..media.addresses import Fetched
from ..media.image import load_image
from ..media.limits import MediaLimits
from ..prompt.boxes import read_boxes
from .api_error import ApiError, as_api_error
from .chat_request import check_known
from .guard import Guard
from .metrics import Metrics
from .served_model import ServedModel
from .settings import ServeSettings

_MAX_MESSAGE = 8 << 20
_MAX_QUESTION = 1 << 16
_MAX_WAITING = 16
_CONTEXT_TOKENS = 8192


class LiveSessions:
    """The endpoint /v1/live. open: sessions at the moment."""

    def __init__(self, model: ServedModel, guard: Guard, settings: ServeSettings, metrics: Metrics) -> None:
        self._model = model
        self._guard = guard
        self._settings = settings
        self._metrics = metrics
        self.open = 0

    async def __call__(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            start = await asyncio.wait_for(_message(socket), self._settings.patience_s)
            self._check(start)
        except (WebSocketDisconnect, TimeoutError, asyncio.TimeoutError):
            return
        except Exception as e:
            await _refuse(socket, e)
            return
        self.open += 1
        try:
            await _LiveSession(self._model, socket, self._settings, self._metrics).run(start)
        except Exception as e:
            await _refuse(socket, e)
        finally:
            self.open -= 1

    def _check(self, start: Any) -> None:
        if not isinstance(start, dict) or start.get("type") != "start":
            raise ConfigError('a live session begins with {"type": "start"}')
        check_known(start, ("type", "key", "system", "threshold"), "the start")
        key = start.get("key", "")
        self._guard.check_key(key.strip() if isinstance(key, str) else "")
        if self.open >= self._settings.live_sessions:
            raise ApiError(429, f"all {self._settings.live_sessions} places for cameras are taken: try again later")


class _LiveSession:
    """One camera, and what was asked about it. The model's part is done in one thread of its own."""

    def __init__(self, model: ServedModel, socket: WebSocket, settings: ServeSettings, metrics: Metrics) -> None:
        self._model = model
        self._socket = socket
        self._patience_s = settings.patience_s
        self._limits = settings.limits
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "vl3edge-live")
        self._news = asyncio.Event()
        self._frame: tuple[bytes, float] | None = None
        self._questions: deque[dict[str, Any]] = deque()
        self._asked = self._answered = self._stopped = 0  # questions so far; the last that is not wanted any more
        self._dropped = 0
        self._is_over = False

    async def run(self, start: dict[str, Any]) -> None:
        session = await self._do(lambda: self._opened(start))
        receiving = asyncio.create_task(self._receive())
        try:
            await self._send({"type": "ready", "model": self._model.bundle.manifest.name})
            while not self._is_over:
                await self._news.wait()
                self._news.clear()
                if self._frame is not None:
                    await self._see(session)
                if self._questions:
                    await self._answer(session)
        finally:
            self._end()
            receiving.cancel()
            await asyncio.wait({receiving})
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _end(self) -> None:
        self._stopped, self._is_over = self._asked, True

    def _opened(self, start: dict[str, Any]) -> Session:
        threshold = start.get("threshold")
        pruning = None if threshold is None else PruningConfig(threshold=threshold)
        most = min(_CONTEXT_TOKENS, self._model.bundle.manifest.text.max_position_embeddings)
        with self._model.decoder_turns:
            return self._model.open_session(start.get("system"), pruning, most)

    async def _receive(self) -> None:
        """Takes what comes: the newest frame replaces one that waits."""
        begin = time.monotonic()
        try:
            while True:
                message = await _message(self._socket)
                if isinstance(message, bytes):
                    self._dropped += self._frame is not None
                    self._frame = message, time.monotonic() - begin
                elif isinstance(message, dict) and message.get("type") == "ask":
                    if len(self._questions) < _MAX_WAITING:
                        self._questions.append(message)
                        self._asked += 1
                    else:
                        await self._send(_error(ConfigError(f"{_MAX_WAITING} questions wait: ask when they are done")))
                elif isinstance(message, dict) and message.get("type") == "stop":
                    self._stopped = self._asked
                else:
                    await self._send(_error(ConfigError("a message must be a frame, or of type ask or stop")))
                self._news.set()
        except (WebSocketDisconnect, RuntimeError):
            self._end()
        except ConfigError as e:
            self._end()
            await self._send(_error(e))
        finally:
            self._news.set()

    async def _see(self, session: Session) -> None:
        assert self._frame is not None
        (data, time_s), self._frame = self._frame, None

        def push() -> dict[str, Any]:
            pixels = _decoded(data, self._limits)
            with self._model.vision_turns, self._model.decoder_turns:
                report = session.push(pixels, time_s)
            return {"time_s": report.timestamp_s, "kept": report.kept_tokens, "of": report.max_tokens}

        try:
            seen = await self._do(push)
        except Exception as e:
            await self._send(_error(e))
        else:
            in_context = {"frames": session.num_frames, "dropped": self._dropped, "tokens": session.num_tokens}
            await self._send({"type": "frame", **seen, **in_context})

    async def _answer(self, session: Session) -> None:
        asked = self._questions.popleft()
        self._answered += 1
        number = self._answered
        if self._questions:  # after a frame, if one waits
            self._news.set()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def answer() -> dict[str, Any]:
            check_known(asked, ("type", "text", "max_tokens"), "the question")
            text = asked.get("text")
            if not isinstance(text, str) or not 0 < len(text) <= _MAX_QUESTION:
                raise ConfigError("a question is a text, and not an endless one")
            if session.num_frames == 0:
                raise ConfigError("there is no frame yet: send one before you ask")
            said, reason, last_s, is_first = "", "stop", time.monotonic(), True
            with self._model.decoder_turns:
                chunks = session.ask(text, GenerationConfig(max_new_tokens=asked.get("max_tokens")), keep=False)
            while number > self._stopped:
                with self._model.decoder_turns:
                    chunk = next(chunks, None)
                if chunk is None:
                    break
                now = time.monotonic()
                self._metrics.token(now - last_s, is_first)
                last_s, is_first, reason = now, False, chunk.finish_reason or reason
                said += chunk.text
                loop.call_soon_threadsafe(pieces.put_nowait, chunk.text)
            with self._model.decoder_turns:
                getattr(chunks, "close", lambda: None)()
            reason = "cancelled" if number <= self._stopped else reason
            return {"reason": reason, **read_boxes(said, session.source_sizes).to_json()}

        work = asyncio.ensure_future(self._do(answer))
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        while (piece := await pieces.get()) is not None:
            if piece:
                await self._send({"type": "answer", "text": piece})
        try:
            await self._send({"type": "end", **await work})
        except (WebSocketDisconnect, RuntimeError):
            raise
        except Exception as e:
            await self._send(_error(e))

    async def _do(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # `_receive` notices
            await asyncio.wait_for(self._socket.send_text(json.dumps(message, ensure_ascii=False)), self._patience_s)


async def _message(socket: WebSocket) -> Any:
    """The bytes of a binary message, the value of one of text. Raises ConfigError, WebSocketDisconnect."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    data = message.get("bytes")
    if data is not None:
        if len(data) > _MAX_MESSAGE:
            raise ConfigError(f"a frame may have {_MAX_MESSAGE:,} bytes")
        return data
    try:
        return json.loads(message.get("text") or "")
    except (ValueError, RecursionError) as e:
        raise ConfigError("a message that is no frame must be JSON") from e


def _decoded(data: bytes, limits: MediaLimits) -> np.ndarray:
    return load_image(Fetched("the frame", data), limits)


def _error(error: Exception) -> dict[str, Any]:
    told = as_api_error(error)
    return {"type": "error", "status": told.status, **told.to_json()}


async def _refuse(socket: WebSocket, error: Exception) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_text(json.dumps(_error(error)))
        await socket.close(4000)
