"""The README: its figures are those of the result files, its file tree is the real one, its snippet runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_come_from_the_results() -> None:
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], check=False)
    assert done.returncode == 0, "run python benchmarks/readme.py"


def test_the_file_tree_is_real() -> None:
    tree = re.search(r"```\n(export/.*?)```", README, re.DOTALL)
    assert tree
    named = re.findall(r"^ *([\w./-]+)", tree[1], re.MULTILINE)
    folder = Path()
    for name in named:
        if name.endswith("/"):
            folder = Path(name)
        path = ROOT / (name if name.endswith("/") else folder / name)
        assert path.exists(), path


def test_the_snippet_runs(tmp_path: Path) -> None:
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippet
    clip = ROOT / "tests" / "fixtures" / "demo_clip.mp4"
    code = snippet[1].replace('"clip.mp4"', repr(str(clip))).replace('VideoLlama3.load("vl3-2b")', "VideoLlama3.load()")
    assert str(clip) in code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
