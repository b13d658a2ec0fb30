"""What `vl3edge export --preset` means: settings for a purpose, chosen by what they cost (docs/quantization.md).

    exact     nothing is quantized: on a CPU the tokens are transformers' in float32, one by one
    balanced  the fast one: 4 bits for the decoder and its head; on a CPU 8 for the encoder and for prompts, with
              a copy of the layers' weights; on GPUs the encoder is float16, and there is no copy
    small     the least disk and memory: 4 bits for the decoder, 8 for the encoder, no weights stored twice

An encoder in 8 bits gains nothing in ONNX Runtime on CUDA, which has no such products, so bundles for it have none.
Settings given explicitly go before a preset's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from vl3edge.quant.plan import QuantizationPlan
from vl3edge.runtime.errors import ConfigError

from .options import ExportOptions

Preset = Literal["exact", "balanced", "small"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
DEFAULT_PRESET: Preset = "balanced"

_WHOLE = "none"
_HOW = {"bits": 4, "average_bits": 4.5, "head_bits": 4, "group_size": 128, "symmetric": True}
"""How the decoder is quantized: fields of `QuantizationPlan`, but that head_bits 16 leaves the head whole."""


def preset_settings(preset: Preset, targets: Sequence[str] = ("cpu",)) -> dict[str, Any]:
    """A preset's settings in a bundle for these targets: method ("gptq", "rtn" or "none"), the fields of the plan, and
    activation_bits, vision_bits and prefill_bits of `ExportOptions`."""
    if preset not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    settings = {"method": "gptq", **_HOW, "activation_bits": 8, "vision_bits": 16, "prefill_bits": 16}
    if preset == "exact":
        return settings | {"method": _WHOLE}
    on_cpu = set(targets) == {"cpu"}
    if on_cpu or (preset == "small" and "cuda" not in targets):
        settings["vision_bits"] = 8
    if on_cpu and preset == "balanced":
        settings["prefill_bits"] = 8
    return settings


def export_options(
    preset: Preset | None = None,
    targets: Sequence[str] = ("cpu",),
    settings: Mapping[str, Any] | None = None,
    **others: Any,
) -> ExportOptions:
    """The options of an export by a preset.

    preset: None takes "balanced", or "exact" where `settings` has method "none".
    settings: those of `preset_settings` that differ. Activations in float (activation_bits 32) switch prompts in 8 bits
        off, unless these are asked for, too.
    others: further fields of `ExportOptions`.
    Raises ConfigError for an unknown preset, and for settings that would be ignored; QuantError for an invalid plan.
    """
    given = dict(settings or {})
    preset = preset or ("exact" if given.get("method") == _WHOLE else DEFAULT_PRESET)
    usual = preset_settings(preset, targets)
    if given.get("activation_bits") == 32:
        given.setdefault("prefill_bits", 16)
    wanted = usual | given
    unused = [name for name in _HOW if name in given]
    if wanted["method"] == _WHOLE and unused:
        raise ConfigError(
            f"{' and '.join(unused)}: of no use where the decoder is not quantized; leave that out, or add --quant gptq"
        )
    return ExportOptions(
        targets=tuple(targets),
        plan=None if wanted["method"] == _WHOLE else _plan(wanted),
        activation_bits=wanted["activation_bits"],
        vision_bits=wanted["vision_bits"],
        prefill_bits=wanted["prefill_bits"],
        preset=preset,
        changed=tuple(f"{name} {value}" for name, value in given.items() if usual[name] != value),
        **others,
    )


def _plan(settings: Mapping[str, Any]) -> QuantizationPlan:
    how = {name: settings[name] for name in ("method", *_HOW)}
    return QuantizationPlan(**how | {"head_bits": None if how["head_bits"] == 16 else how["head_bits"]})
