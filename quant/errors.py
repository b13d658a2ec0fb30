"""The one error of this package that a user can act on."""

from __future__ import annotations


class QuantError(ValueError):
    """A weight, Hessian, plan or checkpoint cannot be quantized as asked; the message says which and why."""
