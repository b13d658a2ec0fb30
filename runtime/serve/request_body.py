"""Reading a request's JSON, and noticing that its client has gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from .api_error import ApiError

T = TypeVar("T")
_LARGE = 1 << 20


class ClientGoneError(Exception):
    """Nobody is there any more to be answered."""


async def json_body(request: Request) -> Any:
    """The value in the body. Raises ApiError for what is no JSON, or is nested beyond all use."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the body must be JSON, with Content-Type: application/json")
    body = await request.body()
    if len(body) > _LARGE:
        return await asyncio.get_running_loop().run_in_executor(None, _parsed, body)
    return _parsed(body)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as e:
        words = "it is nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise ApiError(400, f"the body is not valid JSON: {words[:200]}") from e


async def unless_gone(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled when the client goes. Raises ClientGoneError then. The body has been read."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for other in (task, gone):
            if not other.done():
                other.cancel()
                await asyncio.wait({other})


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
