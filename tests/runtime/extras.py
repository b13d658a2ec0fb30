"""Marks of tests that need one of the runtime's extras."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

needs_parquet = pytest.mark.skipif(find_spec("pyarrow") is None, reason="the extra [parquet] is not installed")
