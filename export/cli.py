"""`vl3edge export`: one command from a checkpoint to a bundle."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from vl3edge.quant.errors import QuantError
from vl3edge.quant.plan import QuantizationPlan
from vl3edge.runtime.cli.info import contents_table
from vl3edge.runtime.cli.stderr import exit_status, progress
from vl3edge.runtime.errors import ConfigError

from .lora_option import add_lora, open_checkpoint
from .options import TARGETS, ExportOptions
from .pipeline import export_bundle
from .progress import ProgressLines


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
    print(contents_table(report.manifest))
    print(f"\nbundle: {report.folder}")


def _export_options(options: argparse.Namespace) -> ExportOptions:
    """Raises ConfigError for options that no checkpoint can satisfy."""
    plan = None
    if options.quant == "none" and options.save_gptq is not None:
        raise ConfigError("--save-gptq and --quant none are mutually exclusive")
    if options.calibration_tokens < 1:
        raise ConfigError(f"--calibration-tokens must be at least 1, not {options.calibration_tokens}")
    if options.quant != "none":
        try:
            plan = QuantizationPlan(
                method=options.quant,
                bits="auto" if options.bits == "auto" else int(options.bits),
                average_bits=options.average_bits,
                head_bits=None if options.head_bits == 16 else options.head_bits,
                group_size=options.group_size,
                symmetric=not options.asymmetric,
            )
        except QuantError as e:
            raise ConfigError(str(e)) from e
    return ExportOptions(
        targets=tuple(dict.fromkeys(options.target or ["cpu"])),
        plan=plan,
        precision=options.precision,
        calibration=tuple(options.calibration),
        calibration_tokens=options.calibration_tokens,
        save_gptq=options.save_gptq,
        activation_bits=options.activation_bits,
        vision_bits=options.vision_bits,
        prefill_bits=options.prefill_bits,
        name=options.name,
        force=options.force,
        kernels=not options.no_kernels,
    )


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
    parser.add_argument("--precision", choices=("fp32", "fp16"), help="precision of weights that are not quantized")
    parser.add_argument("--name", help="model name in the bundle (default: the checkpoint's name)")
    group = parser.add_argument_group("quantization of the decoder")
    group.add_argument("--quant", choices=("gptq", "rtn", "none"), default="gptq", help="default: gptq")
    group.add_argument("--bits", choices=("3", "4", "8", "auto"), default="4", help="bits of the layers (default: 4)")
    group.add_argument("--average-bits", type=float, default=4.5, help="average for --bits auto (default: 4.5)")
    group.add_argument(
        "--head-bits", type=int, choices=(4, 8, 16), default=8, help="bits of the output head (default: 8)"
    )
    group.add_argument("--group-size", type=int, default=128, help="weights that share a scale (default: 128)")
    group.add_argument("--asymmetric", action="store_true", help="store zero points, better at few bits")
    group.add_argument(
        "--calibration", nargs="+", default=[], metavar="PATH", help="media to calibrate on (default: synthetic scenes)"
    )
    group.add_argument("--calibration-tokens", type=int, default=32768, metavar="N", help="default: 32768")
    group.add_argument(
        "--activation-bits",
        type=int,
        choices=(8, 32),
        default=8,
        help="precision of activations on CPUs (default: 8, faster)",
    )
    group.add_argument(
        "--prefill-bits",
        type=int,
        choices=(8, 16),
        default=16,
        help="8: also store the layers' weights in 8 bits, which reads prompts faster on CPUs with VNNI, and more "
        "accurately than 4; calibrated on at most 4,096 tokens of the same media (default: 16, prompts use the "
        "decoder's own weights)",
    )
    group.add_argument("--save-gptq", type=Path, metavar="DIR", help="also write an ordinary GPTQ checkpoint")
    parser.add_argument(
        "--vision-bits",
        type=int,
        choices=(8, 16),
        default=16,
        help="8: the encoder's products in 8 bits, twice as fast on CPUs; calibrated on the same media (default: 16, "
        "float)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    return parser
