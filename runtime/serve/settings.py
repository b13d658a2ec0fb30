"""What a server is told when it starts."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..media.limits import MediaLimits

MEDIA_LIMITS = MediaLimits(max_pixels=4096 * 4096, max_read_s=120, max_duration_s=6 * 3600, isolate=True)


@dataclass(frozen=True)
class ServeSettings:
    """Options of one server.

    host, port: where it listens; port 0 takes any that is free.
    api_key: what clients have to know; None lets everyone in who can reach it.
    media_root: a folder from which requests may name files. allow_urls: whether addresses of the network are fetched.
    batch: answers generated together. queue: requests that may wait beside them.
    live_sessions: cameras at one time.
    max_frames: of a clip, the most that a request may ask for; None is the model's own number.
    max_body_bytes: of a request with JSON. max_upload_bytes: of an uploaded file, and of one that is fetched.
    max_stored_bytes: of all uploads together. keep_uploads_s: after which one is deleted.
    clip_cache_bytes: of visual tokens and previews that are kept for further questions.
    patience_s: how long a client may be silent in the middle of a request, and leave an answer unread.
    answer_limit_s: of one answer, from the request's arrival. idle_s: after which the KV cache is given back.
    tls_certificate, tls_key: files in PEM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    media_root: Path | None = None
    allow_urls: bool = False
    batch: int = 8
    queue: int = 64
    live_sessions: int = 2
    max_frames: int | None = None
    max_body_bytes: int = 64 << 20
    max_upload_bytes: int = 512 << 20
    max_stored_bytes: int = 4 << 30
    keep_uploads_s: float = 3600.0
    clip_cache_bytes: int = 512 << 20
    patience_s: float = 30.0
    answer_limit_s: float = 300.0
    idle_s: float = 600.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    limits: MediaLimits = MEDIA_LIMITS

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must be 0 to 65535, not {self.port}")
        for name in ("batch", "max_body_bytes", "max_upload_bytes", "max_stored_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("queue", "live_sessions", "clip_cache_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("keep_uploads_s", "patience_s", "answer_limit_s", "idle_s"):
            if not 0 < getattr(self, name) < 1e9:
                raise ConfigError(f"{name} must be a positive number of seconds, not {getattr(self, name)}")
        if self.max_frames is not None and self.max_frames < 1:
            raise ConfigError(f"max_frames must be at least 1, not {self.max_frames}")
        if self.media_root is not None and not self.media_root.is_dir():
            raise ConfigError(f"--media-root {self.media_root}: there is no such folder")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("TLS needs both files: --tls-certificate and --tls-key")
        if self.tls_certificate is not None and self.tls_key is not None:
            _check_tls(self.tls_certificate, self.tls_key)
        if self.api_key is not None and (not self.api_key.isascii() or not self.api_key.isprintable()):
            raise ConfigError("the API key must be of printable ASCII characters: it is sent in a header")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("the API key is empty: leave it out, or give one")
        if self.api_key is not None and self.api_key != self.api_key.strip():
            raise ConfigError("the API key has spaces around it, which no client can send: take them away")

    @property
    def is_local(self) -> bool:
        """Whether it listens for this machine alone."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def _check_tls(certificate: Path, key: Path) -> None:
    """uvicorn would read the files late, and ask the terminal for a key's password. Raises ConfigError."""

    def no_password() -> str:
        raise ConfigError(f"{key}: the key is encrypted: give one without a password")

    for file in (certificate, key):
        try:
            file.read_bytes()
        except OSError as e:
            raise ConfigError(f"{file}: {e.strerror}") from e
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, no_password)
    except (ssl.SSLError, ValueError) as e:
        why = (getattr(e, "reason", None) or str(e)).replace("_", " ").lower()
        raise ConfigError(f"{certificate} and {key} are no certificate and its key in PEM: {why}") from e
