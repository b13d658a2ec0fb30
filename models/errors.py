"""The one error of this package: a checkpoint that cannot be used, and why."""

from __future__ import annotations

from vl3edge.runtime.errors import Vl3EdgeError


class CheckpointError(Vl3EdgeError, ValueError):
    """A checkpoint is missing, damaged, incomplete, or of an unsupported kind.

    The message names the file, and the key or tensor in it.
    """
