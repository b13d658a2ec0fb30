"""Finds a checkpoint: a local folder, or a model id on the Hugging Face hub.

From the hub, only safetensors weights and small text files are fetched, never code, and nothing pickled is read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import CheckpointError

_ALLOWED = ("*.safetensors", "*.json", "*.jinja", "merges.txt")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_checkpoint(
    path_or_hub_id: str | Path, revision: str | None = None, besides: Sequence[str] = ()
) -> tuple[Path, str | None]:
    """The checkpoint's local folder and, if it came from the hub, the commit it is pinned to.

    besides: names that are fetched, too, where the hub has them.
    Raises CheckpointError if it is neither a folder nor a model that can be fetched.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(f"{path} is a local folder, which has no revision {revision!r}")
        return path, None
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder that holds config.json")
    if isinstance(path_or_hub_id, Path) or not _HUB_ID.fullmatch(path_or_hub_id):
        raise CheckpointError(f"{path} does not exist, and is not a hub id of the form owner/name")
    return _download(path_or_hub_id, revision, (*_ALLOWED, *besides))


def _download(hub_id: str, revision: str | None, allowed: Sequence[str]) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(allowed)))
    except (HfHubHTTPError, OSError, ValueError) as e:
        raise CheckpointError(f"{hub_id} is not a local folder and could not be fetched from the hub: {e}") from e
    # The cache names a snapshot's folder after its commit, even when the hub is unreachable.
    print(f"{hub_id} at commit {folder.name}", file=sys.stderr)
    return folder, folder.name
