"""`vl3edge bench`: every stage is there, floors are right for what is known, bad plans fail in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vl3edge.runtime import host as resident
from vl3edge.runtime import roofline as workload
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bench import Bench, BenchPlan, StageTime
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.errors import ConfigError

CLIP = Path(__file__).parents[1] / "fixtures" / "demo_clip.mp4"
QUICK = ["--frames", "2", "--context", "40", "--new-tokens", "3", "--repeats", "1"]


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known speed: 10 GB/s and 1 TFLOP/s, so that floors can be checked by hand."""
    monkeypatch.setattr("vl3edge.runtime.bench.read_bandwidth", lambda _: 10e9)
    monkeypatch.setattr("vl3edge.runtime.bench.multiply_rate", lambda: 1e12)


def test_all_stages_with_their_floors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert main(["bench", "--media", str(CLIP), "--json", str(file), *QUICK]) == 0
    out = capsys.readouterr().out
    report = json.loads(file.read_text(encoding="utf-8"))
    stages = {stage["name"].split(",")[0]: stage for stage in report["stages"]}
    assert list(stages) == ["read", "vision", "projector", "prefill", "decode"]
    assert all(name in out for name in stages)
    assert [stages[name]["count"] for name in ("read", "vision", "prefill", "decode")] == [9, 2, 40, 3]
    assert all(stage["rate"] == pytest.approx(stage["count"] / stage["seconds"]) for stage in stages.values())

    bundle = open_bundle(DEMO_BUNDLE)
    expected = 3 * workload.step_bytes(bundle, 40 + 1) / 10e9
    assert stages["decode"]["bytes_s"] == pytest.approx(expected)
    assert stages["prefill"]["arithmetic_s"] == pytest.approx(workload.prefill_flops(bundle.manifest, 40) / 1e12)
    assert stages["read"]["share_of_limit"] is None


@pytest.mark.parametrize(("flops", "told"), [(1e12, False), (1e6, True)])
def test_shares_above_one_are_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flops: float, told: bool
) -> None:
    """Products in 8 bits, or a better library's, can be faster than the floor."""
    monkeypatch.setattr("vl3edge.runtime.bench.multiply_rate", lambda: flops)
    assert main(["bench", *QUICK]) == 0
    assert ("over 100%: the bound is estimated with" in capsys.readouterr().out) == told


def test_json_on_stdout_is_all_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", "-", *QUICK]) == 0
    assert json.loads(capsys.readouterr().out)["backend"] == "cpu"


def test_bytes_of_a_step_are_the_weights_it_reads() -> None:
    """Counted from the other end: parameters at their widths, without rows of tables that a step does not touch."""
    bundle = open_bundle(DEMO_BUNDLE)
    text = bundle.manifest.text
    heads = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    products = text.num_layers * (
        text.hidden_size * heads
        + text.num_heads * text.head_dim * text.hidden_size
        + 3 * text.hidden_size * text.intermediate_size
    )
    codes = products / 2 + text.vocab_size * text.hidden_size  # 4 bits, and 8 bits for the head
    counted = workload.step_bytes(bundle, 0)
    assert codes < counted < 1.35 * codes, "scales, biases and norms are the rest"
    assert (
        workload.step_bytes(bundle, 100) - counted == 100 * 2 * text.num_layers * text.num_kv_heads * text.head_dim * 4
    )


def test_vision_flops_count_weights_and_attention() -> None:
    """Two operations per weight and patch; scores and their products with the values on top."""
    manifest = open_bundle(DEMO_BUNDLE).manifest
    small = workload.vision_flops(manifest, 64)
    vision = manifest.vision
    weights = vision.num_layers * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size)
    weights += 3 * vision.patch_size**2 * vision.hidden_size
    attention = vision.num_layers * 4 * 64**2 * vision.hidden_size
    assert small == 2 * 64 * weights + attention


def test_share_of_limit_takes_the_larger_floor() -> None:
    stage = StageTime("decode", 10, "tokens", seconds=2.0, arithmetic_s=0.5, bytes_s=1.0)
    assert (stage.share_of_limit, stage.rate) == (0.5, 5.0)
    assert StageTime("read", 10, "frames", 2.0).share_of_limit is None


def test_no_floors_for_a_backend_that_is_not_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(open_bundle(DEMO_BUNDLE), select_backend("cpu"), BenchPlan(1, (56, 56), 8, 1, 1))
    object.__setattr__(bench.backend, "name", "cuda")
    bench.run()
    assert (bench.bandwidth, bench.flops) == (None, None)
    assert {stage.share_of_limit for stage in bench.stages} == {None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "640"], "--size must be WIDTHxHEIGHT"),
        (["--frames", "0"], "at least 1"),
        (["--context", "100000"], "exceed the model's context"),
        (["--media", "nowhere.mp4"], "there is no such file"),
        (["--json", "nowhere/bench.json"], "there is no such folder"),
    ],
)
def test_bad_plans_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    with pytest.raises(ConfigError):
        BenchPlan(frames=0)


def test_resident_memory_sees_an_allocation() -> None:
    """In a process of its own: in one that has run other tests, what they leave is freed at any time."""
    if resident.peak_bytes() is None:
        pytest.skip("this system does not say")
    code = (
        "import numpy as np; from vl3edge.runtime.host import current_bytes, peak_bytes, reset_peak; reset_peak(); "
        "before = peak_bytes(); block = np.ones(64 << 20, np.uint8); print(before, peak_bytes(), current_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, current = map(int, done.stdout.split())
    assert after - before > 0.9 * (64 << 20)
    assert current <= after
