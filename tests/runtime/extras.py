"""Marks of tests that need one of the runtime's extras."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

needs_parquet = pytest.mark.skipif(find_spec("pyarrow") is None, reason="the extra [parquet] is not installed")
needs_llguidance = pytest.mark.skipif(find_spec("llguidance") is None, reason="the extra [schema] is not installed")
needs_server = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("starlette", "uvicorn", "websockets", "multipart")),
    reason="the extra [serve] is not installed",
)
