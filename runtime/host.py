"""The machine this process runs on, as Linux tells it: what its CPU can do, and memory, taken, free and given back."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
CPUINFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni"}
_SELF = Path("/proc/self")
_TRIM_EVERY = 50  # jobs; a trim takes milliseconds


@cache
def adds_8_bit_products_exactly() -> bool:
    """Whether uint8 · int8 products are known to be added in 32 bits, which Linux says of x86 CPUs with VNNI.

    Older x86 CPUs add them in pairs in 16 bits, which can overflow. False where it is not known.
    """
    try:
        lines = CPUINFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not _VNNI.isdisjoint(flags)


def cores() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that can be taken without swapping, in bytes; None where the system does not say (it is not Linux).

    root: where proc and sys are mounted.
    """
    meminfo = _fields(root / "proc" / "meminfo")
    if "MemAvailable:" not in meminfo:
        return None
    return max(0, min([meminfo["MemAvailable:"] * 1024, *_group_rooms(root)]))


def peak_bytes() -> int | None:
    """The largest resident set since the process began, or since `reset_peak`; mapped files included."""
    return _own("VmHWM:")


def current_bytes() -> int | None:
    """The resident set now, mapped files included."""
    return _own("VmRSS:")


def reset_peak() -> None:
    """Restarts `peak_bytes`, where the kernel allows it."""
    try:
        (_SELF / "clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or a container that forbids it: the peak then covers the whole process
        return


def trimmed(jobs: Iterable[T]) -> Iterator[T]:
    """The jobs of a long run; every now and then, between two, memory that is free is given back to the system.

    Threads and decoders come and go with every clip, and glibc keeps what they free in a heap for each thread, in
    pieces that the next decoder often cannot use: without this, 8,400 clips left 100 MB there.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    for number, job in enumerate(jobs, 1):
        yield job
        if trim is not None and number % _TRIM_EVERY == 0:
            trim(0)


def _own(name: str) -> int | None:
    """Bytes, by a name of this process' status; None where there is none."""
    kibibytes = _fields(_SELF / "status").get(name)
    return None if kibibytes is None else kibibytes * 1024


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
