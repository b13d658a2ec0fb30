"""The application: which address does what."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from ..errors import Vl3EdgeError
from .admission import Admission
from .api_error import ApiError, as_api_error
from .clips import Clips
from .completions import Completions
from .decoding import Decoding
from .files import Files
from .guard import UPLOADS, Guard
from .live import LiveSessions
from .metrics import CONTENT_TYPE, Metrics
from .request_body import ClientGoneError
from .served_model import ServedModel
from .settings import ServeSettings
from .sources.media_source import MediaSources
from .sources.uploads import Uploads

PAGE = Path(__file__).with_name("page")
_EXPIRE_EVERY_S = 30.0
_PATHS = ("/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/live", UPLOADS)


class Application:
    """One model behind HTTP; `asgi` is what a web server runs. Close it when that has ended."""

    def __init__(self, model: ServedModel, settings: ServeSettings) -> None:
        self._model = model
        self._created_s = int(time.time())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._metrics = Metrics()
        self._uploads = Uploads(settings.max_stored_bytes, settings.keep_uploads_s, self._forget)
        self._clips = Clips(model, MediaSources(settings, self._uploads), settings.clip_cache_bytes)
        self._decoding = Decoding(model, settings.batch, settings.idle_s)
        self._admission = Admission(settings.batch + settings.queue, settings.batch)
        most_frames = settings.max_frames or model.max_frames
        files = Files(self._uploads, self._clips, self._admission, settings.max_upload_bytes, most_frames)
        completions = Completions(model, self._clips, self._decoding, self._admission, self._metrics, settings)
        routes = Starlette(
            routes=[
                Route("/", lambda _: FileResponse(PAGE / "index.html")),
                Mount("/static", StaticFiles(directory=PAGE)),
                Route("/health", self._health),
                Route("/metrics", self._text_of_metrics),
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model_named),
                Route("/v1/chat/completions", completions.__call__, methods=["POST"]),
                Route(UPLOADS, files.create, methods=["POST"]),
                Route(UPLOADS + "/{file_id}", files.get, methods=["GET"]),
                Route(UPLOADS + "/{file_id}", files.delete, methods=["DELETE"]),
                Route(UPLOADS + "/{file_id}/frames", files.frames),
                WebSocketRoute("/v1/live", self._live_session),
            ],
            lifespan=self._lifespan,
            exception_handlers={
                Vl3EdgeError: _refused,
                MemoryError: _refused,
                ClientGoneError: lambda *_: Response(status_code=499),
                HTTPException: _http,
                Exception: _refused,
            },
        )
        self._guard = Guard(routes, settings, self._note)
        self._live = LiveSessions(model, self._guard, settings, self._metrics)
        self.asgi = self._guard
        self._add_figures()

    def close(self) -> None:
        """Ends the threads and deletes the uploads."""
        self._clips.close()
        self._decoding.close()
        self._uploads.close()

    def _add_figures(self) -> None:
        figures = {
            "requests_waiting": ("Prompts that wait for a row of the batch", lambda: self._decoding.num_waiting),
            "requests_answering": ("Answers under way", lambda: self._decoding.num_active),
            "requests_admitted": ("Requests that have a place", lambda: self._admission.taken),
            "places": ("Requests that may have one", lambda: self._admission.places),
            "requests_refused": ("Requests refused for want of a place", lambda: self._admission.refused),
            "live_sessions": ("Cameras", lambda: self._live.open),
            "clip_cache_bytes": ("Visual tokens and previews that are kept", lambda: self._clips.cache.num_bytes),
            "upload_bytes": ("Files that were uploaded", lambda: self._uploads.num_bytes),
        }
        for name, (words, value) in figures.items():
            self._metrics.gauge(name, words, value)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        expiring = asyncio.create_task(self._expire())
        yield
        expiring.cancel()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            self._uploads.expire()

    def _forget(self, digest: str) -> None:
        """A file is gone, and with it what was made of it; called in any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._clips.cache.forget, digest)

    def _note(self, path: str, status: int) -> None:
        known = path if path in _PATHS else f"{UPLOADS}/…" if path.startswith(UPLOADS) else "other"
        self._metrics.requests.labels(known, str(status)).inc()

    async def _live_session(self, socket: Any) -> None:
        await self._live(socket)

    async def _health(self, _: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "model": self._model.bundle.manifest.name, "version": version("vl3edge")})

    async def _text_of_metrics(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _models(self, _: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model_named(self, request: Request) -> JSONResponse:
        if request.path_params["model"] != self._model.bundle.manifest.name:
            raise ApiError(404, f"the model here is {self._model.bundle.manifest.name}", code="model_not_found")
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        manifest = self._model.bundle.manifest
        own = {"max_model_len": manifest.text.max_position_embeddings, "backend": self._model.info["backend"]}
        return {"id": manifest.name, "object": "model", "created": self._created_s, "owned_by": "vl3edge", **own}


async def _refused(_: Request, error: Exception) -> Response:
    told = as_api_error(error)
    return JSONResponse(told.to_json(), told.status, told.headers)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing at this address", 405: "this address does not take this method"}
    told = ApiError(error.status_code, words.get(error.status_code, str(error.detail)))
    return JSONResponse(told.to_json(), told.status, dict(error.headers or {}))
