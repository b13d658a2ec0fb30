"""The decoder's kernels in a bundle, in `kernels/`: `kernels.json`, `weights.json`, an archive for each kind of GPU.

`export/kernels/` writes them: which kernels there are, what their arguments mean, and where the weights lie that they
read, in files that the bundle has anyway. All of them are in `bundle.json`, so `open_bundle` has checked that they are
what was exported. They are compiled code, to be trusted as plans are. No GPU library is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import BackendError, BundleError
from .bundle import Bundle
from .json_file import read_json_file
from .manifest import FileEntry, Json, TextSpec, read_json

FORMAT, FORMAT_VERSION = "vl3edge-kernels", 1
WEIGHTS_FORMAT, WEIGHTS_FORMAT_VERSION = "vl3edge-kernel-weights", 1
FOLDER, MANIFEST, WEIGHTS = "kernels", "kernels.json", "weights.json"
PORTABLE = "ptx-8.0"
_OLDEST = (8, 0)  # compute capability that the portable form is for
_MAX_BYTES = 16 << 20
_AGAIN = "Export the bundle again."


@dataclass(frozen=True)
class Tensor:
    """Where the numbers of one tensor lie: in a file of the bundle, `offset` bytes from its beginning."""

    file: str
    offset: int
    dtype: Literal["uint8", "int32", "int64", "float16", "float32"]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Matrix:
    """A matrix: its tensors are codes, perhaps scales, zeros and order; 16 or 32 bits are whole weights in `codes`."""

    outputs: int
    inputs: int
    bits: Literal[2, 4, 8, 16, 32]
    group: int
    tensors: dict[str, Tensor]
    transposed: bool = False

    def constants(self, prefix: str = "") -> dict[str, int]:
        """The constants of a kernel that describe how it is stored."""
        facts = {"ZEROS": "zeros" in self.tensors, "ORDER": "order" in self.tensors}
        return {prefix + name: value for name, value in ({"BITS": self.bits, "GROUP": self.group} | facts).items()}


@dataclass(frozen=True)
class Layer:
    """One layer; query, key and value are one product, or several whose outputs stand side by side."""

    input_norm: Tensor
    mlp_norm: Tensor
    bias: Tensor
    qkv: tuple[Matrix, ...]
    output: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(frozen=True)
class Weights:
    """Of a whole decoder; cos and sin: tables float32 [positions, head_dim / 2]."""

    epsilon: float
    cos: Tensor
    sin: Tensor
    norm: Tensor
    head: Matrix
    embeddings: Matrix
    layers: tuple[Layer, ...]

    def tensors(self) -> Iterator[Tensor]:
        return _tensors(self)


@dataclass(frozen=True)
class BinarySpec:
    """A kernel in one archive. shared_bytes: of a block, to be asked for at the launch."""

    shared_bytes: int
    registers: int
    spilled_bytes: int
    sha256: str


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
        if capability < _OLDEST or f"{PORTABLE}.zip" not in self.archives:
            raise BackendError(
                "the kernels are for compute capability 8.0 and later, this GPU has {}.{}: "
                "use --decoder onnxruntime".format(*capability)
            )
        return PORTABLE


@dataclass(frozen=True)
class KernelSet:
    """The kernels of one decoder, and its weights in the files of `folder`."""

    folder: Path
    text: TextSpec
    manifest: KernelManifest
    weights: Weights


def has_kernels(bundle: Bundle) -> bool:
    return f"{FOLDER}/{MANIFEST}" in bundle.manifest.files


def read_kernel_set(bundle: Bundle) -> KernelSet:
    """A bundle's kernels; BundleError that names every problem, or says that there are none."""
    if not has_kernels(bundle):
        raise BundleError(
            f"{bundle.folder} has no kernels: export it with --target cuda, rtx or jetson where Triton is installed "
            "(pip install 'vl3edge[kernels]'), or use --decoder onnxruntime."
        )
    manifest = _read(bundle.folder / FOLDER / MANIFEST, KernelManifest, FORMAT, FORMAT_VERSION)
    weights = _read(bundle.folder / FOLDER / WEIGHTS, Weights, WEIGHTS_FORMAT, WEIGHTS_FORMAT_VERSION)
    return checked_set(bundle, manifest, weights)


