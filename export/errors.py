"""The one error of this package: an export that cannot be done, and what to change."""

from __future__ import annotations

from vl3edge.runtime.errors import Vl3EdgeError


class ExportError(Vl3EdgeError, RuntimeError):
    """An export was refused or failed; no incomplete bundle is left behind."""
