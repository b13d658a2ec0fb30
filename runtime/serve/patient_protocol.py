"""HTTP connections with an end to patience: for a request's head that does not come, and an answer that is not read."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_protocol(patience_s: float) -> type[H11Protocol]:
    """The protocol for connections that may be silent for so long in the middle of something."""

    class PatientProtocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _is_upgraded = False  # to a WebSocket, which may be silent

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head = self.loop.call_later(patience_s, self._cut_head)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            is_waited_for = self._is_idle and not self._is_upgraded and self.timeout_keep_alive_task is None
            if is_waited_for and self._head is None:
                self._head = self.loop.call_later(patience_s, self._cut_head)

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._is_upgraded = True
            self._forget()
            super().handle_websocket_upgrade(event)

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(patience_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        @property
        def _is_idle(self) -> bool:
            """Whether no request is being answered."""
            return self.cycle is None or self.cycle.response_complete

        def _cut_head(self) -> None:
            self._head = None
            if self._is_idle and self.timeout_keep_alive_task is None:
                self.transport.abort()

        def _forget(self) -> None:
            for timer in (self._head, self._unread):
                if timer is not None:
                    timer.cancel()
            self._head = self._unread = None

    return PatientProtocol
