"""What docs/gpu.md says of the kernels: launches are those of the runtime, bytes those of a bundle, nothing spills."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from decoder_kernels import RESULTS, SIZES, counted, released
from decoder_limits import DEVICES, PROMPT, Counts
from fake_driver import CapturingDevice, FakeDriver
from gpu_bundles import gpu_bundle
from kernel_decoders import table_of
from tables.kernels import least_s, total_s

from vl3edge.export.kernels.shape import read_shape
from vl3edge.export.kernels.variants import TILES, variants
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.bundle.kernel_set import KernelSpec, read_kernel_set
from vl3edge.runtime.kernels import cuda_launcher
from vl3edge.runtime.kernels.select import KernelDecoders

FUNCTIONS = {
    "embedding": "embed",
    "qkv": "product",
    "attention": "attend",
    "its parts combined": "combine",
    "output": "product",
    "gate and up": "gated_product",
    "down": "product",
    "head": "product",
    "best of a block": "best_of_block",
    "choice": "choose",
}
OF_PROMPTS = {
    "norms": "normalize",
    "rotation, cache written": "rotate_and_cache",
    "attention": "attend_prompt",
    **dict.fromkeys(("qkv", "output", "gate", "up", "down"), "prompt_product"),
}
RESULT: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))


class Idle(FakeDriver):
    """Runs nothing."""

    def _run(self, kernel: KernelSpec, grid: list[int], values: list[int]) -> None:
        self.launches.append(kernel.function)


def test_launches_are_those_of_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, functions = gpu_bundle(tmp_path, num_layers=3)
    kernels = read_kernel_set(bundle)
    driver = Idle(CapturingDevice(), {k.name: k for k in kernels.manifest.kernels}, functions, "cubin-8.9")
    monkeypatch.setattr(cuda_launcher, "_import_driver", lambda: driver)
    decoder = KernelDecoders(Backend("rtx", (), "", device=driver.device), bundle).make()
    counts = Counts(read_shape(bundle.folder, bundle.manifest.text))
    table = table_of(bundle.folder, bundle.manifest.text)
    for run, names, launches in (
        (lambda: decoder.prefill(table.rows(np.arange(5)), logits=False), OF_PROMPTS, counts.prompt(5)),
        (lambda: decoder.step(table.rows(np.arange(1))), FUNCTIONS, counts.step()),
    ):
        driver.launches.clear()
        run()
        expected: Counter[str] = Counter()
        for launch in launches:
            expected[names[launch["name"]]] += launch["count"]
        assert Counter(driver.launches) == expected
    # Codes and scales are those on the device, but for what a step reads one row of, norms, biases and tables.
    weights = decoder._network.weights  # type: ignore[attr-defined]
    products = [each for each in counts.step() if each["name"] in ("qkv", "output", "gate and up", "down", "head")]
    read = sum(each["count"] * each["bytes"] for each in products)
    assert 0.8 < read / (weights.num_bytes - 2 * kernels.weights.cos.num_bytes) < 1.2


@pytest.mark.parametrize("size", SIZES)
def test_the_results_are_of_these_kernels_and_none_spills(size: str) -> None:
    found = RESULT[size]
    assert {name: found[name] for name in counted(released(size))} == counted(released(size))
    assert (RESULT["devices"], RESULT["prompt_tokens"]) == (DEVICES, PROMPT)
    known = Counter(
        (kernel.function.__name__, tuple(c for c in kernel.constants if c[0] in TILES), kernel.num_warps)
        for kernel in variants(released(size))
    )
    compiled = Counter((k["function"], tuple(k["tile"].items()), k["warps"]) for k in found["kernels"])
    assert compiled <= known
    # Left out, because they spill and others of their purpose do not.
    assert (known - compiled).total() <= known.total() // 10
    for kernel in found["kernels"]:
        machines = {name: facts for name, facts in kernel.items() if name.startswith("cubin-")}
        assert len(machines) == (1 if kernel["function"] in ("dequantize", "dense_product") else 4)
        assert all(0 < registers <= 255 and spilled == 0 for registers, spilled, _ in machines.values()), kernel


def test_the_least_time_is_the_larger_of_two() -> None:
    device = {"bandwidth": 100.0, "tensor": 1000.0, "vector": 10.0}
    launch = {"name": "x", "count": 3, "bytes": 200, "operations": 500, "tensor_cores": True}
    assert least_s(launch, device) == 2.0
    assert least_s(launch | {"tensor_cores": False}, device) == 50.0
    assert total_s([launch, launch | {"count": 1}], device) == 8.0
