"""Slimming a bundle for one target: deletes the files of other backends, and plans for other devices.

The manifest is replaced first, then files are removed: a bundle that is interrupted between is whole, and has a few
files that nobody reads. What has gone cannot be made again on the device: it takes another copy of the bundle.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BackendError, BundleError
from ..files import write_whole
from .bundle import MANIFEST_NAME, PROMPT_FILES, Bundle, open_bundle
from .file_names import DECODER_GRAPH, FP16_DECODER_GRAPH, HEAD_TOKENS, PREFILL_GRAPH, SPECIAL_TOKENS, fp16_file
from .kernel_set import FOLDER as KERNELS
from .kernel_set import kernel_files
from .manifest import SlimTarget
from .onnx_external import external_files
from .plans import ENGINES, TARGETS, EngineSet, InstalledEngines, read_engine_sets
from .specs import PrefillQuantization
from .tuning import tuning_files

_BACKENDS = {"cpu": ("cpu",), "cuda": ("cuda",), "rtx": ("rtx",), "jetson": ("jetson", "tensorrt")}


@dataclass(frozen=True)
class SlimReport:
    """What was deleted. lost: backends that can no longer run."""

    dropped: tuple[str, ...]
    dropped_bytes: int
    kept_bytes: int
    lost: tuple[str, ...]


def slim(folder: Path, target: SlimTarget, fits: Callable[[EngineSet], bool] = lambda engines: True) -> SlimReport:
    """Deletes from a bundle what the target's backends do not read, and records that in its manifest.

    fits: whether plans are for this device. Raises BundleError for a bundle that is damaged or has not the graphs,
    BackendError where no plans fit.
    """
    bundle = open_bundle(folder, decoder=False)
    manifest = bundle.manifest
    sets = read_engine_sets(folder)
    kept = [engines for engines in sets if engines.spec.target == target and fits(engines.spec)]
    if target in TARGETS and not kept:
        raise BackendError(
            f"{folder} has no plans for this device, and slimming deletes the graphs they are compiled from: run "
            f"`vl3edge build BUNDLE --target {target}` first."
        )
    tuned = {path.relative_to(folder).as_posix() for path in tuning_files(folder)}
    needed = _needed(bundle, target) | {name for engines in kept for name in _files(folder, engines)}
    needed |= tuned if target != "cpu" else set()  # a few kB, each for a GPU of a kind that the kernels may run on
    before = _sizes(folder, {*manifest.files, *tuned, *(name for each in sets for name in _files(folder, each))})
    dropped = {name: size for name, size in before.items() if name not in needed}
    lost = [name for each in _served(bundle, sets) if each != target for name in _BACKENDS[each]]
    files = {name: entry for name, entry in manifest.files.items() if name in needed}
    prompts = manifest.prefill_quantization if PREFILL_GRAPH in files else PrefillQuantization()
    slimmed = dataclasses.replace(manifest, files=files, slim=target, prefill_quantization=prompts)
    write_whole(folder / MANIFEST_NAME, [slimmed.to_text().encode()])
    _remove(folder, dropped, [engines for engines in sets if engines not in kept])
    total = sum(dropped.values())
    return SlimReport(tuple(sorted(dropped)), total, sum(before.values()) - total, tuple(lost))


def _needed(bundle: Bundle, target: str) -> set[str]:
    """Files of the manifest that the target's backends read, but for plans."""
    files, vision = bundle.manifest.files, bundle.manifest.vision_graphs
    graphs: list[str] = []
    if bundle.manifest.kind == "model":
        graphs += [DECODER_GRAPH if target == "cpu" else FP16_DECODER_GRAPH]
    if target == "cpu":
        graphs += [f"{graph}.onnx" for graph in vision]
        graphs += [PREFILL_GRAPH] if PREFILL_GRAPH in files else []
    if target == "cuda":
        fp16 = all(fp16_file(graph) in files for graph in vision)
        graphs += [fp16_file(graph) if fp16 else f"{graph}.onnx" for graph in vision]
    if missing := [graph for graph in graphs if graph not in files]:
        raise BundleError(f"{bundle.folder} has no {', '.join(missing)}, which {target} needs.")
    kept = {*PROMPT_FILES, SPECIAL_TOKENS, HEAD_TOKENS, *graphs} & files.keys()
    kept |= kernel_files(bundle) if target != "cpu" else set()
    return kept.union(*(external_files(bundle.folder / graph) for graph in graphs))


def _served(bundle: Bundle, sets: list[InstalledEngines]) -> list[str]:
    """The targets whose backends a bundle serves."""
    served: set[str] = {engines.spec.target for engines in sets}
    for target in ("cpu", "cuda"):
        try:
            _needed(bundle, target)
        except BundleError:
            continue
        served.add(target)
    return sorted(served)


def _files(folder: Path, engines: InstalledEngines) -> list[str]:
    """Every file of an engine set, by path relative to the bundle; also what TensorRT cached there."""
    return [path.relative_to(folder).as_posix() for path in engines.folder.iterdir() if path.is_file()]


def _sizes(folder: Path, names: set[str]) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in sorted(names)}


def _remove(folder: Path, names: dict[str, int], sets: list[InstalledEngines]) -> None:
    """The files, and the folders of whole engine sets, which are no sets any more once they begin to go."""
    for engines in sets:
        gone = engines.folder.with_name(f".partial-{engines.folder.name}")
        engines.folder.rename(gone)
        shutil.rmtree(gone)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    for target in TARGETS:
        place = folder / ENGINES / target
        if place.is_dir() and not any(path.is_dir() for path in place.iterdir()):
            shutil.rmtree(place)  # a timing cache is for compiling
    for place in (folder / ENGINES, folder / KERNELS):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
