"""The README: its figures are those of the result files, its file tree is the real one, its snippet runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_come_from_the_results() -> None:
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], check=False)
    assert done.returncode == 0, "run python benchmarks/readme.py"


def test_the_api_page_is_that_of_the_docstrings() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_api.py", "--check"], check=False)
    assert done.returncode == 0, "run python docs/make_api.py"


def test_the_readme_is_a_page() -> None:
    assert len(README.splitlines()) <= 120
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_file_tree_is_real() -> None:
    tree = re.search(r"```\n(runtime/.*?)```", README, re.DOTALL)
    assert tree
    folder = Path()
    named = re.findall(r"^( *)([\w./-]+)", tree[1], re.MULTILINE)
    for indent, name in named:
        folder = folder if indent else Path(name)
        path = ROOT / folder / name if indent else ROOT / name
        assert path.exists(), path
    assert len(named) > 10


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda page: page.name)
def test_links_and_files_named_in_pages_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for name in re.findall(r"`((?:runtime|export|quant|models|benchmarks|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_snippet_runs(tmp_path: Path) -> None:
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippet
    clip = ROOT / "tests" / "fixtures" / "demo_clip.mp4"
    code = snippet[1].replace('"clip.mp4"', repr(str(clip))).replace('VideoLlama3.load("vl3-2b")', "VideoLlama3.load()")
    assert str(clip) in code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
