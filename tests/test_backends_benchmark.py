"""benchmarks/backends.py as far as it goes without a GPU: the CPU against itself, and a backend that is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict]:
    command = [sys.executable, "benchmarks/backends.py", "runtime/demo_bundle", "tests/fixtures/demo_clip.mp4"]
    command += ["--repeat", "1", "--new-tokens", "6", "--max-frames", "4", "--name", "here"]
    out = tmp_path / "out.json"
    done = subprocess.run([*command, *arguments, "--json", str(out)], cwd=ROOT, capture_output=True, check=False)
    return done.returncode, json.loads(out.read_text())["here"]["backends"]


def test_the_cpu_differs_from_itself_in_nothing(tmp_path: Path) -> None:
    """A bundle beside itself is a stand-in for two backends: every stage is compared, and equal."""
    status, figures = run(tmp_path, "--backends", "cpu", "auto")
    assert status == 0
    for name in ("cpu", "auto"):
        for stage in ("features", "tokens", "logits"):
            assert figures[name]["difference"][stage]["max"] == 0
            assert figures[name]["difference"][stage]["largest_value"] > 0
        assert figures[name]["tokens_equal"] == "6 of 6"
        assert figures[name]["same_text"]
        for rate in ("encoder_ms_per_frame", "prefill_tokens_per_s", "decode_tokens_per_s"):
            assert figures[name][rate] > 0
        assert figures[name]["frames"] == 4


def test_a_backend_that_fails_leaves_its_reason(tmp_path: Path) -> None:
    status, figures = run(tmp_path, "--backends", "nonsense", "cpu")
    assert status == 1
    assert figures["nonsense"]["error"].startswith("ConfigError: backend must be one of auto, cpu")
    assert figures["cpu"]["difference"]["logits"]["max"] == 0
