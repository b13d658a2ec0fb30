"""Servers in threads of the tests' own process, with the demo bundle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vl3edge.runtime.serve.served_model import ServedModel

SERVING = ("starlette", "uvicorn", "websockets", "multipart", "prometheus_client", "openai", "llguidance")
MISSING = [name for name in SERVING if find_spec(name) is None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark = pytest.mark.skip(reason=f"the extra [serve] is not installed ({', '.join(MISSING)})")
    for item in items:
        if MISSING and item.path.parent == Path(__file__).parent:
            item.add_marker(mark)


@pytest.fixture(scope="session")
def model() -> ServedModel:
    from vl3edge.runtime.serve.served_model import ServedModel
    from vl3edge.runtime.serve.settings import MEDIA_LIMITS

    loaded = ServedModel.load(num_threads=1, limits=MEDIA_LIMITS)
    assert isinstance(loaded, ServedModel)
    return loaded


@contextmanager
def running(model: ServedModel, **settings: Any) -> Iterator[str]:
    """The address of a server."""
    from vl3edge.runtime.serve.server import Server
    from vl3edge.runtime.serve.settings import ServeSettings

    server = Server(model, replace(ServeSettings(port=0, patience_s=2.0, batch=4), **settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.address
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def serve(model: ServedModel) -> Iterator[Callable[..., str]]:
    """serve(**settings): the address of a server that runs until the module's tests have ended."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(model, **settings))
