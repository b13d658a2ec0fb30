"""Tries the install steps of the images without a container: each in a plain virtual environment of the same Python.

    python docker/try.py [cpu rtx jetpack6 jetpack7] [--python 3.12=/usr/bin/python3.12 …]

What can run here is run: the CPU's server is started, and asked by the images' own health check. Of the others, whose
libraries need gigabytes or a device, pip resolves what would be installed. A Python that is not there is said so.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = {"cpu": "3.12", "rtx": "3.12", "jetpack6": "3.10", "jetpack7": "3.12"}


def extras(image: str) -> str:
    """Those that an image installs."""
    text = (ROOT / "docker" / f"{image}.Dockerfile").read_text(encoding="utf-8")
    found = re.search(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    assert found
    return found[1]


def installed(python: str, folder: Path, image: str) -> None:
    command = ["sh", str(ROOT / "docker" / "install.sh"), python, str(folder), str(ROOT), extras(image)]
    subprocess.run(command, check=True)


def served(folder: Path) -> bool:
    """Whether the installed server starts, and its health check says so."""
    command = [str(folder / "bin" / "vl3edge"), "serve", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        ports = (re.search(r"serving on \S+:(\d+)", line) for line in server.stderr)
        port = next(found[1] for found in ports if found)
        environment = {**os.environ, "VL3EDGE_PORT": port}
        healthy = [str(folder / "bin" / "python"), str(ROOT / "docker" / "healthy.py")]
        done = subprocess.run(healthy, env=environment, check=False)
        server.terminate()
    return done.returncode == 0 and server.returncode == 0


def resolved(python: str, folder: Path, image: str) -> None:
    """What pip would install, in the place of doing so."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--dry-run"]
    subprocess.run([*pip, f"{ROOT}[{extras(image)}]"], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("images", nargs="*", default=list(PYTHONS))
    parser.add_argument("--python", action="append", default=[], metavar="VERSION=PATH")
    options = parser.parse_args()
    named = dict(pair.split("=", 1) for pair in options.python)
    for image in options.images:
        version = PYTHONS[image]
        python = named.get(version) or shutil.which(f"python{version}")
        if python is None:
            print(f"{image}: skipped, there is no Python {version}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            if image == "cpu":
                installed(python, Path(folder, "venv"), image)
                outcome = "installed, serves" if served(Path(folder, "venv")) else "BROKEN"
            else:
                resolved(python, Path(folder, "venv"), image)
                outcome = "resolved"
        print(f"{image}: {outcome} with Python {version}", flush=True)
        if outcome == "BROKEN":
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
