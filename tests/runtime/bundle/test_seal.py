"""A bundle is hashed once, and whatever has changed since is hashed again; what a seal says never outlives a change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vl3edge.runtime import VideoLlama3
from vl3edge.runtime.bundle import bundle as bundle_module
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.manifest import FileEntry, sealed
from vl3edge.runtime.bundle.seal import SEAL_NAME, Seal, settled
from vl3edge.runtime.bundle.slim import slim
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.errors import BundleError

FILES = {path.name for path in DEMO_BUNDLE.iterdir()} - {"bundle.json"}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(DEMO_BUNDLE, tmp_path / "copy"))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., set[str]]:
    """Opens a bundle and says which files were hashed."""
    seen: set[str] = set()
    original = bundle_module.hash_file

    def spy(path: Path) -> FileEntry:
        seen.add(path.name)
        return original(path)

    monkeypatch.setattr(bundle_module, "hash_file", spy)

    def run(folder: Path, **options: Any) -> set[str]:
        seen.clear()
        open_bundle(folder, **({"quick": True} | options))
        return set(seen)

    return run


def test_files_are_hashed_once(copy: Path, hashed: Callable[..., set[str]]) -> None:
    """By those who ask for a quick start; others always hash."""
    assert hashed(copy) == FILES
    assert hashed(copy) == set()
    assert hashed(copy, quick=False) == FILES
    assert hashed(copy / ".." / copy.name) == set()
    assert hashed(DEMO_BUNDLE) == hashed(DEMO_BUNDLE) == FILES
    assert not (DEMO_BUNDLE / SEAL_NAME).exists()


def test_a_model_starts_quickly_and_info_and_slim_do_not_trust(
    copy: Path, hashed: Callable[..., set[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    VideoLlama3.load(copy, backend="cpu", num_threads=1)
    assert hashed(copy) == set()
    name = copy / "tokenizer.json"
    forged(copy, name, bytes(reversed(name.read_bytes())))
    assert hashed(copy) == set()  # such a forgery is beyond a seal
    assert main(["info", str(copy)]) == 1
    assert "tokenizer.json was changed" in capsys.readouterr().err
    with pytest.raises(BundleError, match=r"tokenizer\.json was changed"):
        slim(copy, "cpu")


def forged(folder: Path, path: Path, content: bytes) -> None:
    """Changes a file, and the seal with it, as only somebody can who writes in the folder and knows how."""
    path.write_bytes(content)
    values = json.loads((folder / SEAL_NAME).read_text())
    status = path.stat()
    entry = values["files"][path.name]
    values["files"][path.name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, entry[-1]]
    (folder / SEAL_NAME).write_text(json.dumps(sealed(values)))


def in_place(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def replaced(path: Path, content: bytes) -> None:
    path.with_suffix(".new").write_bytes(content)
    os.replace(path.with_suffix(".new"), path)


@pytest.mark.parametrize("way", [in_place, replaced])
@pytest.mark.parametrize("same_time", [False, True])
@pytest.mark.parametrize("name", ["vision.onnx.data", "chat_template.jinja"])
def test_a_change_of_the_same_size_is_found(
    copy: Path, hashed: Callable[..., set[str]], way: Callable[[Path, bytes], None], same_time: bool, name: str
) -> None:
    """Whatever it does to the file's time, and at once."""
    path = copy / name
    hashed(copy)
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    way(path, bytes(content))
    if same_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BundleError, match="was changed"):
        hashed(copy)
    content[len(content) // 2] ^= 1
    way(path, bytes(content))
    assert hashed(copy) == {name}
    assert hashed(copy) == set()


def test_a_change_right_after_the_first_opening_is_found(copy: Path, hashed: Callable[..., set[str]]) -> None:
    """Within the tick of the clock in which the file was written, if it could be; again and again."""
    path = copy / "tokenizer_config.json"
    content = path.read_bytes()
    for _ in range(20):
        in_place(path, content)
        hashed(copy)
        in_place(path, content[:-1] + b"!")
        with pytest.raises(BundleError, match="was changed"):
            hashed(copy)


def test_a_copied_folder_is_hashed(copy: Path, tmp_path: Path, hashed: Callable[..., set[str]]) -> None:
    hashed(copy)
    again = Path(shutil.copytree(copy, tmp_path / "again"))
    assert (again / SEAL_NAME).exists()
    assert hashed(again) == FILES
    moved = again.rename(tmp_path / "moved")
    assert hashed(moved) == set()  # the same files
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in moved.iterdir():
        os.link(path, linked / path.name)
    os.remove(linked / "tokenizer.json")
    shutil.copy2(moved / "tokenizer.json", linked / "tokenizer.json")
    assert "tokenizer.json" in hashed(linked)


TAMPERED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a size": lambda v: v["files"]["vision.onnx"].__setitem__(0, 1),
    "a hash": lambda v: v["files"]["vision.onnx"].__setitem__(4, "0" * 64),
    "the manifest": lambda v: v.update(manifest="0" * 64),
    "its own hash": lambda v: v.update(sha256="0" * 64),
    "another format": lambda v: v.update(format="vl3edge-seal 2"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_seal_is_none(copy: Path, hashed: Callable[..., set[str]], name: str) -> None:
    hashed(copy)
    values = json.loads((copy / SEAL_NAME).read_text())
    TAMPERED[name](values)
    (copy / SEAL_NAME).write_text(json.dumps(values))
    assert hashed(copy) == FILES
    assert hashed(copy) == set()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, json.dumps(sealed({})).encode()],
    ids=["empty", "cut", "list", "null", "binary", "deep", "bare"],
)
def test_what_is_no_seal_is_none(copy: Path, hashed: Callable[..., set[str]], content: bytes) -> None:
    (copy / SEAL_NAME).write_bytes(content)
    assert hashed(copy) == FILES
    assert hashed(copy) == set()


