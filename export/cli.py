"""`vl3edge export`: one command from a checkpoint to a bundle."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from vl3edge.quant.errors import QuantError
from vl3edge.runtime.cli.info import contents_table
from vl3edge.runtime.cli.stderr import exit_status, progress
from vl3edge.runtime.errors import ConfigError

from .lora_option import add_lora, open_checkpoint
from .options import TARGETS, ExportOptions
from .pipeline import export_bundle
from .presets import DEFAULT_PRESET, PRESETS, export_options, preset_settings
from .progress import ProgressLines
from .vocabulary.texts import CORPUS

_SETTINGS = tuple(preset_settings(DEFAULT_PRESET))
"""What a preset sets; each has an option of its own, None where it is not given."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, 1 if the export failed, 2 for bad usage."""
    options = _parser().parse_args(argv)
    quiet_libraries()
    interrupted = "interrupted; run the same command again to continue quantization where it stopped."
    return exit_status(lambda: _export(options), interrupted=interrupted)


def quiet_libraries() -> None:
    """Hides the libraries' warnings that are meant for developers."""
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)


def _export(options: argparse.Namespace) -> None:
    wanted = _export_options(options)
    checkpoint = open_checkpoint(options)
    if wanted.plan is not None and checkpoint.config.quantization is not None:
        progress("the checkpoint's decoder is already quantized: exported unchanged, ignoring --bits and --group-size")
    report = export_bundle(checkpoint, options.output, wanted, ProgressLines())
    if wanted.vocabulary is not None and not report.manifest.text.head_rows:
        progress("--vocabulary leaves nothing out: the output head has all tokens")
    print(contents_table(report.manifest))
    print(f"\nbundle: {report.folder}")


def _export_options(options: argparse.Namespace) -> ExportOptions:
    """Raises ConfigError for options that no checkpoint can satisfy."""
    if options.calibration_tokens < 1:
        raise ConfigError(f"--calibration-tokens must be at least 1, not {options.calibration_tokens}")
    settings = {name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None}
    if "bits" in settings and settings["bits"] != "auto":
        settings["bits"] = int(settings["bits"])
    try:
        wanted = export_options(
            options.preset,
            tuple(dict.fromkeys(options.target or ["cpu"])),
            settings,
            precision=options.precision,
            calibration=tuple(options.calibration),
            calibration_tokens=options.calibration_tokens,
            save_gptq=options.save_gptq,
            vocabulary=options.vocabulary,
            name=options.name,
            force=options.force,
            kernels=not options.no_kernels,
        )
    except QuantError as e:
        raise ConfigError(str(e)) from e
    if wanted.plan is None and options.save_gptq is not None:
        raise ConfigError("--save-gptq and --quant none are mutually exclusive")
    return wanted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vl3edge export", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="local folder, or a hub id such as owner/name")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to write")
    parser.add_argument("--revision", help="hub revision (default: the newest; the commit is recorded)")
    add_lora(parser)
    parser.add_argument(
        "--target",
        action="append",
        choices=TARGETS,
        help="where it will run; may be repeated (default: cpu, which every bundle has); the others add what NVIDIA "
        "GPUs need",
    )
    parser.add_argument(
        "--no-kernels",
        action="store_true",
        help="leave out the decoder's own kernels for NVIDIA GPUs, which Triton compiles (pip install "
        "'vl3edge[kernels]') and --decoder kernels runs",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="exact: nothing is quantized; balanced (default): the fast one, 4 bits for the decoder, on CPUs 8 for the "
        "encoder and for prompts; small: the least memory. The options below go before it; --quant none alone is exact",
    )
    parser.add_argument("--precision", choices=("fp32", "fp16"), help="precision of weights that are not quantized")
    parser.add_argument("--name", help="model name in the bundle (default: the checkpoint's name)")
    group = parser.add_argument_group("quantization of the decoder")
    group.add_argument("--quant", choices=("gptq", "rtn", "none"), dest="method", help="default: gptq")
    group.add_argument("--bits", choices=("3", "4", "8", "auto"), help="bits of the layers (default: 4)")
    group.add_argument("--average-bits", type=float, help="average for --bits auto (default: 4.5)")
    group.add_argument(
        "--head-bits", type=int, choices=(4, 8, 16), help="bits of the output head; 16: float (default: 4)"
    )
    group.add_argument("--group-size", type=int, help="weights that share a scale (default: 128)")
    group.add_argument(
        "--asymmetric",
        action="store_false",
        dest="symmetric",
        default=None,
        help="store zero points, better at few bits",
    )
    group.add_argument(
        "--calibration", nargs="+", default=[], metavar="PATH", help="media to calibrate on (default: synthetic scenes)"
    )
    group.add_argument("--calibration-tokens", type=int, default=32768, metavar="N", help="default: 32768")
    group.add_argument(
        "--activation-bits",
        type=int,
        choices=(8, 32),
        help="precision of activations on CPUs (default: 8, faster)",
    )
    group.add_argument(
        "--prefill-bits",
        type=int,
        choices=(8, 16),
        help="8: also store the layers' weights in 8 bits, which reads prompts faster on CPUs with VNNI, and more "
        "accurately than 4; calibrated on at most 4,096 tokens of the same media; 16: prompts use the decoder's "
        "own weights (default: the preset's)",
    )
    group.add_argument("--save-gptq", type=Path, metavar="DIR", help="also write an ordinary GPTQ checkpoint")
    parser.add_argument(
        "--vision-bits",
        type=int,
        choices=(8, 16),
        help="8: the encoder's products in 8 bits, twice as fast on CPUs; calibrated on the same media; 16: float "
        "(default: the preset's)",
    )
    parser.add_argument(
        "--vocabulary",
        metavar=f"FILE|{CORPUS}",
        help="leave rows out of the output head, for fewer bytes a step; not lossless: other words are spelled in more "
        "tokens, if at all. FILE: text or .jsonl of what will be said; corpus: the calibration's conversations and all "
        "English words (default: keep all)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    return parser
