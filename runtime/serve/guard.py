"""What every request has to pass: who asks, from which page, how much it sends, and how slowly."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_error import ApiError
from .settings import ServeSettings

UPLOADS = "/v1/files"
_OPEN = ("/", "/health")
_STATIC = "/static/"
_LOCAL = ("localhost", "127.0.0.1", "::1")
_LEAST_RATE = 16 << 10  # bytes a second, beyond the first moments
_BODIES_AT_ONCE = 4  # of the largest size, in all requests together
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", _POLICY.encode()),
]


class Guard:
    """Middleware. on_response: is told path and status of every response."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, on_response: Callable[[str, int], None]) -> None:
        self._app = app
        self._settings = settings
        self._on_response = on_response
        self._room = _BODIES_AT_ONCE * settings.max_body_bytes  # for bodies that are held in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_page(scope, headers)
            if scope["type"] == "http":
                self._check_key(scope["path"], headers)
                self._check_length(scope["path"], headers)
        except ApiError as e:
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 4403, "reason": str(e)[:100]})
                return
            refusal = JSONResponse(e.to_json(), e.status, e.headers)
            await refusal(scope, receive, self._noted(scope, send))
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        body = _Body(self, scope["path"], receive)
        try:
            await self._app(scope, body.receive, self._noted(scope, send))
        finally:
            self._room += body.held

    def check_key(self, key: str) -> None:
        """Raises ApiError for any other key than the server's."""
        wanted, given = self._settings.api_key, key.encode("utf-8", "replace")  # JSON may have what is no text
        if wanted is not None and not secrets.compare_digest(given, wanted.encode()):
            raise ApiError(401, "this server wants its API key: Authorization: Bearer KEY", code="invalid_api_key")

    def most_bytes(self, path: str) -> int:
        """Of a request's body."""
        extra = 1 << 16  # of a form around the file
        return self._settings.max_upload_bytes + extra if path == UPLOADS else self._settings.max_body_bytes

    def take(self, path: str, count: int) -> int:
        """Takes room for so many bytes of a body; uploads go to the disk. Raises ApiError where there is none."""
        if path == UPLOADS:
            return 0
        if count > self._room:
            raise ApiError(429, "the server is reading too many large requests", "rate_limit_error", "busy", 5)
        self._room -= count
        return count

    @property
    def patience_s(self) -> float:
        return self._settings.patience_s

    def _check_key(self, path: str, headers: Headers) -> None:
        if path not in _OPEN and not path.startswith(_STATIC):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            self.check_key(key.strip() if scheme.lower() == "bearer" else "")

    def _check_page(self, scope: Scope, headers: Headers) -> None:
        """Pages of other sites may neither use this server through a visitor's browser, nor call it by their name."""
        host = headers.get("host", "")
        if self._settings.is_local and (_parts(f"//{host}").hostname or "") not in (*_LOCAL, self._settings.host):
            raise ApiError(403, "this server answers to localhost alone: start it with --host for others")
        origin = headers.get("origin")
        if origin is not None and scope.get("method") != "GET" and _parts(origin).netloc.lower() != host.lower():
            raise ApiError(403, "requests from the pages of other sites are refused")

    def _check_length(self, path: str, headers: Headers) -> None:
        stated = headers.get("content-length", "0")
        if stated.isdigit() and int(stated) > self.most_bytes(path):
            raise too_large(self.most_bytes(path))

    def _noted(self, scope: Scope, send: Send) -> Send:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
                self._on_response(scope["path"], message["status"])
            await send(message)

        return noted


def _parts(address: str) -> SplitResult:
    """Of what a header names. Raises ApiError for what is no address."""
    try:
        return urlsplit(address)
    except ValueError as e:
        raise ApiError(400, "the header Host or Origin is no address") from e


def too_large(most_bytes: int) -> ApiError:
    return ApiError(413, f"the request is larger than the server's limit of {most_bytes:,} bytes", code="too_large")


class _Body:
    """A request's body while it is read. held: bytes of it that count as in memory."""

    def __init__(self, guard: Guard, path: str, receive: Receive) -> None:
        self.held = 0
        self._guard = guard
        self._path = path
        self._receive = receive
        self._begin_s = time.monotonic()
        self._size = 0
        self._is_whole = False

    async def receive(self) -> Message:
        """Raises ApiError for a body that is too large, or comes too slowly."""
        if self._is_whole:
            return await self._receive()  # which comes when the client goes
        allowed_s = self._guard.patience_s + self._size / _LEAST_RATE
        left_s = min(self._guard.patience_s, self._begin_s + allowed_s - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, left_s))
        except (TimeoutError, asyncio.TimeoutError) as e:
            raise ApiError(408, "the rest of the request did not come in time", code="too_slow") from e
        count = len(message.get("body", b""))
        self._size += count
        self._is_whole = not message.get("more_body", False)
        if self._size > self._guard.most_bytes(self._path):
            raise too_large(self._guard.most_bytes(self._path))
        self.held += self._guard.take(self._path, count)
        return message
