"""Errors a user can act on. Each message names the file or value and says what to do.

Every class also subclasses a builtin, so that callers who know nothing of vl3edge can write `except OSError`.
"""

from __future__ import annotations


class Vl3EdgeError(Exception):
    """Base of all errors raised on purpose, also by the packages beside the runtime."""


class MediaError(Vl3EdgeError, OSError):
    """A media file is missing, unreadable, damaged or holds no usable frame."""

    __str__ = Exception.__str__  # OSError's own __str__ expects (errno, message)


def no_such_file(name: str, wanted: str = "file") -> str:
    """The message for a name that does not exist. wanted: what it could have been."""
    if name == "-":
        return "-: media cannot be read from stdin, which can be read only once: save them to a file and name it"
    return f"{name or repr(name)}: there is no such {wanted}; check the path"


class BundleError(Vl3EdgeError, OSError):
    """A bundle is missing, incomplete, changed, or of a version this runtime does not know."""

    __str__ = Exception.__str__


class OutputError(Vl3EdgeError, OSError):
    """A file cannot be written: another process is writing it, or it may not be replaced."""

    __str__ = Exception.__str__


class ConfigError(Vl3EdgeError, ValueError):
    """An option has a value that cannot work; the message lists the valid ones."""


class BackendError(Vl3EdgeError, RuntimeError):
    """The inference backend asked for is not installed or not usable on this machine."""


class ContextLengthError(Vl3EdgeError, ValueError):
    """The prompt and the tokens asked for do not fit the model's context."""


class MemoryLimitError(Vl3EdgeError, MemoryError):
    """A model does not fit the available memory, or the limit that was set."""


class MediaWarning(UserWarning):
    """A media file was usable only in part; the message counts what was lost."""


class BatchWarning(UserWarning):
    """A batch was made smaller than asked for; the message says why."""


class BackendWarning(UserWarning):
    """A backend runs what it was asked to, but slower than it could; the message says why."""


def unexpected(name: str, error: BaseException) -> MediaError:
    """The error to raise for an unexpected exception while reading or captioning the clip `name`."""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return MediaError(f"{name}: {what} (unexpected: please report it, with the clip)")
