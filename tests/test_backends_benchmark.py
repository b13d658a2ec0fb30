"""benchmarks/backends.py and gpu.py as far as they go without a GPU: on the CPU, in tiny sizes, and where they fail."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

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


def gpu_figures(tmp_path: Path, *arguments: str) -> tuple[int, dict, str]:
    command = [sys.executable, "benchmarks/gpu.py", "runtime/demo_bundle", "tests/fixtures/demo_clip.mp4"]
    command += ["--backend", "cpu", "--sizes", "tiny", "--repeat", "1", "--json", str(tmp_path / "gpu.json")]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, json.loads((tmp_path / "gpu.json").read_text()), done.stdout


def test_the_figures_of_a_gpu(tmp_path: Path) -> None:
    status, result, shown = gpu_figures(tmp_path, "--steps", "encoder", "prefill", "decode", "captions", "transformers")
    assert (status, result["failed"], result["device"]) == (0, {}, None)
    ours = {name for name, values in result["figures"].items() if "vl3edge" in values}
    both = {name for name, values in result["figures"].items() if "transformers, float16" in values}
    assert both == {f"encoder_{n}_patches_ms_per_frame" for n in (24, 64)} | {
        *(f"prefill_{n}_tokens_per_s" for n in (60, 200)),
        *(f"decode_{n}_at_60_tokens_per_s" for n in (1, 3)),
    }
    assert ours == both | {"caption_1_s", "caption_10_s", "caption_10_tokens_per_s"}
    assert all(value > 0 for values in result["figures"].values() for value in values.values())
    assert [line.split()[0] for line in shown.splitlines()] == list(result["figures"])


def test_a_step_that_fails_or_lasts_leaves_its_reason(tmp_path: Path) -> None:
    status, result, shown = gpu_figures(tmp_path, "--steps", "genai", "encoder", "--genai", "nowhere")
    assert status == 1
    assert list(result["failed"]) == ["genai"]
    assert "FAILED genai" in shown
    assert "encoder_24_patches_ms_per_frame" in result["figures"]
    status, result, _ = gpu_figures(tmp_path, "--steps", "encoder", "--seconds", "0")
    assert (status, result["failed"], result["figures"]) == (1, {"encoder": "no time was left"}, {})


def test_a_second_gpu_stands_beside_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu, markdown = (importlib.import_module(f"tables.{name}") for name in ("gpu", "markdown"))
    for number, name in enumerate(("NVIDIA A", "NVIDIA B"), 1):
        figures = {
            "decode_1_at_1000_tokens_per_s": {"vl3edge": 600 * number, "peer": 400},
            "caption_1_s": {"vl3edge": 2.5},
        }
        machine = {"cpu": "c", "cores": 2, "memory_gb": 3, "versions": {}}
        path = tmp_path / f"gpu_{name[-1].lower()}.json"
        path.write_text(json.dumps({"machine": machine, "device": name, "figures": figures, "failed": {}}))
    for module in (gpu, markdown):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    found = gpu.gpu_table()
    assert "| tokens written a second, context 1,000 | 600 | peer | 400 | 1.50× |" in found
    assert "| tokens written a second, context 1,000 | 1,200 | peer | 400 | 3.00× |" in found
    assert "| seconds to caption 1 of a folder | 2.5 | – | – | – |" in found
    assert found.index("NVIDIA A: ") < found.index("NVIDIA B: ")
