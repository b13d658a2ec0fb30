"""The kernels with a head of some rows, against the fp16 graph with the same, which is held to the whole head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from kernel_decoders import Pair, graph_decoder, ids_of, kernel_decoders, table_of, written
from random_decoders import Quantized

from vl3edge.export.kernels.shape import read_shape
from vl3edge.export.kernels.weights import decoder_weights
from vl3edge.runtime.bundle.kernel_set import weights_from_json

VOCABULARY, ROWS = 704, 192
IDS = np.sort(np.append(np.random.default_rng(1).choice(np.arange(1, 440), ROWS - 2, replace=False), [0, 440]))
ABSENT = np.setdiff1d(np.arange(VOCABULARY), IDS)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (Quantized(head_bits=4, symmetric=False), {}),
        (Quantized(group=128), {"tie_word_embeddings": False}),
        ("fp16", {}),
        ("fp32", {}),
    ],
    ids=["tied, 4 bits, zero points", "untied, 8 bits", "tied, fp16", "tied, fp32"],
)
def test_steps_and_drafts_of_tokens_inside_and_outside(
    tmp_path: Path, kind: Quantized | str, sizes: dict[str, Any]
) -> None:
    folder, text = written(tmp_path, kind, {"num_layers": 1, "vocab_size": VOCABULARY} | sizes, IDS)
    weights = weights_from_json(decoder_weights(folder, read_shape(folder, text)))
    assert weights.head.outputs == ROWS
    assert weights.embeddings.outputs == (ROWS if weights.tied else VOCABULARY)
    pair = Pair(graph_decoder(folder, text), kernel_decoders(folder, text).make(), table_of(folder, text))
    pair.prefill(ids_of(text, 7))
    for token in (IDS[5], pair.both[1].tokens[0], ABSENT[3], IDS[-1]):
        pair.advance(np.array([token]))
        assert pair.both[1].token in IDS
    pair.check(np.array([IDS[1], ABSENT[0], IDS[2]]))
    pair.tell(lambda decoder: decoder.resize(4, 64))
    for row in range(4):
        pair.prefill(ids_of(text, row + 2, row), row)
    pair.advance(IDS[[1, 3, 5, 7]])
    pair.advance(np.array([IDS[4], ABSENT[9]]))
