"""Fixtures of the runtime's tests, which need no torch: the bundle is the one that ships with the package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE

# What draws is in an extra of its own.
collect_ignore = [] if find_spec("matplotlib") else ["inspect/test_inspection.py"]


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The demo bundle; copy it before changing anything in it."""
    return DEMO_BUNDLE


@pytest.fixture(
    scope="session",
    params=[
        "bundle",
        pytest.param("tiny_bundle", marks=pytest.mark.torch),
        pytest.param("authors_bundle", marks=pytest.mark.torch),
    ],
)
def any_bundle(request: pytest.FixtureRequest) -> Path:
    """The demo bundle; where torch is, also random weights in both published layouts."""
    return Path(request.getfixturevalue(request.param))
