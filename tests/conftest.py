"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

# Before anything imports Triton, which looks at this once: tests/kernels run in its interpreter, without a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import Layout
from vl3edge.models.random import preset as preset_config
from vl3edge.models.random import write_random_checkpoint

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def media() -> Path:
    """The folder of real clips and images that lies beside the checkout."""
    folder = ROOT.parent / "shared" / "media"
    if not folder.is_dir():
        pytest.skip("the shared media folder is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """checkpoints(preset, layout, **options): a random-weight checkpoint, written once a session."""
    written: dict[str, Path] = {}

    def make(preset: str = "tiny", layout: Layout = "transformers", **options: Any) -> Path:
        key = f"{preset}-{layout}-{sorted(options.items())}"
        if key not in written:
            folder = tmp_path_factory.mktemp("checkpoint")
            write_random_checkpoint(folder, preset_config(preset, layout), **options)
            written[key] = folder
        return written[key]

    return make


@pytest.fixture(scope="session")
def bundle(checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny random checkpoint, fp32; copy it before changing anything in it."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    export_bundle(Checkpoint.open(checkpoints("tiny")), folder)
    return folder


@pytest.fixture(scope="session")
def authors_bundle(checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `bundle`, of a checkpoint in the layout of the authors' release."""
    folder = tmp_path_factory.mktemp("bundle") / "authors"
    export_bundle(Checkpoint.open(checkpoints("tiny", "authors")), folder)
    return folder


@pytest.fixture(scope="session")
def one_layer_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `bundle`, with a decoder of one layer: what is cached for a token depends on it and its position alone."""
    folder = tmp_path_factory.mktemp("bundle")
    config = preset_config("tiny", "transformers")
    write_random_checkpoint(folder / "checkpoint", replace(config, text=replace(config.text, num_layers=1)))
    export_bundle(Checkpoint.open(folder / "checkpoint"), folder / "one-layer")
    return folder / "one-layer"
