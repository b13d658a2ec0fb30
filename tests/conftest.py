"""Fixtures shared by all tests.

Checkpoints and what is exported from them need torch, which is imported when they are asked for. Tests of the runtime
run without it: those that compare with torch are marked, and skipped where it is not installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from made_media import make_media

if TYPE_CHECKING:
    from vl3edge.models.config import Layout

# Before anything imports Triton, which looks at this once: tests/kernels run in its interpreter, without a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples at every run, so that what passed here passes there; `make fuzz` draws others.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

ROOT = Path(__file__).resolve().parent.parent


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = item.get_closest_marker("torch") or "checkpoints" in getattr(item, "fixturenames", ())
    if wanted and find_spec("torch") is None:
        pytest.skip("torch is not installed")


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of real clips and images that lies beside the checkout; else clips made in their place."""
    folder = ROOT.parent / "shared" / "media"
    return folder if folder.is_dir() else make_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """checkpoints(preset, layout, **options): a random-weight checkpoint, written once a session."""
    from vl3edge.models.synthetic.random import preset as preset_config
    from vl3edge.models.synthetic.random import write_random_checkpoint

    written: dict[str, Path] = {}

    def make(preset: str = "tiny", layout: Layout = "transformers", **options: Any) -> Path:
        key = f"{preset}-{layout}-{sorted(options.items())}"
        if key not in written:
            folder = tmp_path_factory.mktemp("checkpoint")
            write_random_checkpoint(folder, preset_config(preset, layout), **options)
            written[key] = folder
        return written[key]

    return make


def _export(checkpoint: Path, folder: Path) -> Path:
    from vl3edge.export.pipeline import export_bundle
    from vl3edge.models.checkpoint import Checkpoint

    export_bundle(Checkpoint.open(checkpoint), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny random checkpoint, fp32; copy it before changing anything in it."""
    return _export(checkpoints("tiny"), tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Path:
    """The bundle that tests use which want any; tests of the runtime have the demo bundle."""
    return tiny_bundle


@pytest.fixture(scope="session")
def authors_bundle(checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny_bundle`, of a checkpoint in the layout of the authors' release."""
    return _export(checkpoints("tiny", "authors"), tmp_path_factory.mktemp("bundle") / "authors")


@pytest.fixture(scope="session")
def one_layer_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny_bundle`, with one decoder layer: what is cached for a token depends on it and its position alone."""
    from vl3edge.models.synthetic.random import preset, write_random_checkpoint

    folder = tmp_path_factory.mktemp("bundle")
    config = preset("tiny", "transformers")
    write_random_checkpoint(folder / "checkpoint", replace(config, text=replace(config.text, num_layers=1)))
    return _export(folder / "checkpoint", folder / "one-layer")