def weights_from_json(data: Json) -> Weights:
    """What `export/kernels/weights.py` wrote, without a file."""
    return _parsed("the weights' places", data, Weights, WEIGHTS_FORMAT, WEIGHTS_FORMAT_VERSION)


def checked_set(bundle: Bundle, manifest: KernelManifest, weights: Weights) -> KernelSet:
    """Both together; BundleError unless the weights lie in the bundle's files and fit its decoder."""
    problems = [*_misplaced(bundle, weights), *_misfits(bundle.manifest.text, weights)]
    if problems:
        raise BundleError(f"{bundle.folder}/{FOLDER}/{WEIGHTS} cannot be used: {'; '.join(problems[:5])}. {_AGAIN}")
    return KernelSet(bundle.folder, bundle.manifest.text, manifest, weights)


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


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors anywhere in one of the dataclasses above."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Matrix):
        yield from value.tensors.values()
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Weights | Layer):
        for part in fields(value):
            yield from _tensors(getattr(value, part.name))


def _misplaced(bundle: Bundle, weights: Weights) -> Iterator[str]:
    files = bundle.manifest.files
    for tensor in weights.tensors():
        if tensor.file not in files:
            yield f"{tensor.file!r} is not one of the bundle's files"
        elif min(tensor.offset, *tensor.shape) < 0 or tensor.offset + tensor.num_bytes > files[tensor.file].bytes:
            yield f"a tensor of {list(tensor.shape)} at {tensor.offset} lies beyond the end of {tensor.file}"


def _misfits(text: TextSpec, weights: Weights) -> Iterator[str]:
    """What differs from the sizes of the decoder, which the kernels take for granted."""
    hidden, heads = text.hidden_size, text.num_heads * text.rotary_dim
    qkv = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    wide = text.intermediate_size
    sizes = {"output": (hidden, heads), "gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}
    if len(weights.layers) != text.num_layers:
        yield f"it has {len(weights.layers)} layers, the decoder {text.num_layers}"
    whole: list[tuple[str, Tensor, tuple[int, ...]]] = [("norm", weights.norm, (hidden,))]
    tables = (text.max_position_embeddings, text.head_dim // 2)
    whole += [("cos", weights.cos, tables), ("sin", weights.sin, tables)]
    products: list[tuple[str, tuple[Matrix, ...], tuple[int, int]]] = [
        ("head", (weights.head,), (text.vocab_size, hidden))
    ]
    products.append(("embeddings", (weights.embeddings,), (text.vocab_size, hidden)))
    for number, layer in enumerate(weights.layers):
        for name in ("input_norm", "mlp_norm"):
            whole.append((f"layers.{number}.{name}", getattr(layer, name), (hidden,)))
        whole.append((f"layers.{number}.bias", layer.bias, (qkv,)))
        products.append((f"layers.{number}.qkv", layer.qkv, (qkv, hidden)))
        products += [(f"layers.{number}.{role}", (getattr(layer, role),), size) for role, size in sizes.items()]
    yield from (
        f"{name} has the shape {list(t.shape)}, not {list(shape)}" for name, t, shape in whole if t.shape != shape
    )
    for name, parts, (outputs, inputs) in products:
        if sum(part.outputs for part in parts) != outputs or any(part.inputs != inputs for part in parts):
            yield f"{name} is not of {outputs} outputs and {inputs} inputs"
        for part in parts:
            yield from (f"{name}: {problem}" for problem in _ill_stored(part))


def _ill_stored(matrix: Matrix) -> Iterator[str]:
    """What of a matrix's tensors does not have the size that its settings say."""
    count, group = matrix.outputs * matrix.inputs, matrix.group
    groups = matrix.inputs // group if group > 0 else 0
    if not groups or matrix.inputs % group:
        yield f"a group of {group} does not divide {matrix.inputs} inputs"
        return
    elements = {name: math.prod(tensor.shape) for name, tensor in matrix.tensors.items()}
    if matrix.bits >= 16:
        wanted = {"codes": count}
    else:
        wanted = {"codes": count * matrix.bits // 8, "scales": matrix.outputs * groups}
        optional = {"zeros": matrix.outputs * -(-groups * matrix.bits // 8), "order": matrix.inputs}
        wanted |= {name: size for name, size in optional.items() if name in elements}
    if elements != wanted:
        yield f"its tensors have {elements} elements, not {wanted}"
