"""How many tokens of a prompt the kernels take at once: what the memory of the GPU has room for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from fake_driver import CapturingDevice, FakeDriver
from gpu_bundles import gpu_bundle
from kernel_decoders import Pair, graph_decoder, ids_of, kernel_decoders, table_of

from vl3edge.runtime.backends.buffers import DeviceMemory
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, read_manifest
from vl3edge.runtime.bundle.kernel_set import read_kernel_set
from vl3edge.runtime.bundle.specs import TextSpec
from vl3edge.runtime.decode.prefill_chunk import PREFILL_CHUNK
from vl3edge.runtime.kernels import cuda_launcher
from vl3edge.runtime.kernels.scratch import Vectors
from vl3edge.runtime.kernels.select import KernelDecoders

DEMO = read_manifest(DEMO_BUNDLE).text
RELEASED = replace(DEMO, hidden_size=1536, intermediate_size=8960, num_heads=12, num_kv_heads=2, head_dim=128)


class Sized(CapturingDevice):
    """A device that says it has so much free memory."""

    left = 1 << 30

    def free_bytes(self) -> int:
        return self.left


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Any]]:
    return gpu_bundle(tmp_path_factory.mktemp("chunks"), max_position_embeddings=8192)


def decoders_on(
    device: CapturingDevice, exported: tuple[Bundle, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> KernelDecoders:
    kernels = {spec.name: spec for spec in read_kernel_set(exported[0]).manifest.kernels}
    driver = FakeDriver(device, kernels, exported[1], "cubin-8.9")
    monkeypatch.setattr(cuda_launcher, "_import_driver", lambda: driver)
    return KernelDecoders(Backend("rtx", (), "", device=device), exported[0])


@pytest.mark.parametrize(("free", "chunk"), [(1 << 36, 4096), (0, 2048), ("8 × 4096", 4096), ("less", 2048)], ids=str)
def test_the_chunk_follows_the_memory(
    exported: tuple[Bundle, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, free: Any, chunk: int
) -> None:
    exact = 8 * 4096 * Vectors.bytes_of(exported[0].manifest.text)
    device = Sized()
    device.left = {"8 × 4096": exact, "less": exact - 1}.get(free, free)
    decoders = decoders_on(device, exported, monkeypatch)
    assert decoders.prefill_chunk == decoders.make().prefill_chunk == chunk


@pytest.mark.parametrize("splits", [0, 32])
@pytest.mark.parametrize("text", [DEMO, RELEASED], ids=["demo", "2b"])
def test_a_tokens_memory_is_what_is_allocated(text: TextSpec, splits: int) -> None:
    device = CapturingDevice()
    vectors = Vectors(DeviceMemory(device, "cpu"), text, 64, splits)
    allocated = sum(array.nbytes for array in (*device.memory.values(), *device.pins.values()))
    once = vectors.last.shape[1] * 4 + (0 if splits else 2)  # of a prompt; empty buffers have a byte
    assert allocated - once == 64 * Vectors.bytes_of(text, splits)


def test_a_row_takes_no_more_than_is_reckoned(
    exported: tuple[Bundle, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside its cache; what prompts take is there since the kernels were loaded."""
    device = CapturingDevice()
    decoders = decoders_on(device, exported, monkeypatch)
    decoder = decoders.make()

    def taken(rows: int) -> int:
        decoder.resize(rows, 256)
        arrays = (*device.memory.values(), *device.pins.values())
        return sum(array.nbytes for array in arrays) - decoder.cache.num_bytes

    few = taken(2)
    assert 0 < taken(12) - few <= 1.05 * decoders.run_bytes(10)
    assert decoders.run_bytes(10) == 10 * decoders.run_bytes(1)


def test_a_context_shorter_than_a_chunk_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = gpu_bundle(tmp_path, max_position_embeddings=640)
    assert decoders_on(CapturingDevice(), exported, monkeypatch).prefill_chunk == 640


def test_on_a_cpu_it_is_that_of_the_cpu(exported: tuple[Bundle, dict[str, Any]]) -> None:
    folder, text = exported[0].folder, exported[0].manifest.text
    assert kernel_decoders(folder, text).prefill_chunk == PREFILL_CHUNK


def test_chunks_of_other_sizes_give_the_same_tokens(
    exported: tuple[Bundle, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call or three: logits differ by rounding, the tokens are ONNX Runtime's."""
    bundle = exported[0]
    text, table = bundle.manifest.text, table_of(bundle.folder, bundle.manifest.text)
    ids, said = ids_of(text, 700), []
    for chunk in (4096, 300):
        decoders = decoders_on(Sized(), exported, monkeypatch)
        decoders._prompts = decoders._network.vectors(chunk)
        pair = Pair(graph_decoder(bundle.folder, text), decoders.make(), table)
        pair.prefill(ids)
        pair.advance(ids[:1])
        said.append(pair.both[1].logits.copy())
    assert np.abs(said[0] - said[1]).max() <= 1e-2 * np.abs(said[0]).max()
