"""TensorRT plans on disk: `engines/<target>/<key>/`, each with an `engines.json` that says what it is.

A plan is for one version of TensorRT and, except for portable RTX plans, one kind of GPU; both are in the folder's name
and in its manifest, with every file's size and sha256 and those of the ONNX files it was compiled from. A folder of its
own manifest, instead of entries in `bundle.json`, because a plan is compiled on the device after the bundle was made:
it appears whole by a rename, and the bundle's own manifest stays as it was exported. `open_bundle` checks both.

No GPU library is needed here.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import BackendError, BundleError
from .json_file import read_json, read_json_file
from .manifest import FileEntry, Json, Manifest
from .profiles import Profile, ShapeRange

FORMAT = "vl3edge-engines"
FORMAT_VERSION = 1
ENGINES = "engines"
PLAN_MANIFEST = "engines.json"
PLANS = ("vision", "projector")
TARGETS = ("rtx", "jetson")
PORTABLE = "portable"
RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9))
"""Below 12.0; plans for 7.5 are made when it is named."""

Target = Literal["rtx", "jetson"]
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a plan; sizes that vary are -1. dtype as numpy names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PlanSpec:
    """One plan: its tensors in the network's order and its profiles, and what the builder said of it.

    activation_bytes: device memory for activations, by profile. fused_attentions: kernels that compute a whole
    attention, over all profiles; only TensorRT for RTX names them so that they can be counted.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    activation_bytes: tuple[int, ...]
    fused_attentions: int


@dataclass(frozen=True)
class EngineSet:
    """What `engines.json` says.

    target: "rtx" (TensorRT for RTX) or "jetson" (TensorRT, wherever it runs). tensorrt: its version.
    device: name of the GPU the plans were compiled for and on, or "portable". compute_capabilities: of portable plans,
        such as "8.9"; empty means 8.0 and later.
    memory_bytes: the bound the profiles were derived from. plans: by name, "vision" and "projector"; of the vision
        encoder alone, the former.
    sources: the ONNX files, relative to the bundle; files: relative to the manifest.
    """

    target: Target
    tensorrt: str
    device: str
    compute_capabilities: tuple[str, ...]
    memory_bytes: int
    plans: dict[str, PlanSpec]
    sources: dict[str, FileEntry]
    files: dict[str, FileEntry]

    @property
    def key(self) -> str:
        """Name of the folder: version, device and memory bound, which the profiles follow from."""
        device = "-".join(("cc", *self.compute_capabilities)) if self.compute_capabilities else self.device
        return re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.tensorrt}-{device}-{self.memory_bytes >> 20}mib").lower()

    def to_json(self) -> Json:
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class InstalledEngines:
    """An engine set and where it lies."""

    folder: Path
    spec: EngineSet

    def plan_path(self, name: str) -> Path:
        return self.folder / f"{name}.plan"


def plans_of(manifest: Manifest) -> tuple[str, ...]:
    """Names of the plans that a bundle's vision path takes."""
    return PLANS[:1] if manifest.kind == "encoder" else PLANS


def tensorrt_graph(plan: str) -> str:
    """The bundle's file that a plan is compiled from."""
    return f"{plan}-tensorrt.onnx"


def read_engine_sets(bundle: Path, target: str | None = None) -> list[InstalledEngines]:
    """Every engine set of a bundle (of one target), checked in itself but not against the files.

    Raises BundleError for a damaged manifest.
    """
    found = []
    for path in sorted(bundle.glob(f"{ENGINES}/{target or '*'}/*/{PLAN_MANIFEST}")):
        if any(part.startswith(".") for part in path.relative_to(bundle).parts):
            continue  # a build that was interrupted
        found.append(InstalledEngines(path.parent, _read(path)))
    return found


def engine_files(bundle: Path, sources: bool = True) -> dict[str, FileEntry]:
    """Every file that the engine sets of a bundle list, by path relative to the bundle.

    sources: also what the plans were compiled from, which a slim bundle may not have any more.
    """
    files: dict[str, FileEntry] = {}
    for engines in read_engine_sets(bundle):
        stem = engines.folder.relative_to(bundle).as_posix()
        files |= {f"{stem}/{name}": entry for name, entry in engines.spec.files.items()}
        files |= engines.spec.sources if sources else {}
    return files


