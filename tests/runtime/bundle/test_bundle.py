"""A bundle is used whole or not at all: every defect is named, all in one message."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.manifest import Manifest, sealed
from vl3edge.runtime.bundle.seal import SEAL_NAME
from vl3edge.runtime.errors import BundleError


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], seal: bool = True) -> None:
    """Changes bundle.json; sealed again, as somebody would who means it."""
    path = folder / "bundle.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(sealed(data) if seal else data))


def test_a_sound_bundle_opens_and_its_manifest_round_trips(any_bundle: Path) -> None:
    opened = open_bundle(any_bundle)
    data = json.loads((any_bundle / "bundle.json").read_text())
    assert Manifest.from_json(data) == (opened.manifest, [])
    again = json.loads(json.dumps(opened.manifest.to_json()))
    assert Manifest.from_json(again) == (opened.manifest, [])
    # The demo bundle is from before some of the fields there are now, which have their defaults then.
    again["text"] = {name: again["text"][name] for name in data["text"]}
    assert {key: again[key] for key in data if key != "sha256"} == {k: v for k, v in data.items() if k != "sha256"}
    files = [f for f in any_bundle.iterdir() if f.name not in ("bundle.json", SEAL_NAME)]
    assert opened.num_bytes == sum(f.stat().st_size for f in files)


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
    "true for the version": (lambda d: d.update(format_version=True), "format_version is True"),
    "float for the version": (lambda d: d.update(format_version=1.0), "format_version is 1.0"),
    "infinite std": (lambda d: d["processor"].update(std=[0.5, 0.5, 1e999]), "Infinity is not a JSON number"),
    "infinite mean": (lambda d: d["processor"].update(mean=[1e999, 0.5, 0.5]), "Infinity is not a JSON number"),
    "true for a name": (lambda d: d.update(layout=True), "layout is True, not one of"),
    "huge frames": (
        lambda d: d["processor"]["image"].update(min_pixels=1 << 40),
        "image.min_pixels is 1099511627776, out",
    ),
    "huge clips": (
        lambda d: d["processor"]["video"].update(max_pixels=1 << 50),
        "video.max_pixels is 1125899906842624",
    ),
    "no pixels": (lambda d: d["processor"]["video"].update(max_pixels=0), "video.max_pixels is 0, out of bounds"),
    "huge merge": (lambda d: d["processor"]["video"].update(merge_size=1 << 20), "video.merge_size is 1048576, out"),
    "huge patch": (lambda d: d["vision"].update(patch_size=1 << 20), "video.merge_size is 2, out of bounds"),
    "name with a null": (lambda d: d["files"].update({"a\0b": d["files"]["vision.onnx"]}), "is missing"),
    "endless name": (lambda d: d["files"].update({"a" * 5000: d["files"]["vision.onnx"]}), "cannot be read"),
    "lone surrogate": (lambda d: d["files"].update({"a\ud800": d["files"]["vision.onnx"]}), "is missing"),
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


def test_numbers_beyond_all_bounds_are_refused(copy: Path) -> None:
    path = copy / "bundle.json"
    path.write_text(path.read_text().replace('"fps": 1.0', '"fps": 1e999'))
    with pytest.raises(BundleError, match=r"processor\.fps is inf, not a finite number"):
        open_bundle(copy)


def test_an_edited_manifest_is_told_from_the_exported_one(copy: Path) -> None:
    before = open_bundle(copy).manifest
    edit(copy, lambda d: d["processor"].update(std=[0.5, 0.5, 0.4]), seal=False)
    with pytest.raises(BundleError, match=r"changed after the export \(its sha256 does not match"):
        open_bundle(copy)
    edit(copy, lambda d: d["processor"].update(std=[0.5, 0.5, 0.5]), seal=False)
    assert open_bundle(copy).manifest == before


def test_other_spacing_and_order_are_no_edit(copy: Path) -> None:
    path = copy / "bundle.json"
    before = open_bundle(copy).manifest
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7, sort_keys=True))
    assert open_bundle(copy).manifest == before


def test_manifests_of_before_the_seal_are_read(copy: Path) -> None:
    before = open_bundle(copy).manifest
    edit(copy, lambda d: d.pop("sha256"), seal=False)
    assert open_bundle(copy).manifest == before


def test_the_demo_bundle_is_sealed() -> None:
    data = json.loads((DEMO_BUNDLE / "bundle.json").read_text())
    assert data == sealed(data)


def test_many_problems_are_counted(copy: Path) -> None:
    entry = {"bytes": 1, "sha256": "0"}
    edit(copy, lambda d: d["files"].update({f"missing{i}": entry for i in range(500)}))
    with pytest.raises(BundleError, match=r"; and 480 more\. Copy") as e:
        open_bundle(copy)
    assert len(str(e.value)) < 3000


def test_symbolic_links_are_refused(copy: Path) -> None:
    (copy / "vision.onnx").rename(copy.parent / "vision.onnx")
    (copy / "vision.onnx").symlink_to(copy.parent / "vision.onnx")
    with pytest.raises(BundleError, match=r"vision\.onnx is a symbolic link"):
        open_bundle(copy)


TWICE = '{"format": "vl3edge-bundle", "format": "vl3edge-bundle"}'


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, "\0", "\ud800", '{"a": NaN}', TWICE, "9" * 5000])
def test_a_damaged_manifest_is_refused(copy: Path, content: str) -> None:
    (copy / "bundle.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(BundleError, match=r"bundle\.json"):
        open_bundle(copy)


def test_a_manifest_that_is_no_plain_file_is_not_read(copy: Path) -> None:
    path = copy / "bundle.json"
    path.rename(copy.parent / "moved.json")
    path.symlink_to(copy.parent / "moved.json")
    with pytest.raises(BundleError, match="is not a regular file"):
        open_bundle(copy)
    path.unlink()
    os.mkfifo(path)  # reading it would wait forever
    with pytest.raises(BundleError, match="is not a regular file"):
        open_bundle(copy)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match="is too large"):
        open_bundle(copy)


def test_a_file_that_is_a_pipe_is_not_read(copy: Path) -> None:
    (copy / "vision.onnx").unlink()
    os.mkfifo(copy / "vision.onnx")
    with pytest.raises(BundleError, match=r"vision\.onnx is missing"):
        open_bundle(copy)


def test_folders_that_are_no_bundles(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="is not a folder"):
        open_bundle(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="is not a folder"):
        open_bundle(tmp_path / "file")
