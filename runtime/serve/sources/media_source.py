"""Where the media of a request are: in the request, among the uploads, below the media root, or on the network."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote_to_bytes

from ...errors import MediaError
from ...media.addresses import is_address
from ..settings import ServeSettings
from .download import download
from .media_root import MediaRoot
from .uploads import MediaFile, Uploads

_DATA = re.compile(r"data:([^,]{0,200}),", re.IGNORECASE)
_FILE_ID = re.compile(r"file-[\w-]{8,64}")
_FETCH_S = 60.0
# Playlists, scripts and manifests for FFmpeg, which name other files and addresses for it to open.
_LISTS = (b"ffconcat", b"#extm3u", b"<?xml", b"<mpd", b"v=0")


class MediaSources:
    """Finds the file that a request means. Its methods block: they are for worker threads."""

    def __init__(self, settings: ServeSettings, uploads: Uploads) -> None:
        self._settings = settings
        self._uploads = uploads
        self._root = None if settings.media_root is None else MediaRoot(settings.media_root)

    @contextmanager
    def file(self, url: str) -> Iterator[MediaFile]:
        """The file of a url as a request has it, there inside `with`. Raises MediaError and ApiError.

        A file that names others is refused: it would be read by this server, whatever they are.
        """
        with self._found(url) as file:
            with file.path.open("rb") as opened:
                if opened.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_LISTS):
                    raise MediaError(f"{file.name}: this is a list of other files, which are not read for requests")
            yield file

    @contextmanager
    def _found(self, url: str) -> Iterator[MediaFile]:
        if url[:5].lower() == "data:":
            with self._uploads.passing(_data(url), "the data URL") as file:
                yield file
        elif _FILE_ID.fullmatch(url):
            yield self._uploads.get(url).media
        elif url.lower().startswith(("http://", "https://")):
            if not self._settings.allow_urls:
                raise MediaError("this server fetches nothing from the network (it was started without --allow-urls)")
            data = download(url, self._settings.max_upload_bytes, _FETCH_S)
            with self._uploads.passing(data, url.partition("?")[0]) as file:
                yield file
        elif is_address(url) and not url.lower().startswith("file://"):
            raise MediaError(
                "media are data URLs, ids of uploaded files, paths below --media-root, or http(s) addresses"
            )
        elif self._root is None:
            raise MediaError("this server reads no files of its own (it was started without --media-root)")
        else:
            yield self._root.find(url)


def _data(url: str) -> bytes:
    """The content of a data URL; what it says of its type is not believed."""
    head = _DATA.match(url)
    if head is None:
        raise MediaError("the data URL has no comma before its data")
    body = url[head.end() :]
    if not head[1].lower().endswith(";base64"):
        data = unquote_to_bytes(body)
    else:
        try:
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as e:
            raise MediaError(f"the data URL is not valid base64 ({e})") from e
    if not data:
        raise MediaError("the data URL is empty")
    return data
