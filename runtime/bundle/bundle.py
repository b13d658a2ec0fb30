"""A bundle on disk: a folder with a manifest, checked in full before anything in it is used.

Every file must be there with the size and sha256 the manifest gives, and so must TensorRT plans that were compiled
later, which have manifests of their own (`plans.py`). Where a quick start is asked for, files that are as they were
when they were hashed last are not hashed again (`seal.py`). All problems come in one message. A bundle may come from
anywhere: paths that leave the folder and symbolic links are refused, and graphs may read the files that the manifest
lists and no others. That the files are whole says nothing of who made them: TensorRT plans are compiled code, to be
taken only from where one would take a program.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import BundleError
from .file_names import DECODER_GRAPH, SPECIAL_TOKENS
from .json_file import read_json_file
from .manifest import FileEntry, Manifest
from .onnx_external import external_files
from .plans import engine_files
from .seal import Seal, settled

MANIFEST_NAME = "bundle.json"
DEMO_BUNDLE = Path(__file__).parent.parent / "demo_bundle"
PROMPT_FILES = ("tokenizer.json", "chat_template.jinja", "embeddings.safetensors")
"""That a bundle with a decoder always has, also a slim one."""
_MAX_MANIFEST_BYTES = 16 << 20
_MAX_TEMPLATE_BYTES = 1 << 20
_TOLD = 20  # problems in one message
_AGAIN = "Copy or export the bundle again."


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file has been checked."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """The path of one of the bundle's files.

        KeyError for a file the manifest does not list; BundleError if that is so because the bundle was slimmed.
        """
        if name not in self.manifest.files:
            if self.manifest.slim:
                raise BundleError(
                    f"{self.folder} was slimmed for {self.manifest.slim} and has no {name}: use that backend, or a "
                    "full copy of the bundle."
                )
            raise KeyError(name)
        return self.folder / name

    def chat_template(self) -> str:
        """The source of the chat template; BundleError if it is not text."""
        try:
            return self.path("chat_template.jinja").read_text(encoding="utf-8")
        except UnicodeDecodeError as e:
            raise BundleError(f"{self.folder}: chat_template.jinja is not UTF-8 ({e}). {_AGAIN}") from e

    @property
    def num_bytes(self) -> int:
        return sum(entry.bytes for entry in self.manifest.files.values())


def open_bundle(folder: str | Path, quick: bool = False, decoder: bool = True) -> Bundle:
    """Checks a bundle in full and returns it.

    decoder: whether it must have one, and not hold the vision encoder alone.
    quick: trusts the seal of an earlier quick call for the content of files that have not changed since, and leaves
        one. The demo bundle is small and not ours to write to: it is always hashed.
    Raises BundleError with every problem in one message: missing, changed or unsafe files, a damaged manifest, a
    format version of the future.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, decoder)
    required = () if manifest.kind == "encoder" else PROMPT_FILES
    if not manifest.slim:
        graphs = (f"{graph}.onnx" for graph in manifest.vision_graphs)
        required = (*required, *graphs, *(() if manifest.kind == "encoder" else (DECODER_GRAPH,)))
    problems = [f"{name} is missing from the manifest" for name in required if name not in manifest.files]
    if SPECIAL_TOKENS not in manifest.files and (folder / SPECIAL_TOKENS).exists():  # it would be read with no check
        problems.append(f"{SPECIAL_TOKENS} is not one of the bundle's files")
    template = manifest.files.get("chat_template.jinja")
    if template is not None and template.bytes > _MAX_TEMPLATE_BYTES:
        problems.append(f"chat_template.jinja has {template.bytes:,} bytes, above the limit of {_MAX_TEMPLATE_BYTES:,}")
    entries = set(manifest.files.items()) | set(engine_files(folder, sources=not manifest.slim).items())
    seal = Seal(folder, folder / MANIFEST_NAME) if quick and folder != DEMO_BUNDLE else None
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        in_order = sorted(entries, key=lambda item: item[0])
        checks = pool.map(lambda item: _check_file(folder, item[0], item[1], seal), in_order)
        problems += [problem for problem in checks if problem]
    if not problems:  # only a file that is what the manifest says is looked into
        problems += [problem for name in manifest.files for problem in _foreign_files(folder, name, manifest)]
    if problems:
        raise BundleError(f"{folder} cannot be used: {_listed(problems)}. {_AGAIN}")
    if seal is not None:
        seal.write()
    return Bundle(folder, manifest)


def bundle_folder(given: str | Path | None) -> Path:
    """The folder given, or that of the demo bundle, which ships with the package."""
    return DEMO_BUNDLE if given is None else Path(given)


def read_manifest(folder: Path, decoder: bool = True) -> Manifest:
    """The manifest alone, checked in itself but not against the files; BundleError if that fails.

    decoder: as for `open_bundle`.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder; give the folder that `vl3edge export` wrote.")
    try:
        data = read_json_file(path, _MAX_MANIFEST_BYTES, _AGAIN)
    except FileNotFoundError as e:
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST_NAME}. Make one with `vl3edge export CHECKPOINT -o BUNDLE`."
        ) from e
    manifest, problems = Manifest.from_json(data)
    if manifest is None:
        raise BundleError(f"{path} cannot be used: {_listed(problems)}.")
    if decoder and manifest.kind == "encoder":
        raise BundleError(
            f"{folder} holds only a vision encoder, which answers nothing: use `vl3edge embed`, or the bundle of a "
            "whole model."
        )
    return manifest


def hash_file(path: Path) -> FileEntry:
    """Size and sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileEntry(bytes=path.stat().st_size, sha256=digest.hexdigest())


def _listed(problems: list[str]) -> str:
    more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
    return "; ".join(problems[:_TOLD]) + more


def _foreign_files(folder: Path, name: str, manifest: Manifest) -> list[str]:
    """What a graph would read that the manifest does not list, in words."""
    if not name.endswith(".onnx"):
        return []
    try:
        locations = external_files(folder / name)
    except (OSError, ValueError) as e:
        return [f"{name} is not an ONNX file ({e})"]
    beside = PurePosixPath(name).parent
    return [
        f"{name} reads {location!r}, which is not one of the bundle's files"
        for location in sorted(locations)
        if (beside / location).as_posix() not in manifest.files or location != PurePosixPath(location).as_posix()
    ]


def _check_file(folder: Path, name: str, entry: FileEntry, seal: Seal | None) -> str | None:
    """What is wrong with one of the bundle's files, if anything."""
    try:
        return _misfit(folder, name, entry, seal)
    except OSError as e:
        return f"{name!r} cannot be read ({e.strerror})"


def _misfit(folder: Path, name: str, entry: FileEntry, seal: Seal | None) -> str | None:
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
    status = path.stat()
    if status.st_size != entry.bytes:
        return f"{name} has {status.st_size} bytes instead of {entry.bytes}"
    if seal is not None and seal.holds(name, status, entry.sha256):
        return None
    lasting = seal is not None and settled(status)
    if hash_file(path).sha256 != entry.sha256:
        return f"{name} was changed (its sha256 differs)"
    if seal is not None and lasting:
        seal.note(name, status, path.stat(), entry.sha256)
    return None
