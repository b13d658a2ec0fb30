"""The endpoints below /v1/files: uploads, and what the model sees of them. There is no list: an id is a secret."""

from __future__ import annotations

from typing import Any, get_args

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse

from ..config import MediaKind
from ..errors import ConfigError
from ..inspect.frames import data_uri
from .admission import Admission
from .api_error import ApiError
from .chat_request import CLIP_FIELDS, check_known, pruning_config, sampling_plan
from .clips import Clips, PreparedClip
from .request_body import unless_gone
from .sources.uploads import StoredFile, Uploads

_MAX_NAME = 200


class Files:
    """Stores, shows and deletes what clients send. most_bytes: of a file. most_frames: that a clip may have."""

    def __init__(self, uploads: Uploads, clips: Clips, admission: Admission, most_bytes: int, most_frames: int) -> None:
        self._uploads = uploads
        self._clips = clips
        self._admission = admission
        self._most_bytes = most_bytes
        self._most_frames = most_frames

    async def create(self, request: Request) -> JSONResponse:
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise ApiError(415, "a file is uploaded as multipart/form-data, in the field `file`")
        async with request.form(max_files=1, max_fields=8) as form:
            file, purpose = form.get("file"), form.get("purpose", "user_data")
            if not isinstance(file, UploadFile) or not isinstance(purpose, str):
                raise ApiError(400, "the form has no file in the field `file`")
            if (file.size or 0) > self._most_bytes:
                raise ApiError(413, f"the file is larger than {self._most_bytes:,} bytes", code="too_large")
            source, name = file.file, (file.filename or "the upload")[:_MAX_NAME]
            stored = await self._clips.in_thread(lambda: self._uploads.add(source, name, purpose[:64]))
        return JSONResponse(_described(stored))

    async def get(self, request: Request) -> JSONResponse:
        return JSONResponse(_described(self._uploads.get(request.path_params["file_id"])))

    async def delete(self, request: Request) -> JSONResponse:
        file_id = request.path_params["file_id"]
        self._uploads.remove(file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    async def frames(self, request: Request) -> JSONResponse:
        """What the model sees of an upload; `kind`, and our fields for sampling and pruning, in the query."""
        file_id, given = request.path_params["file_id"], _numbers(dict(request.query_params))
        self._uploads.get(file_id)
        check_known(given, ("kind", *CLIP_FIELDS), "the query")
        kind = given.pop("kind", "video")
        if kind not in get_args(MediaKind):
            raise ConfigError(f"kind must be 'image' or 'video', not {kind!r}")
        sampling, pruning = sampling_plan(given, self._most_frames), pruning_config(given)
        with self._admission.place():
            made = await unless_gone(request.receive, self._clips.clip(file_id, kind, sampling, pruning, True))
        return JSONResponse(_frames(made))


def _numbers(query: dict[str, Any]) -> dict[str, Any]:
    """Values of a query as JSON would have them."""
    read: dict[str, Any] = {}
    for name, text in query.items():
        if text in ("true", "false"):
            read[name] = text == "true"
            continue
        try:
            read[name] = int(text) if text.lstrip("-").isdigit() else float(text)
        except ValueError:
            read[name] = text
    return read


def _described(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.media.num_bytes,
        "created_at": int(file.created_s),
        "expires_at": int(file.expires_s),
        "filename": file.media.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def _frames(made: PreparedClip) -> dict[str, Any]:
    clip = made.clip
    frames = [
        {
            "time_s": shown.time_s,
            "picture": data_uri(shown.picture, "image/jpeg"),
            "veil": data_uri(shown.veil, "image/png"),
            "kept": shown.kept,
            "of": shown.of,
        }
        for shown in made.previews or ()
    ]
    return {
        "kind": clip.kind,
        "width_px": clip.width_px,
        "height_px": clip.height_px,
        "source_width_px": clip.source_size[1],
        "source_height_px": clip.source_size[0],
        "threshold": clip.threshold,
        "kept": clip.num_tokens,
        "pruned": clip.num_pruned,
        "frames": frames,
    }
