"""Available memory: the smallest of what the machine and its control groups leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from vl3edge.runtime.host import available_bytes

MB = 1 << 20


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root folder with 8,000 MB available and files below sys/fs/cgroup."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 99 kB\nMemFree: 5 kB\nMemAvailable: {8000 * 1024} kB\n")
    (root / "proc" / "self" / "cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V1 = "12:cpu,cpuacct:/x\n9:memory:/job/a\n0::/\n"
CASES = {
    "no limit": ("0::/user\n", {"user/memory.max": "max\n", "user/memory.current": "5\n"}, 8000),
    "version 2": (
        "0::/user\n",
        {
            "user/memory.max": f"{1000 * MB}\n",
            "user/memory.current": f"{700 * MB}\n",
            "user/memory.stat": f"anon 1\ninactive_file {200 * MB}\n",
        },
        500,
    ),
    "a parent's limit": (
        "0::/a/b\n",
        {"a/memory.max": f"{600 * MB}", "a/memory.current": f"{100 * MB}", "a/b/memory.max": "max"},
        500,
    ),
    "in a container": ("0::/host/name\n", {"memory.max": f"{300 * MB}", "memory.current": f"{100 * MB}"}, 200),
    "version 1": (
        V1,
        {
            "memory/job/a/memory.limit_in_bytes": f"{400 * MB}",
            "memory/job/a/memory.usage_in_bytes": f"{150 * MB}",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": "1",
        },
        250,
    ),
    "beyond its limit": ("0::/u\n", {"u/memory.max": "10\n", "u/memory.current": "20\n"}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_the_smallest_room_counts(case: str, tmp_path: Path) -> None:
    groups, files, expected = CASES[case]
    assert available_bytes(machine(tmp_path, groups, files)) == expected * MB


def test_unknown_where_the_system_does_not_say(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None


def test_of_this_machine() -> None:
    found = available_bytes()
    if found is None:
        pytest.skip("not Linux")
    assert 0 < found < 1 << 50
