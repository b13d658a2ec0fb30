"""What memory this process may still take: the machine's, or less where a control group (a container) limits it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that can be taken without swapping, in bytes; None where the system does not say (it is not Linux).

    root: where proc and sys are mounted.
    """
    meminfo = _fields(root / "proc" / "meminfo")
    if "MemAvailable:" not in meminfo:
        return None
    return max(0, min([meminfo["MemAvailable:"] * 1024, *_group_rooms(root)]))


def _group_rooms(root: Path) -> Iterator[int]:
    """What is left in each control group with a limit that this process is in, of version 1 or 2."""
    mounts = root / "sys" / "fs" / "cgroup"
    for line in (root / "proc" / "self" / "cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            mount, limit, used = mounts, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mount, limit, used = mounts / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = mount / name.lstrip("/")
        # In a container the name is often the host's: its own limits then stand at the mount itself.
        for folder in (group, *group.parents):
            found = _number(folder / limit)
            if found is not None:
                # The page cache counts as used, but its older half is given back first.
                reclaimable = _fields(folder / "memory.stat").get("inactive_file", 0)
                yield found - (_number(folder / used) or 0) + reclaimable
            if folder == mount:
                break


def _number(path: Path) -> int | None:
    """The number in a file; None for "max", or where there is no such file."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if text == "max" else int(text)


def _fields(path: Path) -> dict[str, int]:
    """Lines `name number …` of a file; none where there is no such file."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in map(str.split, lines) if len(words) >= 2 and words[1].isdigit()}
