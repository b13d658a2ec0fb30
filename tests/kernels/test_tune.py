"""`vl3edge tune` with a stand-in for the driver, whose clock says which variant is the fastest."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from fake_driver import CapturingDevice, FakeDriver
from gpu_bundles import gpu_bundle
from kernel_decoders import Pair, graph_decoder, ids_of, table_of

from vl3edge.export.graphs.decoder import text_spec
from vl3edge.export.kernels.shape import read_shape, uniform_shape
from vl3edge.export.kernels.variants import variants
from vl3edge.models.synthetic.random import preset
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, open_bundle
from vl3edge.runtime.bundle.kernel_set import KernelSpec, read_kernel_set
from vl3edge.runtime.bundle.kernel_weights import Matrix
from vl3edge.runtime.bundle.tuning import TunedFor, TunedKernel, Tuning, read_tuning, tuning_path, write_tuning
from vl3edge.runtime.cli import tune as cli_tune
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.errors import BackendError, BackendWarning
from vl3edge.runtime.kernels import cuda_launcher
from vl3edge.runtime.kernels.cuda_launcher import CudaLauncher
from vl3edge.runtime.kernels.select import KernelDecoders
from vl3edge.runtime.kernels.tiles import Tiles, widest
from vl3edge.runtime.kernels.tune import Tuner

Exported = tuple[Bundle, dict[str, Any]]


class ClockedDriver(FakeDriver):
    """Computes nothing but time. cost: microseconds of a launch."""

    cost: Callable[[KernelSpec], float] = staticmethod(lambda kernel: 1.0)
    now = 0.0

    def _run(self, kernel: KernelSpec, grid: list[int], values: list[int]) -> None:
        self.now += self.cost(kernel) * 1e-6
        self.launches.append(kernel.name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return gpu_bundle(tmp_path_factory.mktemp("tuned"), several=True, num_layers=2)


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Exported:
    """A copy to write into."""
    shutil.copytree(exported[0].folder, tmp_path / "bundle")
    return replace(exported[0], folder=tmp_path / "bundle"), exported[1]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeDriver]:
    """Puts a driver of a class in the place of the real one."""

    def make(exported: Exported, kind: type[FakeDriver] = ClockedDriver) -> FakeDriver:
        kernels = {spec.name: spec for spec in read_kernel_set(exported[0]).manifest.kernels}
        driver = kind(CapturingDevice(), kernels, exported[1], "cubin-8.9")
        monkeypatch.setattr(cuda_launcher, "_import_driver", lambda: driver)
        return driver

    return make


def tuned(exported: Exported, driver: FakeDriver) -> Tuning:
    assert isinstance(driver, ClockedDriver)
    kernels = read_kernel_set(exported[0])
    return Tuner(kernels, CudaLauncher(driver.device, kernels), lambda: driver.now).tune()


def other(kernel: KernelSpec) -> bool:
    return kernel.name.endswith("-other")


@pytest.mark.parametrize("faster", [other, lambda kernel: not other(kernel)], ids=["other", "first"])
def test_the_clock_decides(exported: Exported, put: Any, faster: Callable[[KernelSpec], bool]) -> None:
    driver = put(exported)
    driver.cost = lambda kernel: 3.0 if faster(kernel) else 5.0
    choices = tuned(exported, driver).choices
    specs = driver._kernels
    assert all(faster(specs[choice.kernel]) for choice in choices)
    assert {specs[choice.kernel].function for choice in choices} == {
        *("product", "gated_product", "attend", "prompt_product", "attend_prompt")
    }
    for choice in choices:
        times = {"attend": 2 * 3.0}.get(specs[choice.kernel].function, 3.0)  # with what combines its parts
        assert choice.variants == 2
        assert choice.microseconds == pytest.approx(times / (2 if times > 3 else 1))
        assert choice.default_microseconds in (choice.microseconds, pytest.approx(choice.microseconds / 3 * 5))
    keys = [(choice.kernel, choice.up_to) for choice in choices]
    assert len(set(keys)) == len(keys)
    assert {choice.up_to for choice in choices if specs[choice.kernel].function == "product"} == {3}
    assert len({choice.up_to for choice in choices if specs[choice.kernel].function == "prompt_product"}) >= 3


def test_the_fastest_may_differ_with_the_number_of_tokens(copied: Exported, put: Any) -> None:
    """And by product; a variant that is hopeless is timed less often."""
    driver = put(copied)
    driver.cost = lambda kernel: 90.0 if other(kernel) == (kernel.constants.get("K") == 128) else 4.0
    choices = tuned(copied, driver).choices
    specs = driver._kernels
    for choice in choices:
        assert other(specs[choice.kernel]) == (specs[choice.kernel].constants.get("K") != 128)
    slow = [name for name in driver.launches if driver.cost(specs[name]) == 90.0]
    assert len(slow) < len(driver.launches) / 2


def test_a_decoder_takes_what_was_chosen_and_says_the_same_tokens(copied: Exported, put: Any) -> None:
    bundle = copied[0]
    driver = put(copied)
    driver.cost = lambda kernel: 3.0 if other(kernel) else 5.0
    write_tuning(bundle.folder, tuned(copied, driver))
    driver = put(copied, Named)
    decoders = KernelDecoders(Backend("rtx", (), "", device=driver.device), bundle)
    assert decoders.info["decoder"] == "kernels on Fake GPU, machine code for 8.9, tuned for it"
    folder, text = bundle.folder, bundle.manifest.text
    pair = Pair(graph_decoder(folder, text), decoders.make(), table_of(folder, text))
    pair.prefill(ids_of(text, 5))
    pair.advance(ids_of(text, 1, 1))
    pair.tell(lambda decoder: decoder.resize(5, 32))
    for row in range(1, 5):
        pair.prefill(ids_of(text, row, row), row)
    pair.advance(ids_of(text, 5, 2))
    chosen = {name for name in driver.launches if f"{name.removesuffix('-other')}-other" in driver._kernels}
    assert chosen
    assert all(name.endswith("-other") for name in chosen)


class Named(FakeDriver):
    """Notes kernels by name."""

    def _run(self, kernel: KernelSpec, grid: list[int], values: list[int]) -> None:
        super()._run(kernel, grid, values)
        self.launches[-1] = kernel.name


def test_a_variant_that_this_gpu_cannot_run_is_passed_over(exported: Exported, put: Any) -> None:
    class Small(ClockedDriver):
        def cuModuleGetFunction(self, module: Any, name: bytes) -> tuple[Any, ...]:
            self.failing = "cuModuleGetFunction" if module.content.endswith("-other") else ""
            return super().cuModuleGetFunction(module, name)

    driver = put(exported, Small)
    driver.cost = lambda kernel: 1.0 if other(kernel) else 5.0
    choices = [c for c in tuned(exported, driver).choices if driver._kernels[c.kernel].function != "attend"]
    assert {choice.variants for choice in choices} == {1}
    assert not any(other(driver._kernels[choice.kernel]) for choice in choices)


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "other kernels": (lambda t: t["tuned_for"].update(kernels="0" * 64), "is for other kernels"),
    "another driver": (lambda t: t["tuned_for"].update(driver=11000), "is for the driver of CUDA 11"),
    "another card of the name": (lambda t: t["tuned_for"].update(compute_capability="9.0"), "is for Fake GPU 9.0"),
    "another version": (lambda t: t.update(format_version=2), "not a vl3edge-tuning of version 1"),
    "a number for a name": (lambda t: t["choices"].append({"kernel": 1}), "cannot be used"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_choice_that_does_not_fit_is_one_line_and_ignored(copied: Exported, put: Any, name: str) -> None:
    bundle = copied[0]
    driver = put(copied)
    path = write_tuning(bundle.folder, tuned(copied, driver))
    change, message = CHANGES[name]
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.warns(BackendWarning, match=message) as caught:
        decoders = KernelDecoders(Backend("rtx", (), "", device=driver.device), bundle)
    (warning,) = caught
    assert str(warning.message).startswith("the kernels run untuned")
    assert "run `vl3edge tune` again" in str(warning.message)
    assert "\n" not in str(warning.message)
    assert not decoders.info["decoder"].endswith("tuned for it")


def test_a_damaged_file_and_one_of_another_card(tmp_path: Path) -> None:
    here = TunedFor("NVIDIA GeForce RTX 4090", "8.9", 13000, "a" * 64)
    tuning = Tuning(here, (TunedKernel("product-1", 3, 4.5, 5.0, 4),))
    (tmp_path / "kernels").mkdir()
    assert write_tuning(tmp_path, tuning).name == "tuned-nvidia-geforce-rtx-4090.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_tuning(tmp_path, here) == tuning
        assert read_tuning(tmp_path, replace(here, device="Orin")) is None  # never tuned: nothing to say
    tuning_path(tmp_path, here.device).write_text("{", encoding="utf-8")
    with pytest.warns(BackendWarning, match="is damaged"):
        assert read_tuning(tmp_path, here) is None


def test_a_choice_holds_up_to_its_tokens() -> None:
    kernels = [KernelSpec(name, "product", (), {}, {"C": c, "BN": 4}, 1) for name, c in (("a", 256), ("b", 64))]
    rule = widest(Matrix(outputs=8, inputs=2048, bits=4, group=128, tensors={}))  # rows of 256 words
    tiles = Tiles([TunedKernel("b", 16, 1, 1, 2), TunedKernel("a", 64, 1, 1, 2), TunedKernel("b", 512, 1, 1, 2)])
    assert [tiles.of(kernels, count, rule).name for count in (1, 16, 17, 64, 65, 512, 4096)] == list("bbaabbb")
    assert Tiles().of(kernels, 5, rule).name == "a"


def test_the_command(
    copied: Exported, put: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copied[0]
    driver = put(copied)
    driver.cost = lambda kernel: 3.0 if other(kernel) else 5.0
    monkeypatch.setattr(cli_tune, "open_device", lambda: driver.device)
    monkeypatch.setattr(cli_tune, "open_bundle", lambda folder, quick: replace(bundle, folder=folder))
    monkeypatch.setattr("vl3edge.runtime.kernels.tune.time.perf_counter", lambda: driver.now)
    assert main(["tune", str(bundle.folder), "--json", "-"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    path = tuning_path(bundle.folder, "Fake GPU")
    assert report.pop("file") == str(path)
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert {name: kept[name] for name in report} == report
    assert "tuning kernels on Fake GPU, machine code for 8.9" in said.err
    assert main(["tune", str(bundle.folder)]) == 0
    said = capsys.readouterr()
    assert f"kept in {path}" in said.out
    assert len(said.out.splitlines()) == len(report["choices"]) + 3
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        assert main(["tune", str(bundle.folder)]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "cannot be written" in said.err
    assert main(["tune", str(bundle.folder), "--json", str(bundle.folder / "no" / "x.json")]) == 2


def test_without_a_gpu_the_command_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> Any:
        raise BackendError("there is no NVIDIA driver on this machine; backend 'cpu' needs none.")

    monkeypatch.setattr(cli_tune, "open_device", none)
    assert main(["tune", str(DEMO_BUNDLE)]) == 1
    assert capsys.readouterr().err == (
        "vl3edge: error: there is no NVIDIA driver on this machine; backend 'cpu' needs none.\n"
    )
    monkeypatch.setattr(cli_tune, "open_device", CapturingDevice)
    assert main(["tune", str(DEMO_BUNDLE)]) == 1  # it is shipped without kernels
    said = capsys.readouterr().err
    assert "has no kernels: export it with --target cuda, rtx or jetson" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("model", ["demo", "2b", "7b"])
def test_every_product_is_exported_in_several_tiles(model: str) -> None:
    if model == "demo":
        shape = read_shape(DEMO_BUNDLE, open_bundle(DEMO_BUNDLE).manifest.text)
    else:
        text = preset(model).text
        shape = uniform_shape(text_spec(text), text.rms_norm_eps, bits=4, group=128, head_bits=8)
    tiles: dict[Any, set[Any]] = {}
    for kernel in variants(shape):
        tiles.setdefault(kernel.purpose, set()).add((kernel.constants, kernel.num_warps))
    products = {purpose: found for purpose, found in tiles.items() if purpose[0].endswith("product")}
    single = {(purpose[0], dict(purpose[1])["y_ptr"]) for purpose, found in products.items() if len(found) < 2}
    head_of_many = ("prompt_product", "*fp32")
    of_steps = {("product", "*fp32"), ("product", "*fp16"), ("gated_product", "*fp16")}
    assert single <= {head_of_many} | (of_steps if model == "demo" else set())  # whose rows are a word or two for all
    assert head_of_many in single
    few = [found for purpose, found in products.items() if purpose[0] == "few_product"]
    heights = {len({dict(constants)["BM"] for constants, _ in found}) for found in few}
    assert heights == (set() if model == "demo" else {3})  # it has groups of 32
    assert max(map(len, products.values())) <= 10
