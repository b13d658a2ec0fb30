"""The decoder on the kernels says what ONNX Runtime's says: every way to store weights, rows, going back, moving up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from kernel_decoders import Pair, graph_decoder, ids_of, kernel_decoders, table_of, written
from random_decoders import Quantized

from vl3edge.export.kernels.interpreter import InterpreterLauncher
from vl3edge.export.kernels.shape import read_shape
from vl3edge.export.kernels.weights import decoder_weights
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.specs import TextSpec
from vl3edge.runtime.errors import BundleError
from vl3edge.runtime.kernels import several

# What is stored how, in sizes of a random model; the sizes of "tiny-128", where they are not changed.
CONFIGS: dict[str, tuple[Quantized | str, dict[str, Any]]] = {
    "int4 in groups of 32, tied head in 8 bits": (Quantized(), {}),
    "groups of 64, zero points, 4-bit head, 6 heads on 1": (
        Quantized(group=64, symmetric=False, head_bits=4),
        {"num_heads": 6, "num_kv_heads": 1},
    ),
    "groups of 128, untied, 14 heads on 2": (
        Quantized(group=128),
        {"num_heads": 14, "num_kv_heads": 2, "head_dim": 64, "tie_word_embeddings": False},
    ),
    "heads of 24 channels, widened": (Quantized(), {"head_dim": 24}),
    "mixed bits, whole head": (Quantized(bits=(4, 8, 4), head_bits=None), {}),
    "activation order": (Quantized(permuted=True), {}),
    "fp16": ("fp16", {}),
    "fp32, untied": ("fp32", {"tie_word_embeddings": False}),
}


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TextSpec]:
    kind, sizes = CONFIGS[request.param]
    return written(tmp_path_factory.mktemp("decoder"), kind, {"num_layers": 2} | sizes)


@pytest.mark.parametrize("dense", [False, True])
def test_large_groups_have_kernels_for_a_few_rows_and_for_long_prompts(
    dense: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InterpreterLauncher, "prefers_dense", dense)
    monkeypatch.setattr(several, "_LONG", 6)
    ran: list[str] = []
    launch = InterpreterLauncher.launch
    monkeypatch.setattr(
        InterpreterLauncher,
        "launch",
        lambda self, kernel, *rest: (ran.append(kernel.function), launch(self, kernel, *rest)),
    )
    folder, text = written(tmp_path, Quantized(group=128, symmetric=False, permuted=True), {"num_layers": 1})
    pair = pair_of(folder, text)
    pair.tell(lambda decoder: decoder.resize(5, 64))
    for row in range(5):
        pair.prefill(ids_of(text, row + 4, row), row)
    assert ("dense_product" in ran, "dequantize" in ran) == (dense, dense)
    assert "prompt_product" in ran
    ran.clear()
    pair.advance(ids_of(text, 5, 20))
    assert ran.count("few_product") == 3 + 4 + 1  # query, key and value have orders of their own
    assert not {"prompt_product", "product"} & set(ran)
    pair.advance(ids_of(text, 3, 21))


def pair_of(folder: Path, text: TextSpec) -> Pair:
    return Pair(graph_decoder(folder, text), kernel_decoders(folder, text).make(), table_of(folder, text))


def test_prompts_in_parts_and_steps(exported: tuple[Path, TextSpec]) -> None:
    folder, text = exported
    pair = pair_of(folder, text)
    ids = ids_of(text, 12)
    pair.prefill(ids[:7], logits=False)
    pair.prefill(ids[7:])
    pair.advance(ids[:1])
    pair.step(ids[1:2])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TextSpec]:
    return written(tmp_path_factory.mktemp("small"), Quantized(), {"num_layers": 1})


def test_one_to_eight_rows_each_of_a_length_of_its_own(small: tuple[Path, TextSpec]) -> None:
    folder, text = small
    pair = pair_of(folder, text)
    pair.tell(lambda decoder: decoder.resize(8, 64))
    for row in range(8):
        pair.prefill(ids_of(text, row + 1, row), row)
    for count in range(1, 9):
        pair.advance(ids_of(text, count, 20 + count))
        if count == 4:  # what a capture of a step would not notice: the cache is elsewhere, and larger
            pair.tell(lambda decoder: decoder.resize(8, 96))
    pair.step(ids_of(text, 5, 40))


def test_rows_that_move_and_go(small: tuple[Path, TextSpec]) -> None:
    folder, text = small
    pair = pair_of(folder, text)
    pair.tell(lambda decoder: decoder.resize(3, 64))
    for row in range(3):
        pair.prefill(ids_of(text, 3, row), row)
    pair.tell(lambda decoder: decoder.cache.move_row(2, 0))
    pair.tell(lambda decoder: decoder.cache.wipe(1))
    pair.prefill(ids_of(text, 5, 7), 1)
    pair.advance(ids_of(text, 2, 8))
    pair.tell(lambda decoder: decoder.resize(1, 32))
    pair.advance(ids_of(text, 1, 9))
    pair.tell(lambda decoder: decoder.resize(0, 0))
    pair.prefill(ids_of(text, 2, 10))


def test_going_back_and_growing_beyond_the_capacity(small: tuple[Path, TextSpec]) -> None:
    folder, text = small
    pair = pair_of(folder, text)
    pair.prefill(ids_of(text, 600))  # more than one call takes
    pair.tell(lambda decoder: decoder.rewind(250))
    pair.prefill(ids_of(text, 5, 1))
    for step in range(3):
        pair.advance(ids_of(text, 1, 2 + step))
    assert pair.both[1].capacity == pair.both[0].capacity == 768
    pair.tell(lambda decoder: decoder.wipe())
    pair.prefill(ids_of(text, 3, 9))


def test_drafts_are_checked(small: tuple[Path, TextSpec]) -> None:
    folder, text = small
    pair = pair_of(folder, text)
    pair.prefill(ids_of(text, 20))
    for count in (2, 5, 9):
        pair.advance(ids_of(text, 1, count))
        pair.check(ids_of(text, count, 10 + count))
        pair.tell(lambda decoder: decoder.rewind(decoder.length - 1))
    pair.prefill(ids_of(text, 2, 30))
    pair.advance(ids_of(text, 1, 31))


def test_what_follows_moves_up_and_its_keys_turn(small: tuple[Path, TextSpec]) -> None:
    folder, text = small
    pair = pair_of(folder, text)
    table = table_of(folder, text)
    pair.prefill(ids_of(text, 40), logits=False)
    pair.tell(lambda decoder: decoder.discard(4, 11))
    pair.tell(lambda decoder: decoder.replace(6, 9, table.rows(ids_of(text, 2, 5))))
    pair.prefill(ids_of(text, 3, 6))
    pair.advance(ids_of(text, 1, 7))


def test_steps_of_rows_that_do_not_fit_leave_none(
    small: tuple[Path, TextSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, text = small
    pair = pair_of(folder, text)
    pair.prefill(ids_of(text, 3))
    decoder = pair.both[1]

    def full(rows: int) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(decoder._network, "choices", full)  # type: ignore[attr-defined]
        with pytest.raises(MemoryError):
            decoder.resize(2, 256)
    assert (decoder.cache.rows, decoder.length, decoder.capacity) == (0, 0, 0)
    pair.tell(lambda decoder: decoder.resize(0, 0))
    pair.tell(lambda decoder: decoder.resize(2, 256))
    pair.prefill(ids_of(text, 2, 1), 1)
    pair.advance(ids_of(text, 2, 2))


def test_there_are_no_logits_after_a_prefill_without_them(small: tuple[Path, TextSpec]) -> None:
    folder, text = small
    decoder = kernel_decoders(folder, text).make()
    decoder.prefill(table_of(folder, text).rows(ids_of(text, 2)), logits=False)
    with pytest.raises(RuntimeError, match="no logits"):
        _ = decoder.logits


def test_decoders_share_weights_and_not_what_they_hold(small: tuple[Path, TextSpec]) -> None:
    folder, text = small
    decoders, table = kernel_decoders(folder, text), table_of(folder, text)
    one, other = (Pair(graph_decoder(folder, text), decoders.make(), table) for _ in range(2))
    one.prefill(ids_of(text, 5, 1))
    other.prefill(ids_of(text, 3, 2))
    one.advance(ids_of(text, 1, 3))
    other.advance(ids_of(text, 1, 4))
    one.advance(ids_of(text, 1, 5))


def test_the_weights_are_on_the_device_once() -> None:
    """The demo bundle: all that the graph reads, and what is there in a second form, the norms in a step's order."""
    bundle = open_bundle(DEMO_BUNDLE)
    text = bundle.manifest.text
    weights = kernel_decoders(DEMO_BUNDLE, text)._network.weights
    head = text.vocab_size * text.hidden_size + text.vocab_size * text.hidden_size // 32 * 2
    sizes = [(256, 128), (128, 128), (384, 128), (384, 128), (128, 384)]
    layer = sum(outputs * inputs // 2 + outputs * inputs // 32 * 2 for outputs, inputs in sizes)
    norms = 2 * text.hidden_size * 4
    tables = 2 * text.max_position_embeddings * text.head_dim // 2 * 4
    exact = head + tables + norms + text.num_layers * (layer + 2 * norms + 256 * 2)
    assert weights.embeddings is not None
    assert weights.embeddings.codes == weights.head.codes
    assert exact <= weights.num_bytes < exact + 256 * (3 + 1 + 2 + text.num_layers * 15)


def test_an_order_that_leaves_the_matrix_is_refused(tmp_path: Path) -> None:
    """It would have a kernel read what lies beside a vector."""
    folder, text = written(tmp_path, Quantized(permuted=True), {"num_layers": 1})
    weights = decoder_weights(folder, read_shape(folder, text))
    place = weights["layers"][0]["down"]["tensors"]["order"]
    with (folder / place["file"]).open("r+b") as file:
        file.seek(place["offset"])
        file.write((1 << 20).to_bytes(8, "little"))
    with pytest.raises(BundleError, match="names inputs that it does not have"):
        kernel_decoders(folder, text)
