"""A decoder whose head has some rows says what the whole one would, were it asked of these tokens alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_decoders import KINDS, write_decoder

from vl3edge.export.parity import load_session
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH, FP16_DECODER_GRAPH
from vl3edge.runtime.bundle.head_tokens import HeadTokens
from vl3edge.runtime.bundle.specs import TextSpec
from vl3edge.runtime.config import GenerationConfig
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.decode.sampler import Sampler
from vl3edge.runtime.prompt.splice import EmbeddingTable

VOCABULARY, ROWS = 704, 192
IDS = np.sort(np.append(np.random.default_rng(1).choice(np.arange(1, VOCABULARY), ROWS - 1, replace=False), 0))
ABSENT = np.setdiff1d(np.arange(VOCABULARY), IDS)
PROMPT = np.random.default_rng(2).integers(0, VOCABULARY, 9)  # most of it is not in the head
BOUND = 1e-5  # of sums in another order: a share of the largest logit


def decoders(folder: Path, kind: Any, preset_name: str, graph: str) -> tuple[Decoder, Decoder, EmbeddingTable]:
    """The whole one, that with some rows, and the table of the latter's folder."""
    config = preset(preset_name)
    config = replace(config, text=replace(config.text, vocab_size=VOCABULARY, num_layers=2))
    write_random_checkpoint(folder / "checkpoint", config)
    made = []
    for name, ids in (("whole", None), ("some", IDS)):
        (folder / name).mkdir()
        spec: TextSpec = write_decoder(Checkpoint.open(folder / "checkpoint"), kind, folder / name, ids)
        head = None if ids is None else HeadTokens(ids, VOCABULARY)
        made.append(Decoder(DecoderGraph(load_session(folder / name / graph), head=head), spec))
    assert (made[0].spec.num_logits, made[1].spec.num_logits) == (VOCABULARY, ROWS)
    table = EmbeddingTable(folder / "some" / "embeddings.safetensors", VOCABULARY, spec.hidden_size)
    return made[0], made[1], table


def restricted(whole: Decoder) -> np.ndarray:
    """The oracle: logits of the whole head, minus infinity where the other has no row."""
    logits = whole.logits.copy()
    logits[:, ABSENT] = -np.inf
    return logits


def compare(whole: Decoder, some: Decoder) -> None:
    wanted, scale = restricted(whole), np.abs(whole.logits).max()
    assert np.isneginf(some.logits[:, ABSENT]).all()
    assert np.abs(some.logits[:, IDS] - wanted[:, IDS]).max() <= BOUND * scale
    assert some.tokens.tolist() == wanted.argmax(axis=-1).tolist()


CASES = [(name, KINDS[name], "tiny-128") for name in KINDS] + [
    ("untied, int4", KINDS["int4"], "tiny-untied"),
    ("untied, fp32", "fp32", "tiny-untied"),
]


@pytest.mark.parametrize("graph", [DECODER_GRAPH, FP16_DECODER_GRAPH])
@pytest.mark.parametrize(("kind", "preset_name"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_greedy_and_sampled_tokens_are_the_whole_heads_among_the_rows(
    tmp_path: Path, kind: Any, preset_name: str, graph: str
) -> None:
    if preset_name == "tiny-untied" and not isinstance(kind, str):
        kind = replace(kind, group=16)
    whole, some, table = decoders(tmp_path, kind, preset_name, graph)
    for decoder in (whole, some):
        decoder.prefill(table.rows(PROMPT))
    compare(whole, some)
    said = []
    for step in range(6):
        token = np.array([some.token if step != 3 else int(ABSENT[5])])  # a grammar or a draft may want what is absent
        said.append(some.token)
        for decoder in (whole, some):
            decoder.advance(token, table)
        compare(whole, some)
    assert set(said) <= set(IDS.tolist())
    for settings in ({"temperature": 0.8, "top_k": 20, "seed": 3}, {"temperature": 1.5, "top_p": 0.9, "seed": 4}):
        draws = [Sampler(GenerationConfig(**settings)) for _ in range(2)]
        for _ in range(5):
            drawn = [
                sampler.sample(row, PROMPT)
                for sampler, row in zip(draws, (restricted(whole)[0], some.logits[0]), strict=True)
            ]
            assert drawn[0] == drawn[1]
            assert drawn[1] in IDS
    drafts = np.array([IDS[7], ABSENT[1], IDS[9]])
    for decoder in (whole, some):
        decoder.verify(drafts, table)
    compare(whole, some)
    for decoder in (whole, some):
        decoder.resize(3, 64)
        for row in range(3):
            decoder.prefill(table.rows(PROMPT[: 3 + row]), row=row)
    for tokens in (IDS[[3, 50, 100]], np.array([IDS[3], ABSENT[2], IDS[8]])):
        for decoder in (whole, some):
            decoder.advance(tokens, table)
        compare(whole, some)


def test_the_fp16_graph_looks_up_the_rows_of_its_head(tmp_path: Path) -> None:
    """The bytes that a step reads are those of the rows; the table stays whole beside them."""
    _, some, table = decoders(tmp_path, KINDS["int4"], "tiny-128", FP16_DECODER_GRAPH)
    assert some.graph.looks_up
    assert np.isfinite(table.rows(ABSENT)).all()
    sizes = [(tmp_path / name / "embeddings.safetensors").stat().st_size for name in ("whole", "some")]
    assert sizes[1] - sizes[0] == pytest.approx(sizes[0] * ROWS / VOCABULARY, rel=0.01)
