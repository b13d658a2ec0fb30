"""What a request is refused with, in the shape that OpenAI's clients expect."""

from __future__ import annotations

from typing import Any

from ..errors import (
    BackendError,
    ConfigError,
    ContextLengthError,
    MediaError,
    MemoryLimitError,
    Vl3EdgeError,
)


class ApiError(Vl3EdgeError):
    """An HTTP status and its reason.

    kind: OpenAI's `type`. code: something for programs to look at. retry_after_s: when to ask again, where that helps.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == 408:  # what is left of the request is not waited for
            headers["Connection"] = "close"
        return headers

    def to_json(self) -> dict[str, Any]:
        message = str(self).encode("utf-8", "replace").decode()  # it may quote anything
        error = {"message": message, "type": self.kind, "param": None, "code": self.code}
        return {"error": error}


class TimeLimitError(ApiError):
    """An answer that took longer than the server allows."""

    def __init__(self, limit_s: float) -> None:
        message = f"the answer took longer than the server's limit of {limit_s:g} s: ask for fewer frames or tokens"
        super().__init__(504, message, "timeout_error", "timeout")


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an error; of those that are not its own doing, nothing from inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, MediaError):
        return ApiError(400, str(error), code="invalid_media")
    if isinstance(error, ConfigError):
        return ApiError(400, str(error))
    if isinstance(error, MemoryLimitError | MemoryError):
        return ApiError(503, "not enough memory for this request: use fewer frames", "server_error", "no_memory")
    if isinstance(error, BackendError):
        return ApiError(500, str(error), "server_error", "backend")
    return ApiError(500, "the server failed at this request; its log says how", "server_error", "internal_error")
