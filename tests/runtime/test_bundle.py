"""A bundle is used whole or not at all: every defect is named, all in one message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vl3edge.runtime.bundle import open_bundle
from vl3edge.runtime.errors import BundleError
from vl3edge.runtime.manifest import Manifest


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "bundle.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_sound_bundle_opens_and_its_manifest_round_trips(bundle: Path) -> None:
    opened = open_bundle(bundle)
    data = json.loads((bundle / "bundle.json").read_text())
    assert json.loads(json.dumps(opened.manifest.to_json())) == data
    assert Manifest.from_json(data) == (opened.manifest, [])
    assert opened.num_bytes == sum(f.stat().st_size for f in bundle.iterdir() if f.name != "bundle.json")


def test_every_missing_and_changed_file_is_named_at_once(copy: Path) -> None:
    (copy / "vision.onnx").unlink()
    flipped = bytearray((copy / "decoder.onnx.data").read_bytes())
    flipped[1000] ^= 1
    (copy / "decoder.onnx.data").write_bytes(flipped)
    (copy / "tokenizer.json").write_bytes((copy / "tokenizer.json").read_bytes()[:-1])
    with pytest.raises(BundleError) as e:
        open_bundle(copy)
    message = str(e.value)
    assert "vision.onnx is missing" in message
    assert "decoder.onnx.data was changed" in message
    assert "tokenizer.json has " in message
    assert "vision.onnx.data" not in message
    assert isinstance(e.value, OSError)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "future version": (lambda d: d.update(format_version=99), "upgrade vl3edge"),
    "other format": (lambda d: d.update(format="zip"), "not a vl3edge-bundle manifest"),
    "missing key": (lambda d: d["text"].pop("vocab_size"), "text.vocab_size is missing"),
    "wrong type": (lambda d: d["text"].update(num_layers="3"), "text.num_layers is '3', not int"),
    "boolean for a number": (lambda d: d["vision"].update(patch_size=True), "vision.patch_size is True, not int"),
    "huge size": (lambda d: d["text"].update(vocab_size=1 << 40), "text.vocab_size is 1099511627776, out of bounds"),
    "negative size": (lambda d: d["vision"].update(hidden_size=-1), "vision.hidden_size is -1, out of bounds"),
    "token outside": (lambda d: d["tokens"].update(image_id=10**6), "tokens.image_id is 1000000, outside"),
    "no end token": (lambda d: d["tokens"].update(eos_ids=[]), "tokens.eos_ids is empty"),
    "bad rule": (lambda d: d["processor"].update(rule="mine"), "processor.rule is 'mine', not one of"),
    "heads": (lambda d: d["text"].update(num_kv_heads=3), "is not a multiple of num_kv_heads"),
    "std": (lambda d: d["processor"].update(std=[0.5, 0, 0.5]), "not above 0"),
    "short mean": (lambda d: d["processor"].update(mean=[0.5]), "processor.mean is not a list of 3"),
    "not listed": (lambda d: d["files"].pop("decoder.onnx"), "decoder.onnx is missing from the manifest"),
    "path up": (lambda d: d["files"].update({"../x": d["files"]["vision.onnx"]}), "not a path inside"),
    "absolute path": (lambda d: d["files"].update({"/etc/passwd": d["files"]["vision.onnx"]}), "not a path inside"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_cannot_be_trusted_is_refused(copy: Path, name: str) -> None:
    change, message = CHANGES[name]
    edit(copy, change)
    with pytest.raises(BundleError) as e:
        open_bundle(copy)
    assert message in str(e.value)


def test_symbolic_links_are_refused(copy: Path) -> None:
    (copy / "vision.onnx").rename(copy.parent / "vision.onnx")
    (copy / "vision.onnx").symlink_to(copy.parent / "vision.onnx")
    with pytest.raises(BundleError, match=r"vision\.onnx is a symbolic link"):
        open_bundle(copy)


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, "\0"])
def test_a_damaged_manifest_is_refused(copy: Path, content: str) -> None:
    (copy / "bundle.json").write_text(content)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        open_bundle(copy)


def test_folders_that_are_no_bundles(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="is not a folder"):
        open_bundle(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="is not a folder"):
        open_bundle(tmp_path / "file")