@pytest.mark.parametrize("files", [None, [], {"vision.onnx": 3}, {"vision.onnx": [1]}, {"vision.onnx": {}}])
def test_a_seal_of_other_values_is_none(copy: Path, hashed: Callable[..., set[str]], files: Any) -> None:
    hashed(copy)
    values = json.loads((copy / SEAL_NAME).read_text())
    (copy / SEAL_NAME).write_text(json.dumps(sealed(values | {"files": files})))
    assert hashed(copy) == FILES


def test_a_pipe_or_a_link_for_a_seal_is_none(copy: Path, tmp_path: Path, hashed: Callable[..., set[str]]) -> None:
    os.mkfifo(copy / SEAL_NAME)
    assert hashed(copy) == FILES
    (copy / SEAL_NAME).unlink()
    hashed(copy)
    (copy / SEAL_NAME).rename(tmp_path / "elsewhere")
    (copy / SEAL_NAME).symlink_to(tmp_path / "elsewhere")
    assert hashed(copy) == FILES


def test_another_manifest_is_another_bundle(copy: Path, hashed: Callable[..., set[str]]) -> None:
    hashed(copy)
    slim(copy, "cpu")
    assert hashed(copy) < FILES
    assert hashed(copy) == set()


def test_a_folder_that_cannot_be_written(
    copy: Path, tmp_path: Path, hashed: Callable[..., set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seal is in the user's cache then; without one, every opening hashes, and nothing is said."""
    write = bundle_module.Seal.write.__globals__["write_whole"]

    def refuse(path: Path, parts: Any) -> None:
        if path.parent == copy or not cache:
            raise PermissionError(13, "Permission denied", str(path))
        write(path, parts)

    cache = True
    monkeypatch.setitem(bundle_module.Seal.write.__globals__, "write_whole", refuse)
    assert hashed(copy) == FILES
    assert hashed(copy) == set()
    assert not (copy / SEAL_NAME).exists()
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1
    in_place(copy / "vision.onnx", (copy / "vision.onnx").read_bytes())
    assert hashed(copy) == {"vision.onnx"}
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    assert hashed(other) == FILES
    cache = False
    for place in (str(tmp_path / "nowhere"), "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        assert hashed(copy) == hashed(copy) == FILES
    assert not Path("relative").exists()


OPEN = f"""
import sys
from pathlib import Path
from vl3edge.runtime.bundle.bundle import open_bundle
for _ in range(3):
    Path(sys.argv[1], "{SEAL_NAME}").unlink(missing_ok=True)
    open_bundle(sys.argv[1], quick=True)
"""


def test_processes_at_once(copy: Path, hashed: Callable[..., set[str]]) -> None:
    """Whoever comes second leaves it to the first; what is there is whole."""
    processes = [subprocess.Popen([sys.executable, "-c", OPEN, copy]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    hashed(copy)
    assert hashed(copy) == set()
    left = {path.name for path in copy.iterdir()} - FILES - {"bundle.json"}
    assert left == {SEAL_NAME}


def test_files_whose_times_say_little_are_not_sealed(copy: Path) -> None:
    """Times in whole seconds of just now, and times to come."""
    second = 10**9

    class Status:
        st_mtime_ns = st_ctime_ns = time.time_ns() // second * second

    assert not settled(Status)  # type: ignore[arg-type]
    Status.st_mtime_ns = Status.st_ctime_ns = (time.time_ns() // second - 60) * second
    assert settled(Status)  # type: ignore[arg-type]
    Status.st_ctime_ns = time.time_ns() + 3600 * second + 1
    assert not settled(Status)  # type: ignore[arg-type]


def test_a_file_that_changes_while_it_is_hashed_is_not_sealed(copy: Path) -> None:
    seal, path = Seal(copy, copy / "bundle.json"), copy / "vision.onnx"
    before = path.stat()
    time.sleep(0.02)
    in_place(path, path.read_bytes())
    seal.note("vision.onnx", before, path.stat(), "0")
    seal.write()
    assert not (copy / SEAL_NAME).exists()
