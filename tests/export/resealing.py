"""Bundles made whole again after something in them was changed, so that no hash gives it away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vl3edge.runtime.bundle.bundle import hash_file
from vl3edge.runtime.bundle.manifest import sealed


def reseal(bundle: Path, change: Callable[[dict[str, Any]], Any] = lambda data: None) -> None:
    """Makes the bundle whole again after a change, so that no hash gives it away."""
    data = json.loads((bundle / "bundle.json").read_text())
    data["files"] = {name: vars(hash_file(bundle / name)) for name in data["files"]}
    change(data)
    (bundle / "bundle.json").write_text(json.dumps(sealed(data)))
