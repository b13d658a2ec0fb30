"""What `vl3edge tune` left in a bundle: what info says of it, and what slimming does with it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.manifest import SlimTarget
from vl3edge.runtime.bundle.slim import slim
from vl3edge.runtime.bundle.tuning import TunedFor, Tuning, tuning_lines, tuning_path, write_tuning

HERE = TunedFor("NVIDIA Orin", "8.7", 12060, "abc")
OTHER = replace(HERE, device="NVIDIA H200", compute_capability="9.0")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle"))
    (folder / "kernels").mkdir()
    return folder


def test_each_choice_says_whether_this_device_uses_it(copy: Path) -> None:
    advice = "not for this device; run `vl3edge tune`"
    assert tuning_lines(copy, "abc", HERE) == [advice]
    assert tuning_lines(copy, "abc", None) == []
    write_tuning(copy, Tuning(OTHER, ()))
    elsewhere = "for NVIDIA H200 9.0, not used: it is for NVIDIA H200 9.0"
    assert tuning_lines(copy, "abc", HERE) == [elsewhere, advice]
    write_tuning(copy, Tuning(HERE, ()))
    assert tuning_lines(copy, "abc", HERE) == [elsewhere, "for NVIDIA Orin 8.7, used on this device"]
    assert tuning_lines(copy, "abc", None) == ["for NVIDIA H200 9.0", "for NVIDIA Orin 8.7"]
    assert tuning_lines(copy, "abd", None) == [
        "for NVIDIA H200 9.0, not used: it is for other kernels",
        "for NVIDIA Orin 8.7, not used: it is for other kernels",
    ]
    newer = replace(HERE, driver=13000)
    assert tuning_lines(copy, "abc", newer)[1:] == [
        "for NVIDIA Orin 8.7, not used: it is for the driver of CUDA 12",
        advice,
    ]
    tuning_path(copy, OTHER.device).write_text("{", encoding="utf-8")
    damaged, used = tuning_lines(copy, "abc", HERE)
    assert "tuned-nvidia-h200.json is damaged" in damaged
    assert used.endswith("used on this device")


@pytest.mark.parametrize(("target", "kept"), [("cuda", True), ("cpu", False)])
def test_slimming_for_a_gpu_keeps_choices_and_for_a_cpu_deletes_them(
    copy: Path, target: SlimTarget, kept: bool
) -> None:
    paths = [write_tuning(copy, Tuning(tuned_for, ())) for tuned_for in (HERE, OTHER)]
    size = sum(path.stat().st_size for path in paths)
    report = slim(copy, target)
    assert [path.exists() for path in paths] == [kept] * 2
    assert (copy / "kernels").exists() == kept
    names = {path.relative_to(copy).as_posix() for path in paths}
    assert names.isdisjoint(report.dropped) if kept else names <= set(report.dropped)
    assert report.kept_bytes == open_bundle(copy).num_bytes + (size if kept else 0)
