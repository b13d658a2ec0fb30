"""What has to be installed on a Jetson, in bytes of wheels, and that all of it is there for aarch64.

    python benchmarks/wheel_sizes.py

`pip download` resolves the runtime's requirements with the extra `jetson` for the Pythons of JetPack 6 and 7, takes
wheels alone, and fails where one is missing. TensorRT and CUDA's driver come with JetPack. Markers of the project are
those of the device; markers within its dependencies are pip's, which reads them as those of this interpreter.
Writes benchmarks/results/wheel_sizes.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "wheel_sizes.json"
EXTRA = "jetson"
JETPACKS = {"JetPack 6": ("3.10", 35), "JetPack 7": ("3.12", 39)}  # Python, and the minor version of glibc
_OLDEST_GLIBC = 17
_ENVIRONMENT = {"sys_platform": "linux", "platform_machine": "aarch64", "platform_system": "Linux", "os_name": "posix"}


def main() -> None:
    result = {name: measured(python, glibc) for name, (python, glibc) in JETPACKS.items()}
    RESULTS.write_text(json.dumps({"extra": EXTRA, "devices": result}, indent=1) + "\n", encoding="utf-8")
    for name, found in result.items():
        print(f"{name}: {len(found['wheels'])} wheels, {found['bytes'] / 1e6:.1f} MB")


def measured(python: str, glibc: int) -> dict[str, Any]:
    """Every wheel with its size, the largest first."""
    wanted = requirements(python)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, "--only-binary=:all:"]
        command += ["--python-version", python, "--implementation", "cp", "--platform", "manylinux2014_aarch64"]
        for minor in range(_OLDEST_GLIBC, glibc + 1):
            command += ["--platform", f"manylinux_2_{minor}_aarch64"]
        subprocess.run([*command, *wanted], check=True)
        sizes = {path.name: path.stat().st_size for path in Path(folder).iterdir()}
    ordered = dict(sorted(sizes.items(), key=lambda item: -item[1]))
    return {"python": python, "requirements": wanted, "bytes": sum(sizes.values()), "wheels": ordered}


def requirements(python: str, extra: str = EXTRA) -> list[str]:
    """The runtime's own, with an extra, as they are on a Jetson with this Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = _ENVIRONMENT | {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"][extra])]
    return [
        f"{each.name}{each.specifier}" for each in found if each.marker is None or each.marker.evaluate(environment)
    ]


if __name__ == "__main__":
    main()
