"""An adapter's settings, `adapter_config.json`: how strongly it counts, and whether it is of a kind that can be merged.

What a layer's change is follows from the tensors that are stored; the settings that chose the layers
(`target_modules`, `layers_to_transform`, …) have done their work by then. Settings that make the change another one
(other methods, starts that alter the base, routing by tokens) are refused, and so are unknown ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..typed_json import Section

FILE_NAME = "adapter_config.json"
# Which layers, how they were trained, notes. `fan_in_fan_out` is for a layer that this model does not have; PEFT, too,
# ignores it for linear layers.
_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_bias",
        "lora_dropout",
        "lora_dtype",
        "lora_ga_config",
        "lorap_lr_ratio",
        "megatron_core",
        "parent_library",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
_READ = frozenset(
    {
        "alpha_pattern",
        "ensure_weight_tying",
        "init_lora_weights",
        "lora_alpha",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "trainable_token_indices",
        "use_dora",
        "use_rslora",
    }
)
_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # those that leave the base as it is
_RANK, _ALPHA = 8, 8  # PEFT's defaults


@dataclass(frozen=True)
class LoraSettings:
    """Read with `LoraSettings.read`.

    tokens: of `trainable_token_indices`, by the names of modules. keeps_tie: whether a head that shares the embeddings
    was trained as one with them.
    """

    file: Path
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilized: bool
    dora: bool
    modules_to_save: tuple[str, ...]
    tokens: Mapping[str, tuple[int, ...]]
    keeps_tie: bool

    @classmethod
    def read(cls, file: Path) -> LoraSettings:
        """Raises CheckpointError for another method than LoRA, and for settings that cannot be merged."""
        section = Section.read(file)
        kind = section.string("peft_type")
        if kind != "LORA":
            raise section.error("peft_type", f"is {kind}: only LoRA adapters (LORA) can be merged into the weights")
        unknown = sorted(key for key, value in section.values.items() if value and key not in _WITHOUT_EFFECT | _READ)
        if unknown:
            raise section.error(unknown[0], "is set: adapters with this setting cannot be merged here")
        start = section.values.get("init_lora_weights")
        if start is not None and start not in _STARTS:
            raise section.error(
                "init_lora_weights",
                f"is {start!r}, which changes the base: save the adapter for the original base first, with peft's "
                "save_pretrained(…, path_initial_model_for_weight_conversion=…)",
            )
        ranks = _pattern(section, "rank_pattern")
        alphas = _pattern(section, "alpha_pattern")
        if any(type(rank) is not int or rank < 1 for rank in ranks.values()):
            raise section.error("rank_pattern", "must give whole numbers above zero")
        return cls(
            file=file,
            rank=section.integer("r", _RANK),
            alpha=section.number("lora_alpha", _ALPHA, zero=True),
            ranks={pattern: int(rank) for pattern, rank in ranks.items()},
            alphas=alphas,
            rank_stabilized=section.boolean("use_rslora", False),
            dora=section.boolean("use_dora", False),
            modules_to_save=_names(section, "modules_to_save"),
            tokens=_tokens(section),
            keeps_tie=section.boolean("ensure_weight_tying", False),
        )

    def rank_of(self, module: str) -> int:
        return _matching(self.ranks, module, self.rank)

    def scale_of(self, module: str, weight: float) -> float:
        """What B · A is multiplied by. module: by the name that the adapter gives it. weight: of the whole adapter."""
        rank = self.rank_of(module)
        alpha = _matching(self.alphas, module, self.alpha)
        return weight * alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def tokens_of(self, module: str) -> tuple[int, ...] | None:
        """The token ids whose rows of this module were trained; None if the settings name none."""
        return next((ids for name, ids in self.tokens.items() if f".{module}".endswith(f".{name}")), None)


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches a module's whole name, or its end from a dot on."""
    return next((v for pattern, v in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)


def _pattern(section: Section, key: str) -> Mapping[str, float]:
    values = section.section(key, {}).values
    for pattern, value in values.items():
        try:
            re.compile(pattern)
        except re.error as e:
            raise section.error(key, f"holds a pattern that is none: {pattern!r} ({e})") from e
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise section.error(key, f"gives {pattern!r} no number")
    return values


def _names(section: Section, key: str) -> tuple[str, ...]:
    value = section.values.get(key) or ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise section.error(key, "must be a list of names")
    return tuple(value)


def _tokens(section: Section) -> Mapping[str, tuple[int, ...]]:
    """A list is of the input embeddings, whose module is `embed_tokens`."""
    key = "trainable_token_indices"
    if isinstance(section.values.get(key), dict):
        inner = section.section(key)
        return {name: inner.integers(name) for name in inner.values}
    ids = section.integers(key)
    return {"embed_tokens": ids} if ids else {}


def missing(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} lacks {what}: the adapter is incomplete; save or download it again")
