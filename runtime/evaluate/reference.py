"""A checkpoint's own answers, for a comparison: made by PyTorch, which is not part of this package.

They come from a process of its own (`export/evaluate.py`), through the results file that it writes; so nothing of
PyTorch is imported here, and its memory is free again before the answers are compared.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ConfigError, Vl3EdgeError
from .results import refuse_old_results

_MODULE = "vl3edge.export.evaluate"


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder looks like a checkpoint's, and not like a bundle."""
    return (folder / "config.json").is_file() and not (folder / "bundle.json").exists()


def reference_asker(checkpoint: Path, results: Path, arguments: Sequence[str]) -> Callable[[], Path]:
    """What runs the reference over a set, and gives `results`, which holds its answers then.

    arguments: options of `python -m vl3edge.export.evaluate`. Raises ConfigError without PyTorch, or for results that
    are there already and are neither to be continued nor replaced. When it runs: Vl3EdgeError if the process ends
    without answers; what is wrong is on stderr by then.
    """
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"--against {checkpoint} is a checkpoint, which PyTorch answers, and that is not installed: pip install "
            "'vl3edge[export]', or give a bundle or a results file"
        )
    if not {"--resume", "--retry-failed", "--force"} & set(arguments):
        refuse_old_results(results)
    command = [sys.executable, "-m", _MODULE, str(checkpoint), *arguments, "-o", str(results)]

    def ask() -> Path:
        status = subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode
        if status not in (0, 1) or not results.is_file():  # 1: some questions failed, and are in the results
            raise Vl3EdgeError(
                f"the reference answers of {checkpoint} could not be made (its process ended with {status})"
            )
        return results

    return ask
