"""Compiles the bundle's ONNX files into TensorRT plans: at export for RTX, on the device for everything else. No torch.

TensorRT for RTX compiles ahead of time on a CPU, for every GPU from compute capability 8.0 on unless told otherwise;
what is left is compiled when it first runs and kept in a cache. TensorRT proper measures kernels on the GPU it builds
for; what it measured is kept in a timing cache, so that a second build with other profiles takes a fraction.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..bundle.bundle import hash_file
from ..bundle.manifest import FileEntry, Manifest
from ..bundle.onnx_external import external_files
from ..bundle.plans import (
    ENGINES,
    PLAN_MANIFEST,
    PORTABLE,
    EngineSet,
    PlanSpec,
    Target,
    TensorSpec,
    plans_of,
    tensorrt_graph,
)
from ..bundle.profiles import DEFAULT_MEMORY_BYTES, Profile, projector_profiles, vision_profiles
from ..errors import BackendError, BundleError, ConfigError, OutputError
from ..files import written_folder, written_whole
from .tensorrt_library import import_tensorrt, make_logger

TIMING_CACHE = "timing.cache"


@dataclass(frozen=True)
class BuildOptions:
    """What to compile for.

    memory_bytes: bound of the encoder's activations; profiles follow from it and the model's pixel budget.
    compute_capabilities: of portable RTX plans, such as ("7.5", "8.9"); empty is 8.0 and later.
    device: name of this GPU, which plans that are not portable are bound to.
    """

    target: Target
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    compute_capabilities: tuple[str, ...] = ()
    device: str = PORTABLE


def build_engines(
    folder: Path,
    manifest: Manifest,
    options: BuildOptions,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Path:
    """Compiles the encoder, and the projector if there is one, of the bundle in `folder`.

    Returns the new engine set's folder, which replaces one of the same key. progress: called with (plan, done, in all).
    Raises BackendError when TensorRT is missing or fails, BundleError when the bundle has no ONNX files for it,
    ConfigError for options that cannot work.
    """
    trt = import_tensorrt(options.target)
    names = plans_of(manifest)
    graphs = _graphs(folder, options.target, manifest.slim, names)
    sources = _sources(folder, manifest, list(graphs.values()))
    vision = vision_profiles(manifest, options.memory_bytes)
    profiles = {name: vision if name == "vision" else projector_profiles(manifest, vision) for name in names}
    base = folder / ENGINES / options.target
    base.mkdir(parents=True, exist_ok=True)
    cache = base / TIMING_CACHE
    engines = EngineSet(
        target=options.target,
        tensorrt=str(trt.__version__),
        device=options.device,
        compute_capabilities=options.compute_capabilities,
        memory_bytes=options.memory_bytes,
        plans={},
        sources=sources,
        files={},
    )
    with written_folder(base / engines.key) as staged:
        plans = {}
        for done, name in enumerate(profiles):
            progress(name, done, len(profiles))
            path = folder / graphs[name]
            plan, plans[name] = compile_plan(trt, path, profiles[name], options, cache)
            (staged / f"{name}.plan").write_bytes(plan)
            del plan
            progress(name, done + 1, len(profiles))
        files = {f"{name}.plan": hash_file(staged / f"{name}.plan") for name in profiles}
        text = json.dumps(replace(engines, plans=plans, files=files).to_json(), indent=1, ensure_ascii=False)
        (staged / PLAN_MANIFEST).write_text(text + "\n", encoding="utf-8")
    return base / engines.key


def compile_plan(
    trt: Any, path: Path, profiles: Sequence[Profile], options: BuildOptions, timing_cache: Path | None = None
) -> tuple[Any, PlanSpec]:
    """The plan of one ONNX file as a buffer, and its description read back from the network and its profiles.

    Raises BackendError with TensorRT's own first error.
    """
    notes = _Notes()
    logger, errors = make_logger(trt, notes.listen)
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        problems = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise BackendError(f"{_name(trt)} cannot read {path.name}: {_first(problems or errors)}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # what the graph says is float32 is meant
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for profile in profiles:
        config.add_optimization_profile(_optimization_profile(builder, profile))
    if options.target == "rtx":
        _set_compute_capabilities(trt, config, options.compute_capabilities)
        cache = None
    else:
        cache = _load_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{_name(trt)} cannot compile {path.name}: {_first(errors)}")
    if cache is not None and timing_cache is not None:
        with contextlib.suppress(OutputError), written_whole(timing_cache) as temporary:  # two builds may end at once
            temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))
    spec = PlanSpec(
        inputs=tuple(_tensor(trt, network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_tensor(trt, network.get_output(i)) for i in range(network.num_outputs)),
        profiles=tuple(profiles),
        activation_bytes=tuple(notes.activation_bytes),
        fused_attentions=len(notes.fused),
    )
    return plan, spec


class _Notes:
    """What the builder's log says of a plan. Reading the plan itself would take a GPU."""

    _FUSED = re.compile(r"Name: (_gemm_mha_v2\w*), LayerType")
    _ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")

    def __init__(self) -> None:
        self.fused: set[str] = set()
        self.activation_bytes: list[int] = []

    def listen(self, message: str) -> None:
        self.fused.update(self._FUSED.findall(message))
        self.activation_bytes += map(int, self._ACTIVATIONS.findall(message))


