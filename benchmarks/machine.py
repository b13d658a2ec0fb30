"""The machine a figure was taken on, for every result file."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vl3edge.runtime.host import cores

PACKAGES = (
    "vl3edge",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-genai",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
    "torch",
    "transformers",
    "av",
)


def describe() -> dict[str, Any]:
    """CPU, cores, memory in GB, system, and the versions of what matters here."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def keep(path: Path, entry: dict[str, Any], *keys: str) -> None:
    """Adds an entry to a result file, under this machine's CPU and `keys`; those of other machines stay."""
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    place = result
    *outer, last = _cpu_model(), *keys
    for key in outer:
        place = place.setdefault(key, {})
    place[last] = entry
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
