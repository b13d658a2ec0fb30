"""The demo and the runtime's tests on every Python of this machine, with the newest dependencies and with the oldest.

The newest are what pip resolves; the oldest are the lower bounds in pyproject.toml. Environments are kept in
.cache/matrix while pyproject.toml stays as it is. The exit status is 1 if anything failed, or if there is no Python.

    python3 .ci/matrix.py --tests ends     the demo everywhere; tests on the newest Python with the newest dependencies
                                           and on the oldest with the oldest
    python3 .ci/matrix.py --tests all      tests everywhere, too (make matrix)
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".cache" / "matrix"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
KINDS = ("newest", "oldest")
SHOWN = ("av", "numpy", "pillow", "onnxruntime", "tokenizers", "jinja2")
CAPTION = "A red square on a checkered ground."
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@dataclass
class Result:
    """One line of the table; a column is empty where nothing was run."""

    python: str
    kind: str
    demo: str = ""
    tests: str = ""
    versions: str = ""

    @property
    def failed(self) -> bool:
        return "FAILED" in self.demo + self.tests


def interpreters() -> dict[str, str]:
    """The command of each Python there is, by version: pyenv's, else what is on PATH."""
    found = {}
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in PYTHONS:
        ours = sorted(root.glob(f"{version}.*/bin/python"), key=lambda path: [int(n) for n in _numbers(path)])
        for command in [*map(str, reversed(ours)), shutil.which(f"python{version}")]:
            if command and _answers(command, version):
                found[version] = command
                break
    return found


def _numbers(path: Path) -> list[str]:
    return re.findall(r"\d+", path.parent.parent.name)


def _answers(command: str, version: str) -> bool:
    """Whether it is that Python; pyenv's shims exist for versions that are not there, too."""
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([command, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == version


def oldest() -> str:
    """Constraints that hold every dependency of the runtime at its lower bound."""
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"]]
    return "\n".join(requirement.replace(">=", "==", 1) for requirement in requirements) + "\n"


def environment(command: str, version: str, kind: str) -> Path:
    """The interpreter of a virtual environment with the runtime and what its tests need."""
    folder = PLACE / f"{version}-{kind}"
    python, stamp = folder / "bin" / "python", folder / "installed"
    state = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == state:
        return python
    subprocess.run([command, "-m", "venv", "--clear", str(folder)], check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(oldest() if kind == "oldest" else "")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "-c", str(constraints), "-e", f"{ROOT}[cpu,test-runtime]"], check=True)
    stamp.write_text(state)
    return python


def try_one(command: str, version: str, kind: str, with_tests: bool, workers: int) -> Result:
    """Installs one combination and runs what is asked for."""
    result = Result(version, kind)
    try:
        python = environment(command, version, kind)
    except subprocess.CalledProcessError:
        result.demo = "FAILED to install"
        return result
    code = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    done = subprocess.run([str(python), "-c", code, *SHOWN], capture_output=True, text=True, check=False)
    result.versions = done.stdout.strip()
    done = subprocess.run(
        [str(python.parent / "vl3edge"), "caption", "tests/fixtures/demo_clip.mp4"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    result.demo = "passed" if done.returncode == 0 and CAPTION in done.stdout else f"FAILED: {done.stdout.strip()!r}"
    if with_tests:
        begin = time.monotonic()
        tests = [str(python), "-m", "pytest", "-n", str(workers), "-m", "not long", "tests/runtime"]
        done = subprocess.run(tests, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        result.tests = f"{'passed' if done.returncode == 0 else 'FAILED'}, {time.monotonic() - begin:.0f} s"
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", choices=("ends", "all", "none"), default="ends")
    parser.add_argument("--only", action="append", default=[], metavar="X.Y", help="these Pythons alone")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    found = {version: path for version, path in interpreters().items() if not options.only or version in options.only}
    if not found:
        print(f"matrix: none of Python {', '.join(PYTHONS)} is here", file=sys.stderr)
        return 1
    versions = list(found)
    ends = {(versions[-1], "newest"), (versions[0], "oldest")}
    results = []
    for version, command in found.items():
        for kind in KINDS:
            with_tests = options.tests == "all" or (options.tests == "ends" and (version, kind) in ends)
            print(f"matrix: Python {version} ({command}), {kind} dependencies", flush=True)
            results.append(try_one(command, version, kind, with_tests, options.workers))
    print("\n| Python | dependencies | demo | runtime tests | versions |\n| --- | --- | --- | --- | --- |")
    for one in results:
        print(f"| {one.python} | {one.kind} | {one.demo} | {one.tests or 'not run'} | {one.versions} |")
    missing = [version for version in PYTHONS if version not in found]
    print(f"\nnot on this machine: {', '.join(missing)}" if missing else "\nall of them are on this machine")
    return int(any(one.failed for one in results))


if __name__ == "__main__":
    sys.exit(main())
