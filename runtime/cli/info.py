"""`vl3edge info`: versions, this machine's devices, and a bundle's contents and measurements."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..backends.cuda import CudaDevice, open_device
from ..backends.onnxruntime import Backend, import_onnxruntime
from ..backends.tensorrt_library import import_tensorrt
from ..bundle.bundle import Bundle, open_bundle
from ..bundle.file_names import DECODER_GRAPH, PREFILL_GRAPH
from ..bundle.kernel_set import has_kernels, read_kernel_set
from ..bundle.manifest import Manifest
from ..bundle.plans import read_engine_sets
from ..bundle.tuning import TunedFor, tuning_lines
from ..config import DEFAULT_NEW_TOKENS
from ..errors import BackendError, BundleError
from ..kernels.launcher import open_launcher
from ..memory_estimate import gpu_step_bytes
from ..terminal import one_line

_PACKAGES = ("vl3edge", "numpy", "av", "pillow", "tokenizers", "jinja2")


def add_to(commands: Any) -> None:
    parser = commands.add_parser("info", help="show versions, devices and what a bundle holds", description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="bundle to check and describe")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    print(f"machine      {platform.machine()}, {platform.system()} {platform.release()}, {os.cpu_count()} CPUs")
    print(f"python       {platform.python_version()}")
    for name in _PACKAGES:
        print(f"{name:<12} {_version(name)}")
    try:
        ort = import_onnxruntime()
        print(f"{'onnxruntime':<12} {ort.__version__}: {', '.join(ort.get_available_providers())}")
    except BackendError as e:
        print(f"{'onnxruntime':<12} {e}")
    for name, target in (("tensorrt", "jetson"), ("tensorrt-rtx", "rtx")):
        try:
            print(f"{name:<12} {import_tensorrt(target).__version__}")
        except BackendError:
            print(f"{name:<12} not installed")
    gpu = None
    try:
        gpu = open_device()
        print(f"{'gpu':<12} {gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}")
    except BackendError as e:
        print(f"{'gpu':<12} {e}")
    if options.bundle is not None:
        print()
        _describe(open_bundle(options.bundle, decoder=False), gpu)
    return 0


def _describe(bundle: Bundle, gpu: CudaDevice | None) -> None:
    manifest = bundle.manifest
    text, vision = manifest.text, manifest.vision
    _show(f"bundle       {bundle.folder}: all files present and unchanged")
    _show(f"model        {manifest.source}, layout {manifest.layout}")
    for adapter in manifest.adapters:
        _show(f"adapter      {adapter}")
    targets, method = ", ".join(manifest.targets), manifest.quantization.get("method", "none")
    _show(f"targets      {targets}; {manifest.precision}; quantization {method}")
    if manifest.export.preset:
        _show(f"preset       {_preset_line(manifest)}")
    if manifest.slim:
        _show(f"slim         for {manifest.slim} only: files of other backends were deleted")
    products = ", products in 8 bits" if manifest.vision_quantization.bits == 8 else ""
    _show(
        f"vision       {vision.num_layers} layers of {vision.hidden_size}, patches of {vision.patch_size} pixels"
        f"{products}"
    )
    if manifest.kind == "encoder":
        _show("decoder      none: this is a vision encoder alone, for `vl3edge embed`")
    else:
        _show(
            f"decoder      {text.num_layers} layers of {text.hidden_size}, {text.num_heads} heads on "
            f"{text.num_kv_heads}, vocabulary {text.vocab_size}, context {text.max_position_embeddings}"
        )
        if text.head_rows:
            head = f"of {text.head_rows} of {text.vocab_size} tokens"
            _show(f"head         {head}; words outside cannot be said as they are")
        _show(f"answers      {_generation_line(manifest)}")
    _show(f"exported by  {', '.join(f'{name} {number}' for name, number in manifest.versions.items())}")
    if has_kernels(bundle):
        kernels = read_kernel_set(bundle).manifest
        forms = ", ".join(name.removesuffix(".zip") for name in kernels.archives)
        _show(f"kernels      {len(kernels.kernels)} of the decoder, as {forms}")
        for line in tuning_lines(bundle.folder, read_kernel_set(bundle).digest, _tuned_for(gpu, bundle)):
            _show(f"tuned        {line}")
    for engines in read_engine_sets(bundle.folder):
        spec = engines.spec
        profiles = spec.plans["vision"].profiles
        boxes = ", ".join("{} of {}".format(*profile.inputs["patches"].max[:2]) for profile in profiles)
        _show(f"plans        {spec.target} {spec.tensorrt}, {spec.device}: frames of patches up to {boxes}")
    _show()
    try:
        _show(contents_table(manifest))
    except (AttributeError, KeyError, TypeError, ValueError) as e:  # the one part of a manifest that has no fixed form
        raise BundleError(
            f"{bundle.folder}: the measurements or quantization in bundle.json are damaged ({e}). "
            "Copy or export the bundle again."
        ) from e


def _tuned_for(gpu: CudaDevice | None, bundle: Bundle) -> TunedFor | None:
    """What kernels would have to be tuned for here; None where they cannot run."""
    if gpu is None:
        return None
    try:
        return open_launcher(Backend("cuda", (), "", device=gpu), bundle)[1].tuned_for
    except BackendError:
        return None


def _preset_line(manifest: Manifest) -> str:
    """The preset of the export, the settings that were given instead of its own, and what came of both."""
    facts, spec = manifest.quantization, manifest.export
    decoder = "whole"
    if facts.get("method", "none") != "none":
        head = facts.get("head_bits") or "whole"
        decoder = f"{facts.get('bits')} bits in groups of {facts.get('group_size')}, head {head}"
        decoder += ", activations whole" if spec.activation_bits == 32 else ""
    encoder, prompts = manifest.vision_quantization.bits, manifest.prefill_quantization.bits
    changed = f" but {', '.join(spec.changed)}" if spec.changed else ""
    parts = [f"encoder {'8 bits' if encoder == 8 else 'whole'}", f"decoder {decoder}"]
    parts += ["prompts 8 bits"] if prompts == 8 else []
    return f"{spec.preset}{changed}: {'; '.join(parts)}"


def _generation_line(manifest: Manifest) -> str:
    """How tokens are chosen where a call says nothing."""
    spec = manifest.generation
    drawn = f"drawn at temperature {spec.temperature:g}, top-p {spec.top_p:g}, top-k {spec.top_k or 'off'}"
    ends = ", ".join(map(str, manifest.tokens.eos_ids))
    choice = drawn if spec.do_sample and spec.temperature else "greedy"
    limits = [("new", spec.max_new_tokens), ("in all", spec.max_length), ("new", DEFAULT_NEW_TOKENS)]
    what, most = next(limit for limit in limits if limit[1])
    return f"{choice}, repetition penalty {spec.repetition_penalty:g}; at most {most} tokens {what}; end tokens {ends}"


def _show(text: str = "") -> None:
    """Lines of which a part was read from the bundle, which may hold anything."""
    print("\n".join(one_line(line) for line in text.split("\n")))


def contents_table(manifest: Manifest) -> str:
    """A bundle's files with their sizes, each stage's difference from torch, and what quantization cost."""
    files, measured = manifest.files, manifest.measured
    total = sum(entry.bytes for entry in files.values())
    lines = [f"{'file':<28} {'MB':>10}"]
    lines += [f"{name:<28} {entry.bytes / 1e6:>10.2f}" for name, entry in files.items()]
    lines += [f"{'total':<28} {total / 1e6:>10.2f}", ""]
    lines += [f"{'stage':<18} {'largest difference from torch':>30} {'mean':>12} {'largest value':>14}"]
    lines += [
        f"{stage:<18} {d['max_abs_diff']:>30.3g} {d['mean_abs_diff']:>12.3g} {d['max_abs']:>14.3g}"
        for stage, d in measured.items()
    ]
    encoder = manifest.vision_quantization
    if encoder.bits == 8:
        lines += [
            "",
            f"vision encoder in 8 bits, calibrated on {encoder.calibration_frames} frames: features of held-out "
            f"frames differ by {encoder.relative_error:.2%} of their size",
        ]
    prefill = manifest.prefill_quantization
    if prefill.bits == 8:
        lines += [
            "",
            f"prompts in 8 bits on a CPU, calibrated on {prefill.calibration_tokens} tokens: keys and values of "
            f"held-out prompts differ by at most {prefill.relative_error:.2%} of their spread in any layer",
        ]
    lines += _vocabulary_lines(manifest)
    lines += _quantization_lines(manifest.quantization)
    if whole := manifest.quantization.get("fp16_bytes"):
        graphs = [f"{name}{end}" for name in (DECODER_GRAPH, PREFILL_GRAPH) for end in ("", ".data")]
        parts = (*graphs, "embeddings.safetensors")
        size = sum(files[name].bytes for name in parts if name in files)
        lines.append(
            f"decoder with embeddings and rotary tables: {size / 1e6:.2f} MB, its weights in fp16 {whole / 1e6:.2f} MB"
        )
    return "\n".join(lines)


def _vocabulary_lines(manifest: Manifest) -> list[str]:
    """What a head that has not the whole vocabulary keeps, loses and saves."""
    text, spec = manifest.text, manifest.vocabulary
    if not text.head_rows:
        return []
    before, after = (gpu_step_bytes(manifest, rows) / 1e6 for rows in (text.vocab_size, text.head_rows))
    lines = [
        "",
        f"output head: {text.head_rows} of {text.vocab_size} tokens, by {spec.source}; a step on a GPU reads "
        f"{after:.2f} MB of weights instead of {before:.2f}",
    ]
    if spec.held_out_tokens:
        lines.append(
            f"of the texts' {spec.held_out_tokens} tokens in every other line, a head made from the rest says "
            f"{1 - spec.held_out_lost / spec.held_out_tokens:.2%}; the other {spec.held_out_lost} take it "
            f"{spec.held_out_spelled} tokens, if the model spells them so"
        )
    return lines


def _quantization_lines(report: Mapping[str, Any]) -> list[str]:
    """Per layer the relative squared error of its outputs; then the whole decoder against float32."""
    lines = []
    layers: Mapping[str, Mapping[str, Any]] = report.get("layers", {})
    if layers:
        lines += ["", f"{'quantized layer':<18} {'bits':>6} {'error':>10} {'round-to-nearest':>18}"]
        for name, layer in layers.items():
            errors = f"{layer['gptq']:>10.2e} {layer['rtn']:>18.2e}" if "gptq" in layer else ""
            lines.append(f"{name:<18} {layer['bits']:>6g} {errors}".rstrip())
    if cost := report.get("end_to_end"):
        lines += [
            "",
            f"next token against float32, {cost['positions']} held-out positions: "
            f"KL {cost['kl']:.2e} (99th percentile {cost['kl_p99']:.2e}), same best token {cost['top1']:.2%}",
        ]
    return lines


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