def _strongly_typed(trt: Any) -> int:
    """Flags of a strongly typed network; later versions know no other kind and may drop the flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _optimization_profile(builder: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for name, sizes in profile.inputs.items():
        made.set_shape(name, sizes.min, sizes.opt, sizes.max)
    return made


def _set_compute_capabilities(trt: Any, config: Any, wanted: Sequence[str]) -> None:
    known = {_dotted(name): value for name, value in trt.ComputeCapability.__members__.items() if name[:2] == "SM"}
    if unknown := [number for number in wanted if number not in known]:
        raise ConfigError(
            f"{_name(trt)} does not compile for compute capability {', '.join(unknown)}; it knows {', '.join(known)}"
        )
    if wanted:
        config.num_compute_capabilities = len(wanted)
        for index, number in enumerate(wanted):
            config.set_compute_capability(known[number], index)


def _dotted(name: str) -> str:
    """SM89 -> 8.9, SM120 -> 12.0"""
    return f"{name[2:-1]}.{name[-1]}"


def _load_timing_cache(config: Any, path: Path | None) -> Any:
    """Gives config the timing cache at path, or an empty one where there is none or it is of another version."""
    stored = path.read_bytes() if path is not None and path.is_file() and not path.is_symlink() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _tensor(trt: Any, tensor: Any) -> TensorSpec:
    dtype = "float32" if tensor.dtype == trt.float32 else str(tensor.dtype).rpartition(".")[2].lower()
    return TensorSpec(tensor.name, dtype, tuple(int(size) for size in tensor.shape))


def _graphs(folder: Path, target: str, slim: str, names: Sequence[str]) -> dict[str, str]:
    """The file of each plan's graph; older bundles have them, with weights of their own, in `engines/`."""
    newer, older = ({plan: name(plan) for plan in names} for name in (tensorrt_graph, f"{ENGINES}/{{}}.onnx".format))
    for graphs in (newer, older):
        if all((folder / name).is_file() for name in graphs.values()):
            return graphs
    if slim:
        raise BundleError(f"{folder} was slimmed for {slim}: compile plans from a full copy of the bundle.")
    raise BundleError(
        f"{folder} has no {', '.join(newer.values())}: export it with `vl3edge export CHECKPOINT -o BUNDLE "
        f"--target {target}`."
    )


def _sources(folder: Path, manifest: Manifest, graphs: Sequence[str]) -> dict[str, FileEntry]:
    """The graphs, and what they read, as they are: as the manifest lists them (in an export it lists none yet)."""
    found: dict[str, FileEntry] = {}
    for graph in graphs:
        found[graph] = _checked(folder, manifest, graph)
        beside = PurePosixPath(graph).parent
        try:
            locations = sorted(external_files(folder / graph))
        except ValueError as e:
            raise BundleError(f"{folder} cannot be used: {graph} is not an ONNX file ({e}).") from e
        for name in ((beside / location).as_posix() for location in locations):
            found[name] = _checked(folder, manifest, name)
    return found


def _checked(folder: Path, manifest: Manifest, name: str) -> FileEntry:
    try:
        entry = hash_file(folder / name)
    except FileNotFoundError as e:
        raise BundleError(f"{folder} cannot be used: {name} is missing. Copy or export the bundle again.") from e
    if manifest.files.get(name, entry) != entry:
        raise BundleError(f"{folder} cannot be used: {name} was changed. Copy or export the bundle again.")
    return entry


def _name(trt: Any) -> str:
    flavour = "TensorRT for RTX" if "rtx" in trt.__name__ else "TensorRT"
    return f"{flavour} {trt.__version__}"


def _first(errors: Sequence[str]) -> str:
    return " ".join(errors[0].split())[:500] if errors else "no reason given"
