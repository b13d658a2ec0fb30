"""A checkpoint's own answers, for a comparison: made by PyTorch, which is not part of this package.

They come from a process of its own (`export/evaluate.py`), through the results file that it writes; so nothing of
PyTorch is imported here, and its memory is free again before the answers are compared.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError, Vl3EdgeError

_MODULE = "vl3edge.export.evaluate"


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder looks like a checkpoint's, and not like a bundle."""
    return (folder / "config.json").is_file() and not (folder / "bundle.json").exists()


def answer_by_reference(checkpoint: Path, results: Path, arguments: Sequence[str]) -> None:
    """Runs the reference over a set; `results` holds its answers when it ends.

    arguments: options of `python -m vl3edge.export.evaluate`. Raises ConfigError without PyTorch, Vl3EdgeError if the
    process ends without answers; what is wrong is on stderr by then.
    """
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"--against {checkpoint} is a checkpoint, which PyTorch answers, and that is not installed: pip install "
            "'vl3edge[export]', or give a bundle or a results file"
        )
    command = [sys.executable, "-m", _MODULE, str(checkpoint), *arguments, "-o", str(results)]
    status = subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode
    if status not in (0, 1) or not results.is_file():  # 1: some questions failed, and are in the results
        raise Vl3EdgeError(f"the reference answers of {checkpoint} could not be made (its process ended with {status})")
