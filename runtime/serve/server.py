"""The web server around the application."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import uvicorn

from ..errors import ConfigError
from .app import Application
from .patient_protocol import patient_protocol
from .served_model import ServedModel
from .settings import ServeSettings

_CONNECTIONS = 1024
_WINDING_UP_S = 5
_FRAME_BYTES = 8 << 20


class Server:
    """One server. Raises ConfigError where it cannot listen.

    address: where it listens.
    """

    def __init__(self, model: ServedModel, settings: ServeSettings) -> None:
        self._listener = _listening(settings)
        self._application = Application(model, settings)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._application.asgi,
                http=patient_protocol(settings.patience_s),
                log_config=None,  # which would print addresses with what is in their queries
                access_log=False,
                server_header=False,
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=_WINDING_UP_S,
                ws_max_size=_FRAME_BYTES,
                ssl_certfile=settings.tls_certificate,
                ssl_keyfile=settings.tls_key,
            )
        )
        scheme = "http" if settings.tls_certificate is None else "https"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.address = f"{scheme}://{host}:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        """Serves until SIGINT, SIGTERM or `stop`; then answers under way are ended and uploads deleted."""
        _raise_file_limit()
        with self._listener, closing(self._application), _signals_that_end_nothing():
            self._server.run(sockets=[self._listener])

    def stop(self) -> None:
        """May be called in any thread."""
        self._server.should_exit = True


@contextlib.contextmanager
def _signals_that_end_nothing() -> Iterator[None]:
    """uvicorn sends itself the signals that ended it once more when it is done; there is still to be cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listening(settings: ServeSettings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family, backlog=512)
    except OSError as e:
        raise ConfigError(f"cannot listen at {settings.host}, port {settings.port}: {e.strerror}") from e


def _raise_file_limit() -> None:
    """Connections are files, too, and the usual limit of 1,024 is for programs that are no servers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
