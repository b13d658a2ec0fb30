"""Options that several commands share, and the configurations made from them."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from ..backends.select import BACKENDS
from ..bundle.bundle import bundle_folder, read_manifest
from ..bundle.manifest import Manifest
from ..config import GenerationConfig, MediaKind, PruningConfig, SamplingPlan
from ..decode.generate import GenerationStats
from ..errors import ConfigError
from ..kernels.select import DECODERS
from ..media.limits import DEFAULT_LIMITS, MediaLimits
from ..memory_budget import parse_bytes
from ..model import VideoLlama3
from ..vision.clip import Clip
from .stderr import progress

Model = TypeVar("Model", bound=VideoLlama3)


def add_model(
    parser: argparse.ArgumentParser, named: bool = True, limits: MediaLimits = DEFAULT_LIMITS, decodes: bool = True
) -> None:
    """named: whether -m names the bundle; else the command has it as an argument `model`. limits: those of media that
    have no option. decodes: whether the command uses the decoder."""
    parser.set_defaults(limits=limits)
    group = parser.add_argument_group("model")
    if named:
        group.add_argument("-m", "--model", metavar="BUNDLE", help="bundle to use (default: the small demo bundle)")
    group.add_argument("--backend", choices=BACKENDS, default="auto", help="where to run (default: auto)")
    if decodes:
        add_decoder(group)
    group.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: one per core)")
    group.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="limit for this process, such as 4GB (default: the memory available); with a GPU, of its memory",
    )
    group.add_argument(
        "--max-read-seconds",
        type=float,
        default=limits.max_read_s,
        metavar="S",
        help="fail a clip that takes longer than S seconds to read and decode (default: %(default)g)",
    )
    group.add_argument(
        "--isolate",
        action="store_true",
        default=limits.isolate,
        help="decode in a separate process, so that a crash fails one clip only",
    )


def add_decoder(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--decoder",
        choices=DECODERS,
        default="auto",
        help="what writes the answer: ONNX Runtime, or the bundle's own kernels for NVIDIA GPUs (default: auto, the "
        "kernels on GPUs from compute capability 8.0 on where the bundle has them)",
    )


def add_json(parser: argparse.ArgumentParser, what: str = "the figures") -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write {what} as JSON; - is stdout")


def write_json(file: Path | None, content: Any) -> None:
    """What was measured, to the file of `--json`, if there is one."""
    text = json.dumps(content, indent=1) + "\n"
    if str(file) == "-":
        sys.stdout.write(text)
    elif file is not None:
        file.write_text(text, encoding="utf-8")


def add_sampling(parser: argparse.ArgumentParser, prunes: bool = True, most: str = "the model's, 180") -> None:
    """prunes: whether the command drops tokens. most: how many frames it takes by default."""
    group = parser.add_argument_group("frames")
    group.add_argument(
        "--as",
        dest="kind",
        choices=get_args(MediaKind),
        help="treat MEDIA as this (default: by content; an animation is a video, a folder depends on its pictures)",
    )
    group.add_argument("--fps", type=float, help="frames sampled per second (default: the model's, 1)")
    group.add_argument("--max-frames", type=int, metavar="N", help=f"at most N frames (default: {most})")
    group.add_argument("--start", type=float, metavar="S", help="start at second S")
    group.add_argument("--end", type=float, metavar="S", help="end at second S")
    add_source_fps(group)
    add_rule(group)
    if prunes:
        add_pruning(group)


def add_rule(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--sampling-rule",
        choices=("fps", "index"),
        default="fps",
        help="fps: by time; index: evenly by number, as transformers does",
    )


def add_pruning(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--threshold",
        type=_threshold,
        metavar="T",
        help="DiffFP threshold: higher drops more tokens; auto: just above each clip's noise (default: 0.1)",
    )
    group.add_argument(
        "--max-visual-tokens",
        type=int,
        metavar="N",
        help="give the decoder at most N tokens of each video: of those left by DiffFP the most unique",
    )
    group.add_argument("--no-pruning", action="store_true", help="without DiffFP: keep what does not change, too")
    group.add_argument(
        "--keep-ratio",
        type=float,
        metavar="R",
        help="the same as a share of the tokens left by DiffFP (default: 1)",
    )


def add_source_fps(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--source-fps",
        type=float,
        metavar="N",
        help="frame rate of the source, instead of its own timestamps (default: its own; without one 25, folders of "
        "pictures 3)",
    )


def _threshold(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or auto, not {text!r}") from None


def add_generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answer")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="length limit (default: the model's, or 256)")
    group.add_argument(
        "--temperature", type=float, metavar="T", help="0 is greedy (default: the model's; greedy if it has none)"
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the most likely tokens that make up P (default: the model's, or 1)",
    )
    group.add_argument(
        "--top-k",
        type=int,
        metavar="N",
        help="sample from the N most likely tokens; 0: from all (default: the model's)",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="above 1 discourages repetition (default: the model's, or 1)",
    )
    group.add_argument("--seed", type=int, metavar="N", help="random seed, for repeatable answers (default: a new one)")
    group.add_argument(
        "--draft-tokens",
        type=int,
        metavar="N",
        help="check up to N tokens at once that were said before, 0 to 8 (default: 8 for watch and --segment, else 0)",
    )


def add_system(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("instructions")
    group.add_argument(
        "--system", metavar="TEXT", help="a system message before the question (default: none, as the authors evaluate)"
    )
    group.add_argument(
        "--add-system-prompt", action="store_true", help="without --system, use the chat template's own (default: none)"
    )


def manifest_of(options: argparse.Namespace) -> Manifest:
    """Of the bundle asked for, before anything is loaded or written; BundleError if it is none."""
    return read_manifest(bundle_folder(options.model))


def load_model(options: argparse.Namespace) -> VideoLlama3:
    """Loads the bundle asked for and says on stderr what runs where."""
    return load_model_as(VideoLlama3, options)


def load_model_as(kind: type[Model], options: argparse.Namespace) -> Model:
    """`load_model`, as a model of a special kind."""
    memory_limit = None if options.memory_limit is None else parse_bytes(options.memory_limit)
    limits, decoder = media_limits(options), options.decoder
    model = kind.load(options.model, options.backend, options.threads, memory_limit, limits, decoder)
    assert isinstance(model, kind)
    info = model.info
    demo = " (demo bundle; give your own with -m)" if options.model is None else ""
    weights = info["precision"] if info["quantization"] == "none" else f"decoder by {info['quantization']}"
    engine = f" with ONNX Runtime {info['onnxruntime']}" if info["onnxruntime"] else ""
    progress(f"{info['name']}{demo}, {weights}, on {info['backend']}{engine}")
    if info["decoder"] != "onnxruntime":
        progress(f"decoder: {info['decoder']}")
    if "TensorRT" in info["vision_runtime"]:
        progress(f"vision: {info['vision_runtime']}")
    # Commands that do not ask do not have the option.
    if getattr(options, "add_system_prompt", False) and options.system is None and not model.has_system_prompt:
        progress(
            "the model's chat template has no system text, so --add-system-prompt has no effect; use --system TEXT"
        )
    return model


def media_limits(options: argparse.Namespace) -> MediaLimits:
    return replace(options.limits, max_read_s=options.max_read_seconds, isolate=options.isolate)


def folder_kind(options: argparse.Namespace) -> MediaKind | None:
    """What folders of pictures are: what --as says, and frames of a video where their rate is given."""
    kind: MediaKind | None = options.kind
    return kind or ("video" if options.source_fps is not None else None)


def sampling_plan(options: argparse.Namespace) -> SamplingPlan:
    return SamplingPlan(
        options.fps, options.max_frames, options.start, options.end, options.sampling_rule, options.source_fps
    )


def pruning_config(options: argparse.Namespace) -> PruningConfig:
    if options.no_pruning and options.threshold is not None:
        raise ConfigError("--threshold and --no-pruning are mutually exclusive")
    defaults = PruningConfig()
    threshold = defaults.threshold if options.threshold is None else options.threshold
    enabled = False if options.no_pruning else None
    return PruningConfig(threshold, enabled, options.max_visual_tokens, options.keep_ratio)


def generation_config(options: argparse.Namespace, draft_tokens: int = 0) -> GenerationConfig:
    """draft_tokens: where the option is not given."""
    return GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        draft_tokens=draft_tokens if options.draft_tokens is None else options.draft_tokens,
    )


def time_report(clip: Clip, stats: GenerationStats) -> str:
    """Where the time of one clip went."""
    encode = clip.stats
    total = clip.num_tokens + clip.num_pruned
    frames = "frame" if clip.num_frames == 1 else "frames"
    steps = stats.generated_tokens - 1  # the first token comes with the prefill
    rate = f" ({steps / stats.decode_s:.0f}/s)" if steps > 0 else ""
    chosen = clip.threshold not in (None, PruningConfig().threshold)
    threshold = f" (threshold {clip.threshold:.4g})" if chosen else ""
    return (
        f"{clip.num_frames} {frames} of {clip.width_px}×{clip.height_px},"
        f" {clip.num_tokens} of {total} visual tokens{threshold}"
        f" | read {encode.read_s:.2f} s, prune {encode.prune_s:.2f} s, vision {encode.vision_s:.2f} s,"
        f" projector {encode.projector_s:.2f} s, prefill {stats.prefill_s:.2f} s"
        f" ({stats.prompt_tokens} tokens), decode {stats.decode_s:.2f} s for {stats.generated_tokens} tokens{rate}"
    )
