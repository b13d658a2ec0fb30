"""The install steps of the containers in plain environments, with the Pythons of this machine (docker/try.py).

The image for RTX is left out: to say what pip would install, it may have to load gigabytes of CUDA's libraries.
"""

from __future__ import annotations

import subprocess
import sys

from matrix import ROOT, interpreters

IMAGES = ("cpu", "jetpack6", "jetpack7")


def main() -> int:
    pythons = [f"--python={version}={path}" for version, path in interpreters().items()]
    command = [sys.executable, str(ROOT / "docker" / "try.py"), *IMAGES, *pythons]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
