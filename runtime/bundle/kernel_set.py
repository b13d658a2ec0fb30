"""The decoder's kernels in a bundle, in `kernels/`: `kernels.json`, `weights.json`, an archive for each kind of GPU.

`export/kernels/` writes them: which kernels there are, what their arguments mean, and where the weights lie that they
read, in files that the bundle has anyway. All of them are in `bundle.json`, so `open_bundle` has checked that they are
what was exported. They are compiled code, to be trusted as plans are. No GPU library is needed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import BackendError, BundleError
from .bundle import Bundle
from .head_tokens import HeadTokens
from .json_file import read_json, read_json_file
from .kernel_weights import WEIGHTS_FORMAT, WEIGHTS_FORMAT_VERSION, Weights, problems_of
from .manifest import FileEntry, Json
from .specs import TextSpec

FORMAT, FORMAT_VERSION = "vl3edge-kernels", 1
FOLDER, MANIFEST, WEIGHTS = "kernels", "kernels.json", "weights.json"
PORTABLE = "ptx-8.0"
OLDEST_CAPABILITY = (8, 0)
"""Of the GPUs that the portable form is for."""
_MAX_BYTES = 16 << 20
_AGAIN = "Export the bundle again."


@dataclass(frozen=True)
class BinarySpec:
    """A kernel in one archive. shared_bytes: of a block, to be asked for at the launch.

    overlaps: it may begin while the kernel before it runs, for which it waits by itself.
    """

    shared_bytes: int
    registers: int
    spilled_bytes: int
    sha256: str
    overlaps: bool = False


@dataclass(frozen=True)
class KernelSpec:
    """One kernel. arguments: name and type of each, in order, and `scratch` null pointers after them.

    constants: what it computes; tile: what may differ among kernels that compute the same.
    """

    name: str
    function: str
    arguments: tuple[tuple[str, str], ...]
    constants: dict[str, Any]
    tile: dict[str, int]
    num_warps: int
    num_stages: int = 0
    scratch: int = 0
    binaries: dict[str, BinarySpec] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelManifest:
    """What `kernels.json` says; archives by file name."""

    kernels: tuple[KernelSpec, ...]
    archives: dict[str, FileEntry] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    ptx_version: str = ""

    def archive_for(self, capability: tuple[int, int]) -> str:
        """The form of the kernels for a GPU: its machine code, or what its driver compiles; BackendError below 8.0."""
        form = "cubin-{}.{}".format(*capability)
        if f"{form}.zip" in self.archives:
            return form
        if capability < OLDEST_CAPABILITY or f"{PORTABLE}.zip" not in self.archives:
            raise BackendError(
                "the kernels are for compute capability 8.0 and later, this GPU has {}.{}: "
                "use --decoder onnxruntime".format(*capability)
            )
        return PORTABLE


@dataclass(frozen=True)
class KernelSet:
    """The kernels of one decoder, and its weights in the files of `folder`.

    head: None where its output head has the whole vocabulary.
    digest: sha256 of the kernels' manifest, and so of their code; empty where they are compiled as they are needed.
    """

    folder: Path
    text: TextSpec
    manifest: KernelManifest
    weights: Weights
    head: HeadTokens | None = None
    digest: str = ""


def has_kernels(bundle: Bundle) -> bool:
    return f"{FOLDER}/{MANIFEST}" in bundle.manifest.files


def read_kernel_set(bundle: Bundle) -> KernelSet:
    """A bundle's kernels; BundleError that names every problem, or says that there are none."""
    if not has_kernels(bundle):
        raise BundleError(
            f"{bundle.folder} has no kernels: export it with --target cuda, rtx or jetson where Triton is installed "
            "(pip install 'vl3edge[kernels]'), or use --decoder onnxruntime."
        )
    manifest: KernelManifest = _read(bundle.folder / FOLDER / MANIFEST, KernelManifest, FORMAT, FORMAT_VERSION)
    for name in (WEIGHTS, *manifest.archives):  # nothing is read that the bundle does not vouch for
        if f"{FOLDER}/{name}" not in bundle.manifest.files:
            raise BundleError(f"{FOLDER}/{name} is not one of the files of {bundle.folder}. {_AGAIN}")
    weights = _read(bundle.folder / FOLDER / WEIGHTS, Weights, WEIGHTS_FORMAT, WEIGHTS_FORMAT_VERSION)
    return replace(checked_set(bundle, manifest, weights), digest=bundle.manifest.files[f"{FOLDER}/{MANIFEST}"].sha256)


def weights_from_json(data: Json) -> Weights:
    """What `export/kernels/weights.py` wrote, without a file."""
    return _parsed("the weights' places", data, Weights, WEIGHTS_FORMAT, WEIGHTS_FORMAT_VERSION)


def checked_set(bundle: Bundle, manifest: KernelManifest, weights: Weights) -> KernelSet:
    """Both together; BundleError unless the weights lie in the bundle's files and fit its decoder."""
    if problems := problems_of(weights, bundle.manifest.files, bundle.manifest.text):
        raise BundleError(f"{bundle.folder}/{FOLDER}/{WEIGHTS} cannot be used: {'; '.join(problems[:5])}. {_AGAIN}")
    return KernelSet(bundle.folder, bundle.manifest.text, manifest, weights, HeadTokens.of(bundle))


def kernel_files(bundle: Bundle) -> set[str]:
    """Every file of the bundle that its kernels need, those of the weights too; none where it has no kernels."""
    if not has_kernels(bundle):
        return set()
    own = {name for name in bundle.manifest.files if name.startswith(f"{FOLDER}/")}
    return own | {tensor.file for tensor in read_kernel_set(bundle).weights.tensors()}


def _read(path: Path, kind: Any, form: str, version: int) -> Any:
    try:
        data = read_json_file(path, _MAX_BYTES, _AGAIN)
    except FileNotFoundError as e:
        raise BundleError(f"{path} is missing. {_AGAIN}") from e
    return _parsed(str(path), data, kind, form, version)


def _parsed(name: str, data: Any, kind: Any, form: str, version: int) -> Any:
    if not isinstance(data, dict) or (data.get("format"), data.get("format_version")) != (form, version):
        raise BundleError(f"{name} is not a {form} of version {version}. {_AGAIN}")
    problems: list[str] = []
    body = {key: value for key, value in data.items() if key not in ("format", "format_version")}
    found = read_json(kind, body, "", problems)
    if problems:
        raise BundleError(f"{name} cannot be used: {'; '.join(problems[:5])}. {_AGAIN}")
    return found
