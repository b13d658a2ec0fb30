"""The runtime's decoder on the kernels, in Triton's interpreter, and ONNX Runtime's to compare it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from random_decoders import Quantized, write_decoder
from weights import assert_near

from vl3edge.export.parity import load_session
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, hash_file, read_manifest
from vl3edge.runtime.bundle.file_names import FP16_DECODER_GRAPH
from vl3edge.runtime.bundle.head_tokens import HeadTokens
from vl3edge.runtime.bundle.manifest import FileEntry
from vl3edge.runtime.bundle.specs import TextSpec
from vl3edge.runtime.decode.cached_decoder import CachedDecoder
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.kernels.select import KernelDecoders
from vl3edge.runtime.prompt.splice import EmbeddingTable

BOUND = 1.5e-2  # of float16, in random layers that magnify it: a share of the largest logit


def written(
    folder: Path, kind: Quantized | str, sizes: dict[str, Any], head_ids: np.ndarray | None = None
) -> tuple[Path, TextSpec]:
    config = preset("tiny-128")
    write_random_checkpoint(folder / "checkpoint", replace(config, text=replace(config.text, **sizes)))
    graphs = folder / "graphs"
    graphs.mkdir()
    return graphs, write_decoder(Checkpoint.open(folder / "checkpoint"), kind, graphs, head_ids)


def ids_of(text: TextSpec, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, text.vocab_size, count)


def bundle_of(folder: Path, text: TextSpec) -> Bundle:
    """What a folder with a decoder's graphs would be as a bundle."""
    files = {path.name: FileEntry(path.stat().st_size, "") for path in folder.iterdir() if path.is_file()}
    return Bundle(folder, replace(read_manifest(DEMO_BUNDLE), text=text, files=files))


def with_kernels(folder: Path, text: TextSpec) -> Bundle:
    """`bundle_of` a folder that has kernels beside its graphs."""
    bundle = bundle_of(folder, text)
    inside = {f"kernels/{path.name}": hash_file(path) for path in (folder / "kernels").iterdir()}
    return replace(bundle, manifest=replace(bundle.manifest, files=bundle.manifest.files | inside))


def kernel_decoders(folder: Path, text: TextSpec) -> KernelDecoders:
    return KernelDecoders(select_backend("cpu", 1), bundle_of(folder, text))


def graph_decoder(folder: Path, text: TextSpec) -> Decoder:
    """The fp16 graph, whose arithmetic is nearest to that of the kernels."""
    head = HeadTokens.of(bundle_of(folder, text))
    return Decoder(DecoderGraph(load_session(folder / FP16_DECODER_GRAPH), head=head), text)


def table_of(folder: Path, text: TextSpec) -> EmbeddingTable:
    return EmbeddingTable(folder / "embeddings.safetensors", text.vocab_size, text.hidden_size)


class Pair:
    """Two decoders that are told the same; what the second says is held to the first."""

    def __init__(self, expected: CachedDecoder, found: CachedDecoder, table: EmbeddingTable) -> None:
        self.both = (expected, found)
        self._table = table

    def tell(self, action: Callable[[CachedDecoder], None]) -> None:
        for decoder in self.both:
            action(decoder)

    def prefill(self, ids: np.ndarray, row: int = 0, logits: bool = True) -> None:
        self.tell(lambda decoder: decoder.prefill(self._table.rows(ids), logits, row))
        if logits:
            self.compare(slice(row, row + 1))

    def advance(self, ids: np.ndarray) -> None:
        """By their ids, which the device looks up where it has the embeddings."""
        self.tell(lambda decoder: decoder.advance(ids, self._table))
        self.compare(slice(len(ids)))

    def step(self, ids: np.ndarray) -> None:
        """By embeddings that the host has looked up."""
        self.tell(lambda decoder: decoder.step(self._table.rows(ids)))
        self.compare(slice(len(ids)))

    def check(self, ids: np.ndarray) -> None:
        """Several tokens at once, with what is chosen after each."""
        self.tell(lambda decoder: decoder.verify(ids, self._table))
        assert len(self.both[1].logits) == len(ids)
        self.compare(slice(len(ids)))

    def compare(self, rows: slice) -> None:
        expected, found = self.both
        said = np.isfinite(expected.logits[0])  # all, or what the head can say
        assert (np.isfinite(found.logits[rows]) == said).all()
        assert_near(found.logits[rows][:, said], expected.logits[rows][:, said], BOUND)
        assert found.tokens[rows].tolist() == found.logits[rows].argmax(axis=-1).tolist()
        assert found.tokens[rows].tolist() == expected.tokens[rows].tolist()
        assert found.cache.lengths.tolist() == expected.cache.lengths.tolist()