def choose_engines(
    found: list[InstalledEngines], target: str, tensorrt: str, device: str, capability: tuple[int, int]
) -> InstalledEngines:
    """The set for this TensorRT and this GPU, the one with the most memory if there are several.

    Raises BackendError that says which command makes one, and why those that are there do not serve.
    """
    if target == "rtx" and not _rtx_supports(capability):
        raise BackendError(
            f"TensorRT for RTX does not run on {device}, compute capability {capability[0]}.{capability[1]} (it "
            "supports 7.5, 8.0, 8.6, 8.9, and 12.0 and later): use --backend cuda."
        )
    reasons = []
    usable = []
    for engines in found:
        reason = _misfit(engines.spec, tensorrt, device, capability)
        if reason is None:
            usable.append(engines)
        else:
            reasons.append(f"{engines.folder.name} is {reason}")
    if usable:
        return max(usable, key=lambda engines: engines.spec.memory_bytes)
    name = "TensorRT for RTX" if target == "rtx" else "TensorRT"
    have = f" ({'; '.join(reasons)})" if reasons else ""
    raise BackendError(
        f"the bundle has no plans for {name} {tensorrt} on {device}{have}: run "
        f"`vl3edge build BUNDLE --target {target}` on this machine."
    )


def _misfit(spec: EngineSet, tensorrt: str, device: str, capability: tuple[int, int]) -> str | None:
    """Why an engine set cannot run here, if so."""
    if spec.tensorrt != tensorrt:
        return f"for version {spec.tensorrt}"
    if spec.device != PORTABLE:
        return None if spec.device == device else f"for {spec.device}"
    here = f"{capability[0]}.{capability[1]}"
    if spec.compute_capabilities:
        listed = ", ".join(spec.compute_capabilities)
        return None if here in spec.compute_capabilities else f"for compute capability {listed}, not {here}"
    return None if capability >= (8, 0) else f"for compute capability 8.0 and later, not {here}"


def _rtx_supports(capability: tuple[int, int]) -> bool:
    """Whether TensorRT for RTX 1.7 has kernels for it: consumer GPUs, not Hopper, the first Blackwell nor Jetson."""
    return capability in RTX_CAPABILITIES or capability >= (12, 0)


def _read(path: Path) -> EngineSet:
    if linked := next((each for each in (path.parent, *path.parents[1:3]) if each.is_symlink()), None):
        raise BundleError(f"{linked} is a symbolic link. {_AGAIN}")
    data = read_json_file(path, _MAX_BYTES, _AGAIN)
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("format_version") != FORMAT_VERSION:
        raise BundleError(f"{path} is not a {FORMAT} manifest of version {FORMAT_VERSION}. {_AGAIN}")
    body = {key: value for key, value in data.items() if key not in ("format", "format_version")}
    problems: list[str] = []
    spec: EngineSet = read_json(EngineSet, body, "", problems)
    if not problems:
        problems += _inconsistencies(path, spec)
    if problems:
        raise BundleError(f"{path} cannot be used: {'; '.join(problems)}. {_AGAIN}")
    return spec


_AGAIN = "Delete its folder, or run `vl3edge build` again."


def _inconsistencies(path: Path, spec: EngineSet) -> list[str]:
    problems = []
    if path.parent.name != spec.key or path.parent.parent.name != spec.target:
        problems.append(f"it belongs in {ENGINES}/{spec.target}/{spec.key}")
    stated = spec.plans.keys() | {name.removesuffix(".plan") for name in spec.files}
    for name in (plan for plan in PLANS if plan == "vision" or plan in stated):
        if name not in spec.plans:
            problems.append(f"plans.{name} is missing")
        elif not spec.plans[name].profiles:
            problems.append(f"plans.{name} has no profile")
        if f"{name}.plan" not in spec.files:
            problems.append(f"files.{name}.plan is missing")
    for name, plan in spec.plans.items():
        inputs = {tensor.name: len(tensor.shape) for tensor in plan.inputs}
        for profile in plan.profiles:
            ranks = {key: {len(s) for s in (r.min, r.opt, r.max)} for key, r in profile.inputs.items()}
            if ranks != {key: {rank} for key, rank in inputs.items()} or not _ordered(profile.inputs.values()):
                problems.append(f"plans.{name}: profile {profile.name!r} does not match the inputs")
    return problems


def _ordered(ranges: Any) -> bool:
    sizes: list[ShapeRange] = list(ranges)
    return all(0 <= low <= mid <= high for r in sizes for low, mid, high in zip(r.min, r.opt, r.max, strict=True))
