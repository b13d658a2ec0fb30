"""The one error of this package that a user can act on."""

from __future__ import annotations

from vl3edge.runtime.errors import Vl3EdgeError


class QuantError(Vl3EdgeError, ValueError):
    """A weight, Hessian, plan or checkpoint cannot be quantized as asked; the message says which and why."""
