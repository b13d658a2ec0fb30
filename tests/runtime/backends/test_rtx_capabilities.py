"""Which GPUs TensorRT for RTX is refused on, before a plan is read; its own report of 1.7.1 is the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest

from vl3edge.runtime.bundle.plans import PORTABLE, EngineSet, InstalledEngines, choose_engines
from vl3edge.runtime.errors import BackendError


def portable(*named: str) -> InstalledEngines:
    return InstalledEngines(Path("set"), EngineSet("rtx", "1.7.1", PORTABLE, named, 1 << 20, {}, {}, {}))


@pytest.mark.parametrize("capability", [(7, 0), (8, 7), (9, 0), (10, 0), (10, 3), (11, 0)])
@pytest.mark.parametrize("found", [[], [portable()], [portable("9.0", "8.7")]])
def test_gpus_without_kernels_are_sent_to_cuda(found: list[InstalledEngines], capability: tuple[int, int]) -> None:
    here = rf"{capability[0]}\.{capability[1]}"
    with pytest.raises(BackendError, match=rf"does not run on GPU, compute capability {here} .*use --backend cuda"):
        choose_engines(found, "rtx", "1.7.1", "GPU", capability)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (12, 0), (12, 1), (13, 0)])
def test_the_others_take_a_portable_plan(capability: tuple[int, int]) -> None:
    plan = portable()
    assert choose_engines([plan], "rtx", "1.7.1", "GPU", capability) is plan


def test_turing_takes_plans_that_name_it() -> None:
    plan = portable("7.5")
    assert choose_engines([portable(), plan], "rtx", "1.7.1", "GPU", (7, 5)) is plan
    with pytest.raises(BackendError, match=r"8\.0 and later, not 7\.5"):
        choose_engines([portable()], "rtx", "1.7.1", "GPU", (7, 5))


def test_tensorrt_proper_runs_on_all_of_them() -> None:
    plan = InstalledEngines(Path("set"), EngineSet("jetson", "11.4", "NVIDIA H100", (), 1 << 20, {}, {}, {}))
    assert choose_engines([plan], "jetson", "11.4", "NVIDIA H100", (9, 0)) is plan
