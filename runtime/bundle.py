"""A bundle on disk: a folder with a manifest, checked in full before anything in it is used.

Every file must be there with the size and sha256 the manifest gives, and so must TensorRT plans that were compiled
later, which have manifests of their own (`tensorrt_plan.py`). All problems come in one message. Paths that leave the
folder and symbolic links are refused: a bundle may come from anywhere.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import BundleError
from .manifest import FileEntry, Manifest
from .tensorrt_plan import engine_files

MANIFEST_NAME = "bundle.json"
DEMO_BUNDLE = Path(__file__).parent / "demo_bundle"
REQUIRED = (
    "tokenizer.json",
    "chat_template.jinja",
    "embeddings.safetensors",
    "vision.onnx",
    "projector-image.onnx",
    "projector-video.onnx",
    "decoder.onnx",
)
_MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file has been checked."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """The path of one of the bundle's files; KeyError for a file the manifest does not list."""
        if name not in self.manifest.files:
            raise KeyError(name)
        return self.folder / name

    @property
    def num_bytes(self) -> int:
        return sum(entry.bytes for entry in self.manifest.files.values())


def open_bundle(folder: str | Path) -> Bundle:
    """Checks a bundle in full and returns it.

    Raises BundleError with every problem in one message: missing, changed or unsafe files, a damaged manifest, a
    format version of the future.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems = [f"{name} is missing from the manifest" for name in REQUIRED if name not in manifest.files]
    entries = set(manifest.files.items()) | set(engine_files(folder).items())
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        checks = pool.map(lambda item: _check_file(folder, *item), sorted(entries, key=lambda item: item[0]))
        problems += [problem for problem in checks if problem]
    if problems:
        raise BundleError(f"{folder} cannot be used: {'; '.join(problems)}. Copy or export the bundle again.")
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, checked in itself but not against the files; BundleError if that fails."""
    path = folder / MANIFEST_NAME
    try:
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a folder; give the folder that `vl3edge export` wrote.")
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} is too large to be a manifest.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST_NAME}. Make one with `vl3edge export CHECKPOINT -o BUNDLE`."
        ) from e
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{path} is damaged ({e}). Copy or export the bundle again.") from e
    except OSError as e:
        if isinstance(e, BundleError):
            raise
        raise BundleError(f"{path} cannot be read ({e.strerror}).") from e
    manifest, problems = Manifest.from_json(data)
    if manifest is None:
        raise BundleError(f"{path} cannot be used: {'; '.join(problems)}.")
    return manifest


def hash_file(path: Path) -> FileEntry:
    """Size and sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileEntry(bytes=path.stat().st_size, sha256=digest.hexdigest())


def _check_file(folder: Path, name: str, entry: FileEntry) -> str | None:
    """What is wrong with one of the bundle's files, if anything."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or str(pure) != name:
        return f"{name!r} is not a path inside the bundle"
    path = folder
    for part in pure.parts:
        path = path / part
        if path.is_symlink():
            return f"{name} is a symbolic link"
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    if size != entry.bytes:
        return f"{name} has {size} bytes instead of {entry.bytes}"
    if hash_file(path).sha256 != entry.sha256:
        return f"{name} was changed (its sha256 differs)"
    return None
