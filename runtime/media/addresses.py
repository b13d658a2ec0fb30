"""Media at an address: pictures are fetched whole, within limits; FFmpeg reads videos itself.

The first bytes tell which it is, so an address needs no suffix. http and https addresses are requested here first,
videos too, so that their errors read the same.
"""

from __future__ import annotations

import base64
import errno
import http.client
import os
import re
import socket
import ssl
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, url2pathname, urlopen

import av

from ..errors import MediaError
from .limits import MediaLimits, ReadingClock
from .signatures import PREFIX_BYTES, TGA_SUFFIXES, picture_format, starts_as_picture

UNREADABLE = "it sends no readable picture or video"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_QUERY_VALUES = re.compile(r"(?<==)[^&\s]+?(?=[:;,.)'\"]*(?:&|\s|$))")
_WITH_QUERY = re.compile(r"(\w[\w+.-]*://[^\s?#]*\?)(\S+)")
_WITH_PASSWORD = re.compile(r"(?<=://)([^/@:\s]*):[^/@\s]*@")


@dataclass(frozen=True)
class Fetched:
    """A picture that was fetched. name: its address, as it was given."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


def is_address(name: str) -> bool:
    """Whether a name begins as an address does (http://, rtsp://, …) and is not the name of a file here.

    A colon alone makes no address: `2024-01-01T12:30:00.mp4` and `concat:x.mp4` are names of files.
    """
    return _SCHEME.match(name) is not None and not os.path.lexists(name)


def local_path(name: str) -> str:
    """The path of a file:// address; any other name unchanged. Raises MediaError for another host's."""
    if not name.lower().startswith("file://"):
        return name
    parts = urlsplit(name.replace("#", "%23").replace("?", "%3F"))
    if parts.netloc not in ("", "localhost"):
        raise MediaError(f"{name}: file:// addresses are local: write file:/// before the path")
    return url2pathname(parts.path)


def clip_key(media: str) -> str:
    """One name for all names of a clip, so that `a.mp4` and `./a.mp4` are captioned once. Links stay themselves."""
    try:
        path = local_path(media)
    except MediaError:
        path = media
    return path if is_address(path) else os.path.abspath(path)


def suffix_of(name: str) -> str:
    """The suffix of a path, or of an address's path, in lower case."""
    return PurePosixPath(unquote(urlsplit(name).path) if is_address(name) else name).suffix.lower()


def without_secrets(text: str) -> str:
    """A message in which addresses have lost their passwords and the values in their queries."""
    text = _WITH_PASSWORD.sub(r"\1:***@", text)
    return _WITH_QUERY.sub(lambda found: found[1] + _QUERY_VALUES.sub("…", found[2]), text)


def located(source: str | Path | Fetched, limits: MediaLimits) -> str | Path | Fetched:
    """Where a source's bytes are: a path for a file:// address, the bytes for a picture at an http(s) address.

    Everything else is unchanged, including videos at an address. Raises MediaError if nothing can be fetched.
    """
    if isinstance(source, Fetched) or not is_address(str(source)):
        return source
    address = str(source)
    if not address.lower().startswith(("http://", "https://")):
        return local_path(address)
    with ReadingClock(address, limits) as clock:
        try:
            data = _picture_at(address, limits, clock)
        except (OSError, http.client.HTTPException, ValueError) as e:
            if isinstance(e, MediaError):
                raise
            raise MediaError(f"{address}: {unreachable(e, limits.silence_s)}") from e
    if data is None or picture_format(BytesIO(data), suffix_of(address)) is None:
        return address
    return Fetched(address, data)


def _picture_at(address: str, limits: MediaLimits, clock: ReadingClock) -> bytes | None:
    """All bytes of a picture; None, after the first few, for anything else."""
    parts: list[bytes] = []
    with urlopen(_request(address), timeout=limits.silence_s) as response:
        named = suffix_of(address) in TGA_SUFFIXES or response.headers.get_content_maintype() == "image"
        wanted = False
        size = 0
        while part := response.read1(1 << 16):
            clock.check()
            parts.append(part)
            size += len(part)
            if not wanted and size >= PREFIX_BYTES:
                wanted = named or starts_as_picture(b"".join(parts)[:PREFIX_BYTES])
                if not wanted:
                    return None
            if size > limits.max_fetch_bytes:
                raise MediaError(
                    f"{address}: the picture is larger than the limit of {limits.max_fetch_bytes:,} bytes "
                    "(max_fetch_bytes)"
                )
        if response.length:
            raise ConnectionResetError
    data = b"".join(parts)
    if not data:
        raise MediaError(f"{address}: the server sends nothing")
    return data


def _request(address: str) -> Request:
    """A request for an address as people write it: with letters of any script, and perhaps a name and a password."""
    parts = urlsplit(address)
    user, _, host = parts.netloc.rpartition("@")
    url = quote(parts._replace(netloc=host, fragment="").geturl(), safe="%/:=&?~+!$,;'@()*[]")
    request = Request(url, headers={"User-Agent": "vl3edge"})
    if user:
        secret = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request


def unreachable(error: Exception, silence_s: float) -> str:
    """The meaning for an address of an error of Python's or FFmpeg's network functions."""
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}".rstrip()
    if isinstance(error, URLError):
        if not isinstance(error.reason, Exception):
            return str(error.reason)
        error = error.reason
    if isinstance(error, ssl.SSLError):
        return f"no trusted TLS connection: {getattr(error, 'verify_message', '') or error.reason or error}"
    if isinstance(error, socket.gaierror):
        return "the host is unknown"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing is listening there"
    if isinstance(error, TimeoutError | av.ExitError):
        return f"silent for {silence_s:g} s (time-out)"
    if isinstance(error, ConnectionError | http.client.RemoteDisconnected | http.client.IncompleteRead):
        return "the connection was lost"
    if isinstance(error, av.InvalidDataError):
        return UNREADABLE
    if isinstance(error, av.ProtocolNotFoundError):
        return "FFmpeg does not support this protocol"
    if isinstance(error, OSError) and error.errno == errno.EIO:  # which is all that FFmpeg says of either
        return "the connection was lost, or the host is unknown"
    if isinstance(error, OSError) and error.errno:
        return error.strerror or os.strerror(error.errno)
    return f"not a valid address ({' '.join(str(error).split()) or type(error).__name__})"
