"""A response of server-sent events, which ends when its client goes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.types import Receive, Scope, Send

from .api_error import as_api_error
from .request_body import ClientGoneError, unless_gone

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies would hold pieces back
]


class EventStream:
    """Sends each item as JSON, then [DONE]; an error that comes on the way is sent as one.

    on_end: called once, however it ends.
    """

    def __init__(self, items: AsyncGenerator[dict[str, Any], None], on_end: Callable[[], None]) -> None:
        self._items = items
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send(send))
        except ClientGoneError:
            return
        finally:
            self._on_end()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        async with aclosing(self._items) as items:
            try:
                async for item in items:
                    await _send_event(send, json.dumps(item, ensure_ascii=False))
            except Exception as e:
                await _send_event(send, json.dumps(as_api_error(e).to_json(), ensure_ascii=False))
            await _send_event(send, "[DONE]")
        await send({"type": "http.response.body", "body": b""})


async def _send_event(send: Send, data: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})
