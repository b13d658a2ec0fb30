"""Files and folders that appear at one moment, beside what whoever made the folder may have put there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from vl3edge.runtime.files import write_whole, written_folder, written_whole


def beside(path: Path) -> Path:
    """The name that content has before it is whole."""
    return path.with_name(f".{hashlib.sha1(path.name.encode()).hexdigest()[:16]}.part")


def give_up(path: Path) -> None:
    path.write_text("part")
    raise ValueError("midway")


def test_a_library_writes_a_file_at_one_moment(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_text("old")
    with written_whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(ValueError, match="midway"), written_whole(path) as partial:
        give_up(partial)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["bundle.json", "timing.cache", "x" * 200])
def test_links_lead_to_no_other_file(name: str, tmp_path: Path) -> None:
    """Neither one in the place of the file, nor one in the place of what is not yet whole."""
    precious, path = tmp_path / "precious", tmp_path / "bundle" / name
    path.parent.mkdir()
    precious.write_text("mine")
    path.symlink_to(precious)
    with written_whole(path) as partial:
        partial.write_text("new")
    assert (path.read_text(), path.is_symlink(), precious.read_text()) == ("new", False, "mine")
    beside(path).symlink_to(precious)
    with pytest.raises(OSError, match=name):
        write_whole(path, [b"newer"])
    with pytest.raises(OSError, match=name), written_whole(path):
        pass
    assert (path.read_text(), precious.read_text()) == ("new", "mine")


@pytest.mark.parametrize("before", [None, [], ["a", "b/c"]])
def test_a_folder_appears_at_one_moment(before: list[str] | None, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for name in before or []:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("old")
    if before == []:
        target.mkdir()
    with pytest.raises(ValueError, match="midway"), written_folder(target) as folder:
        give_up(folder / "a")
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()) == (before or [])
    with written_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "d").write_text("new")
        assert not (target / "sub").exists()
    assert [p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()] == ["sub/d"]
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o755
