"""Which variants of the kernels a GPU ran fastest: `kernels/tuned-<GPU>.json`, written on the device by `vl3edge tune`.

As TensorRT's timing cache, it is for one GPU, one driver and one set of kernels, which are in it. It is none of the
files that `bundle.json` vouches for: all it can do is to choose among kernels that are. What does not fit is ignored
with a warning.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import BackendWarning, BundleError
from ..files import write_whole
from .json_file import read_json, read_json_file
from .kernel_set import FOLDER

TUNING_FORMAT, TUNING_FORMAT_VERSION = "vl3edge-tuning", 1
_MAX_BYTES = 1 << 20
_AGAIN = "run `vl3edge tune` again"


@dataclass(frozen=True)
class TunedFor:
    """What a choice holds for: a GPU by name and compute capability, the CUDA version of its driver, the kernels.

    kernels: sha256 of their manifest.
    """

    device: str
    compute_capability: str
    driver: int
    kernels: str

    def misfit(self, here: TunedFor) -> str | None:
        """What of it differs from what is here, if anything does."""
        if self.kernels != here.kernels:
            return "other kernels"
        if (self.device, self.compute_capability) != (here.device, here.compute_capability):
            return f"{self.device} {self.compute_capability}"
        return None if self.driver == here.driver else f"the driver of CUDA {self.driver // 1000}"


@dataclass(frozen=True)
class TunedKernel:
    """The fastest of several variants for launches of up to so many tokens (or rows of a step).

    microseconds: of a launch; default_microseconds: of the variant that would serve untuned. variants: how many ran.
    """

    kernel: str
    up_to: int
    microseconds: float
    default_microseconds: float
    variants: int


@dataclass(frozen=True)
class Tuning:
    """What `vl3edge tune` found on one device."""

    tuned_for: TunedFor
    choices: tuple[TunedKernel, ...]

    def to_text(self) -> str:
        content = {"format": TUNING_FORMAT, "format_version": TUNING_FORMAT_VERSION, **asdict(self)}
        return json.dumps(content, indent=1) + "\n"


def tuning_path(bundle: Path, device: str) -> Path:
    name = re.sub(r"[^a-z0-9.]+", "-", device.lower()).strip("-")
    return bundle / FOLDER / f"tuned-{name}.json"


def write_tuning(bundle: Path, tuning: Tuning) -> Path:
    """Writes it whole into the bundle; returns the file. Raises OSError."""
    path = tuning_path(bundle, tuning.tuned_for.device)
    write_whole(path, [tuning.to_text().encode()])
    return path


def read_tuning(bundle: Path, here: TunedFor) -> Tuning | None:
    """What was tuned for what is here; None if nothing was, or, with a BackendWarning, if it does not fit."""
    path = tuning_path(bundle, here.device)
    try:
        tuning = _read(path)
    except FileNotFoundError:
        return None
    except BundleError as e:
        warnings.warn(f"the kernels run untuned: {e}", BackendWarning, stacklevel=2)
        return None
    if misfit := tuning.tuned_for.misfit(here):
        warnings.warn(f"the kernels run untuned, {path} is for {misfit}: {_AGAIN}", BackendWarning, stacklevel=2)
        return None
    return tuning


def tuning_files(bundle: Path) -> list[Path]:
    """The choices that a bundle has, of whatever devices, in order."""
    return sorted(path for path in (bundle / FOLDER).glob("tuned-*.json") if path.is_file())


def tuning_lines(bundle: Path, kernels: str, here: TunedFor | None) -> list[str]:
    """What each of a bundle's choices is for, and whether this device uses one, in words.

    kernels: sha256 of their manifest. here: None without a GPU.
    """
    lines, used = [], False
    for path in tuning_files(bundle):
        try:
            tuned_for = _read(path).tuned_for
        except BundleError as e:
            lines.append(str(e))
            continue
        misfit = tuned_for.misfit(here or replace(tuned_for, kernels=kernels))
        state = f", not used: it is for {misfit}" if misfit else ", used on this device" if here else ""
        lines.append(f"for {tuned_for.device} {tuned_for.compute_capability}{state}")
        used = used or misfit is None
    return lines if used or here is None else [*lines, "not for this device; run `vl3edge tune`"]


def _read(path: Path) -> Tuning:
    data = read_json_file(path, _MAX_BYTES, f"Delete it, or {_AGAIN}.")
    wanted = (TUNING_FORMAT, TUNING_FORMAT_VERSION)
    if not isinstance(data, dict) or (data.pop("format", None), data.pop("format_version", None)) != wanted:
        raise BundleError(f"{path} is not a {TUNING_FORMAT} of version {TUNING_FORMAT_VERSION}; {_AGAIN}")
    problems: list[str] = []
    tuning: Tuning = read_json(Tuning, data, "", problems)
    if problems:
        raise BundleError(f"{path} cannot be used: {'; '.join(problems[:3])}; {_AGAIN}")
    return tuning
