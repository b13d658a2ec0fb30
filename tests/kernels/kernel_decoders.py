"""The runtime's decoder on the kernels, in Triton's interpreter, and ONNX Runtime's to compare it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from weights import assert_near

from vl3edge.export.parity import load_session
from vl3edge.runtime.backends.onnxruntime import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, read_manifest
from vl3edge.runtime.bundle.manifest import FP16_DECODER_GRAPH, FileEntry, TextSpec
from vl3edge.runtime.decode.cached_decoder import CachedDecoder
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.kernels.select import KernelDecoders
from vl3edge.runtime.prompt.splice import EmbeddingTable


def bundle_of(folder: Path, text: TextSpec) -> Bundle:
    """What a folder with a decoder's graphs would be as a bundle."""
    files = {path.name: FileEntry(path.stat().st_size, "") for path in folder.iterdir()}
    return Bundle(folder, replace(read_manifest(DEMO_BUNDLE), text=text, files=files))


def kernel_decoders(folder: Path, text: TextSpec) -> KernelDecoders:
    return KernelDecoders(select_backend("cpu", 1), bundle_of(folder, text))


def graph_decoder(folder: Path, text: TextSpec) -> Decoder:
    """The fp16 graph, whose arithmetic is nearest to that of the kernels."""
    return Decoder(DecoderGraph(load_session(folder / FP16_DECODER_GRAPH)), text)


def table_of(folder: Path, text: TextSpec) -> EmbeddingTable:
    return EmbeddingTable(folder / "embeddings.safetensors", text.vocab_size, text.hidden_size)


class Pair:
    """Two decoders that are told the same; what the second says is held to the first."""

    def __init__(self, expected: CachedDecoder, found: CachedDecoder, table: EmbeddingTable, bound: float) -> None:
        """bound: of the largest difference of logits, as a share of the largest logit."""
        self.both = (expected, found)
        self._table, self._bound = table, bound

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

    def compare(self, rows: slice) -> None:
        expected, found = self.both
        assert_near(found.logits[rows], expected.logits[rows], self._bound)
        assert found.tokens[rows].tolist() == found.logits[rows].argmax(axis=-1).tolist()
        assert found.tokens[rows].tolist() == expected.tokens[rows].tolist()
        assert found.cache.lengths.tolist() == expected.cache.lengths.tolist()
