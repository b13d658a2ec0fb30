"""The decoder on a GPU, with a stand-in for the driver and memory of the host in the GPU's place."""

from __future__ import annotations

import gc
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from fake_driver import CapturingDevice, FakeDriver
from gpu_bundles import gpu_bundle
from kernel_decoders import Pair, bundle_of, graph_decoder, ids_of, table_of

from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.bundle.bundle import Bundle
from vl3edge.runtime.bundle.kernel_set import read_kernel_set
from vl3edge.runtime.errors import BackendError, BundleError
from vl3edge.runtime.kernels import cuda_launcher
from vl3edge.runtime.kernels.select import KernelDecoders


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Any]]:
    return gpu_bundle(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def driver(exported: tuple[Bundle, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    bundle, functions = exported
    kernels = {spec.name: spec for spec in read_kernel_set(bundle).manifest.kernels}
    fake = FakeDriver(CapturingDevice(), kernels, functions, "cubin-8.9")
    monkeypatch.setattr(cuda_launcher, "_import_driver", lambda: fake)
    return fake


def decoders_of(exported: tuple[Bundle, dict[str, Any]], driver: FakeDriver) -> KernelDecoders:
    return KernelDecoders(Backend("rtx", (), "", device=driver.device), exported[0])


def pair_of(exported: tuple[Bundle, dict[str, Any]], decoders: KernelDecoders) -> Pair:
    folder, text = exported[0].folder, exported[0].manifest.text
    return Pair(graph_decoder(folder, text), decoders.make(), table_of(folder, text))


def test_answers_on_a_gpu_are_those_of_onnx_runtime(
    exported: tuple[Bundle, dict[str, Any]], driver: FakeDriver
) -> None:
    text = exported[0].manifest.text
    decoders = decoders_of(exported, driver)
    assert decoders.info["decoder"] == "kernels on Fake GPU, machine code for 8.9"
    pair = pair_of(exported, decoders)
    pair.prefill(ids_of(text, 5), logits=False)
    pair.prefill(ids_of(text, 3, 1))
    pair.advance(ids_of(text, 1, 2))
    pair.step(ids_of(text, 1, 3))
    pair.tell(lambda decoder: decoder.discard(2, 3))
    pair.tell(lambda decoder: decoder.resize(5, 32))  # other buffers, and other graphs
    pair.prefill(ids_of(text, 2, 4), row=3)
    for row in (1, 2, 4):
        pair.prefill(ids_of(text, 1, row), row)
    pair.advance(ids_of(text, 5, 5))
    pair.advance(ids_of(text, 2, 6))
    assert driver.device.pending == 0


def test_a_step_is_a_graph_and_moves_a_few_bytes(exported: tuple[Bundle, dict[str, Any]], driver: FakeDriver) -> None:
    bundle, device = exported[0], driver.device
    text = bundle.manifest.text
    decoder = decoders_of(exported, driver).make()
    table = table_of(bundle.folder, text)
    decoder.prefill(table.rows(ids_of(text, 4)))
    decoder.advance(np.array([decoder.token]), table)
    graphs = [handle for handle in driver.alive if handle.kind == "executable"]
    driver.launches.clear()
    device.uploaded.clear()
    device.downloaded.clear()
    for _ in range(2):
        decoder.advance(np.array([decoder.token]), table)
    assert [handle for handle in driver.alive if handle.kind == "executable"] == graphs
    layer = {"product": 3, "gated_product": 1, "attend": 1, "combine": 1}
    step = Counter({name: count * text.num_layers for name, count in layer.items()})
    step.update(["product", "embed", "best_of_block", "choose"])
    assert Counter(driver.launches) == step + step
    assert device.uploaded == []  # token and length are there
    assert device.downloaded == [8, 8]  # the tokens
    for _ in range(2):
        decoder.advance(ids_of(text, 1), table)
    assert device.uploaded == [8, 4] * 2


def test_everything_is_given_back(exported: tuple[Bundle, dict[str, Any]], driver: FakeDriver) -> None:
    text = exported[0].manifest.text
    decoders = decoders_of(exported, driver)
    one, other = (decoders.make() for _ in range(2))
    for decoder in (one, other):
        decoder.prefill(table_of(exported[0].folder, text).rows(ids_of(text, 1)))
        decoder.advance(ids_of(text, 1), table_of(exported[0].folder, text))
    before = len(driver.device.memory)
    del one, decoder
    gc.collect()
    assert len(driver.device.memory) < before
    assert Counter(handle.kind for handle in driver.alive)["executable"] == 1
    del other, decoders
    gc.collect()
    assert (driver.device.memory, driver.device.pins, driver.alive) == ({}, {}, [])


def test_another_thread_has_the_context_too(exported: tuple[Bundle, dict[str, Any]], driver: FakeDriver) -> None:
    bundle = exported[0]
    text = bundle.manifest.text
    decoder = decoders_of(exported, driver).make()
    decoder.prefill(table_of(bundle.folder, text).rows(ids_of(text, 1)))
    failures: list[BaseException] = []

    def step() -> None:
        try:
            decoder.advance(ids_of(text, 1), table_of(bundle.folder, text))
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert (failures, decoder.length) == ([], 2)


@pytest.mark.parametrize(
    "call", ["cuModuleLoadData", "cuLaunchKernel", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch"]
)
def test_an_error_of_the_driver_is_one_line(
    exported: tuple[Bundle, dict[str, Any]], driver: FakeDriver, call: str
) -> None:
    """And the decoder goes on when it has passed."""
    bundle = exported[0]
    text = bundle.manifest.text
    table = table_of(bundle.folder, text)
    decoders = decoders_of(exported, driver)
    decoder = decoders.make()
    driver.failing = call

    def answer() -> None:
        decoder.rewind(0)
        decoder.prefill(table.rows(ids_of(text, 1)))
        decoder.advance(ids_of(text, 1), table)

    with pytest.raises(BackendError) as e:
        answer()
    assert str(e.value) == f"CUDA: cuda error launch failed (CUDA_ERROR_LAUNCH_FAILED) from {call}"
    driver.failing = ""
    answer()
    assert decoder.length == 2
    assert not [handle for handle in driver.alive if handle.kind == "graph"]


def test_a_gpu_without_machine_code_takes_ptx_and_an_old_one_nothing(
    exported: tuple[Bundle, dict[str, Any]], driver: FakeDriver
) -> None:
    manifest = read_kernel_set(exported[0]).manifest
    assert [manifest.archive_for(gpu) for gpu in ((8, 9), (8, 0), (8, 7), (12, 1))] == ["cubin-8.9", *["ptx-8.0"] * 3]
    driver.device.capability, driver.form = (8, 0), "ptx-8.0"  # type: ignore[misc]
    decoder = decoders_of(exported, driver).make()
    decoder.prefill(np.ones((1, exported[0].manifest.text.hidden_size), np.float32))
    assert driver.launches
    driver.device.capability = (7, 5)  # type: ignore[misc]
    with pytest.raises(BackendError, match=r"compute capability 8.0 and later, this GPU has 7.5: use --decoder onnx"):
        decoders_of(exported, driver)


def test_without_cuda_python_the_error_says_what_to_install(exported: tuple[Bundle, dict[str, Any]]) -> None:
    with pytest.raises(BackendError, match="pip install cuda-python"):
        KernelDecoders(Backend("rtx", (), "", device=CapturingDevice()), exported[0])


DAMAGED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a tensor in a foreign file": (lambda w: w["norm"].update(file="/etc/passwd"), "not one of the bundle's files"),
    "a tensor beyond the end": (lambda w: w["cos"].update(offset=1 << 40), "lies beyond the end"),
    "a tensor before the beginning": (lambda w: w["cos"].update(offset=-1), "lies beyond the end"),
    "a layer less": (lambda w: w["layers"].pop(), "it has 0 layers, the decoder 1"),
    "another width": (lambda w: w["head"].update(outputs=7), "head is not of 320 outputs"),
    "codes of another size": (lambda w: w["layers"][0]["up"].update(bits=8), "elements, not"),
    "a group of nothing": (lambda w: w["layers"][0]["up"].update(group=0), "a group of 0 does not divide"),
    "a norm of another type": (lambda w: w["norm"].update(dtype="float16"), "norm is float16"),
    "a norm without a shape": (lambda w: w["norm"].update(shape=[]), r"norm has the shape \[\], not"),
    "codes of another type": (
        lambda w: w["head"]["tensors"]["codes"].update(dtype="int32"),
        "head: its codes are int32",
    ),
    "another version": (lambda w: w.update(format_version=2), "not a vl3edge-kernel-weights of version 1"),
    "no number": (lambda w: w["norm"].update(offset="0"), "offset is '0', not int"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_list_of_weights_is_refused(
    exported: tuple[Bundle, dict[str, Any]], tmp_path: Path, name: str
) -> None:
    bundle = exported[0]
    weights = json.loads((bundle.folder / "kernels" / "weights.json").read_text(encoding="utf-8"))
    change, message = DAMAGED[name]
    change(weights)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "weights.json").write_text(json.dumps(weights), encoding="utf-8")
    (tmp_path / "kernels" / "kernels.json").write_bytes((bundle.folder / "kernels" / "kernels.json").read_bytes())
    with pytest.raises(BundleError, match=message) as e:
        read_kernel_set(replace(bundle, folder=tmp_path))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["kernels/weights.json", "kernels/cubin-8.9.zip"])
def test_what_the_bundle_does_not_vouch_for_is_not_read(exported: tuple[Bundle, dict[str, Any]], name: str) -> None:
    bundle = exported[0]
    files = {other: entry for other, entry in bundle.manifest.files.items() if other != name}
    with pytest.raises(BundleError, match=f"{name} is not one of the files of"):
        read_kernel_set(replace(bundle, manifest=replace(bundle.manifest, files=files)))


def test_a_bundle_without_kernels_says_how_to_get_them(exported: tuple[Bundle, dict[str, Any]]) -> None:
    bundle = bundle_of(exported[0].folder, exported[0].manifest.text)
    with pytest.raises(BundleError, match=r"has no kernels: export it with --target cuda, rtx or jetson"):
        read_kernel_set(bundle)
