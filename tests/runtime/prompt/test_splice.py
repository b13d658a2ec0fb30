"""Splicing and the embedding table, against references built one value at a time."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vl3edge.runtime.errors import BundleError
from vl3edge.runtime.prompt.chat_template import VisualSlot
from vl3edge.runtime.prompt.splice import (
    EmbeddingTable,
    SplicedPrompt,
    VisualTokens,
    common_prefix,
    splice,
    stream_incremental,
)

VOCAB, HIDDEN = 11, 12
NAMES = {"float16": "F16", "float32": "F32", "uint8": "U8"}


def write_table(path: Path, tensors: dict[str, np.ndarray], header: dict[str, Any] | None = None) -> Path:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": NAMES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]
        }  # fmt: skip
        at += tensor.nbytes
    text = json.dumps(entries | (header or {})).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(t.tobytes() for t in tensors.values()))
    return path


def quantized(bits: int, blocks: int, zeros: bool, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of a table and the values they stand for, code by code."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**bits, (VOCAB, HIDDEN))
    points = random.integers(0, 2**bits, (VOCAB, blocks)) if zeros else np.full((VOCAB, blocks), 2 ** (bits - 1))
    scales = random.uniform(-1, 1, (VOCAB, blocks)).astype(np.float16)
    values = np.empty((VOCAB, HIDDEN), np.float32)
    for row in range(VOCAB):
        for column in range(HIDDEN):
            block = column * blocks // HIDDEN
            values[row, column] = np.float32(codes[row, column] - points[row, block]) * np.float32(scales[row, block])
    tensors = {"codes": packed(codes, bits), "scales": scales}
    return tensors | ({"zero_points": packed(points, bits)} if zeros else {}), values


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    rows = []
    for row in codes.tolist():
        if bits == 4:
            row = [low + 16 * high for low, high in zip(row[::2], [*row[1::2], 0][: len(row[::2])], strict=True)]
        rows.append(row)
    return np.array(rows, np.uint8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_of_a_float_table(tmp_path: Path, dtype: type) -> None:
    values = np.random.default_rng(0).standard_normal((VOCAB, HIDDEN)).astype(dtype)
    table = EmbeddingTable(write_table(tmp_path / "e", {"embeddings": values}), VOCAB, HIDDEN)
    ids = np.array([10, 0, 3, 3])
    assert table.rows(ids).dtype == np.float32
    np.testing.assert_array_equal(table.rows(ids), values[ids].astype(np.float32))
    np.testing.assert_array_equal(table.row(7), values[7].astype(np.float32))
    assert table.rows(np.zeros(0, np.int64)).shape == (0, HIDDEN)
    assert table.is_quantized is False


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("blocks", [1, 3, 4, 12])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_a_quantized_table(tmp_path: Path, bits: int, blocks: int, zeros: bool) -> None:
    tensors, values = quantized(bits, blocks, zeros)
    table = EmbeddingTable(write_table(tmp_path / "e", tensors), VOCAB, HIDDEN)
    ids = np.array([10, 0, 3, 3])
    assert table.rows(ids).dtype == np.float32
    np.testing.assert_array_equal(table.rows(ids), values[ids])
    np.testing.assert_array_equal(table.row(7), values[7])
    assert table.is_quantized is True
    steps = [float(np.mean([abs(float(s)) for s in tensors["scales"][i]])) for i in ids]
    np.testing.assert_allclose(table.steps(ids), steps, rtol=1e-6)


@pytest.mark.parametrize("ids", [[VOCAB], [0, VOCAB], [VOCAB + 5], [-1], [-1, 3]])
def test_ids_beyond_the_table_are_refused(tmp_path: Path, ids: list[int]) -> None:
    path = write_table(tmp_path / "e", {"embeddings": np.zeros((VOCAB, HIDDEN), np.float16)})
    with pytest.raises(BundleError, match=f"ids up to {max(ids)}, the embeddings have 11 rows"):
        EmbeddingTable(path, VOCAB, HIDDEN).rows(np.array(ids))


def zeros(dtype: str, *shape: int) -> np.ndarray:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"embeddings": zeros("f2", 10, 12)}, r"the shape \[10, 12\], not \[11, 12\]"),
        ({"embeddings": zeros("f2", 12, 12)}, r"the shape \[12, 12\], not \[11, 12\]"),
        ({"embeddings": zeros("f2", 11, 11)}, r"the shape \[11, 11\], not \[11, 12\]"),
        ({"embeddings": zeros("f2", 11, 13)}, r"the shape \[11, 13\], not \[11, 12\]"),
        ({"embeddings": zeros("f2", 11, 6)}, r"the shape \[11, 6\], not \[11, 12\]"),
        ({"embeddings": zeros("u1", 11, 12)}, "embeddings are whole numbers"),
        ({"codes": zeros("u1", 11, 3), "scales": zeros("f2", 11, 3)}, r"the shape \[11, 3\], not"),
        ({"codes": zeros("u1", 11, 7), "scales": zeros("f2", 11, 3)}, r"the shape \[11, 7\], not"),
        ({"codes": zeros("u1", 11, 24), "scales": zeros("f2", 11, 3)}, r"the shape \[11, 24\], not"),
        ({"codes": zeros("u1", 10, 6), "scales": zeros("f2", 11, 3)}, r"the shape \[10, 6\], not"),
        ({"codes": zeros("u1", 11, 6)}, "scales"),
        ({"codes": zeros("u1", 11, 6), "scales": zeros("f2", 11, 0)}, "scales do not fit"),
        ({"codes": zeros("u1", 11, 6), "scales": zeros("f2", 11, 5)}, "scales do not fit"),
        ({"codes": zeros("u1", 11, 6), "scales": zeros("f2", 10, 3)}, "scales do not fit"),
        ({"codes": zeros("u1", 11, 6), "scales": zeros("f2", 12, 3)}, "scales do not fit"),
        ({"codes": zeros("u1", 11, 6), "scales": zeros("u1", 11, 3)}, "scales do not fit"),
        ({"codes": zeros("f2", 11, 6), "scales": zeros("f2", 11, 3)}, "codes are not bytes"),
        *(
            ({"codes": zeros("u1", 11, 6), "scales": zeros("f2", 11, 3), "zero_points": points}, message)
            for points, message in [
                (zeros("u1", 11, 1), "zero points do not fit"),
                (zeros("u1", 11, 3), "zero points do not fit"),
                (zeros("u1", 10, 2), "zero points do not fit"),
                (zeros("f2", 11, 2), "codes are not bytes"),
            ]
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    path = write_table(tmp_path / "e", tensors)
    with pytest.raises(BundleError, match=message):
        EmbeddingTable(path, VOCAB, HIDDEN)


@pytest.mark.parametrize(
    ("shape", "begin", "message"),
    [
        ([11, 12], 1, "beyond its end"),
        ([11, 12], -1, "no whole number"),
        ([11, -12], 0, "no whole number"),
        ([-11, 12], 0, "no whole number"),
        ([11, 12.0], 0, "no whole number"),
        ([True, 12], 0, "no whole number"),
        ([11], 0, "not enough values"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, shape: list[Any], begin: int, message: str) -> None:
    entry = {"dtype": "F16", "shape": shape, "data_offsets": [begin, 264]}
    path = write_table(tmp_path / "e", {"embeddings": zeros("f2", 11, 12)}, {"embeddings": entry})
    with pytest.raises(BundleError, match=message):
        EmbeddingTable(path, VOCAB, HIDDEN)


def test_tensors_that_are_not_read_must_lie_in_the_file_all_the_same(tmp_path: Path) -> None:
    entry = {"dtype": "F16", "shape": [11, 12], "data_offsets": [1, 265]}
    path = write_table(tmp_path / "e", {"embeddings": zeros("f2", 11, 12)}, {"Another": entry})
    with pytest.raises(BundleError, match="beyond its end"):
        EmbeddingTable(path, VOCAB, HIDDEN)


def test_tables_as_large_as_numbers_that_python_does_not_share(tmp_path: Path) -> None:
    """A size compared with `is` is right up to 256."""
    values = np.arange(300 * 512, dtype=np.float32).reshape(300, 512)
    table = EmbeddingTable(write_table(tmp_path / "e", {"embeddings": values}), 300, 512)
    np.testing.assert_array_equal(table.row(299), values[299])
    codes = {"codes": np.full((300, 256), 0x98, np.uint8), "scales": np.ones((300, 4), np.float16)}
    table = EmbeddingTable(write_table(tmp_path / "q", codes), 300, 512)
    assert table.row(299).tolist() == [0.0, 1.0] * 256


@pytest.mark.parametrize(("excess", "message"), [(0, "Expecting value"), (1, "header is too long")])
def test_the_headers_length_is_limited_to_a_mebibyte(tmp_path: Path, excess: int, message: str) -> None:
    path = tmp_path / "e"
    path.write_bytes((2**20 + excess).to_bytes(8, "little") + b" " * (2**20 + 1))
    with pytest.raises(BundleError, match=message):
        EmbeddingTable(path, VOCAB, HIDDEN)


@pytest.mark.parametrize("content", [b"", b"\x02\0\0\0\0\0\0\0[]", b"\x0d\0\0\0\0\0\0\0" + b'{"a": {"b":1}', b"[" * 9])
def test_files_that_are_no_tables_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e").write_bytes(content)
    with pytest.raises(BundleError, match="not a usable embedding table"):
        EmbeddingTable(tmp_path / "e", VOCAB, HIDDEN)
    with pytest.raises(BundleError, match="not a usable embedding table"):
        EmbeddingTable(tmp_path / "absent", VOCAB, HIDDEN)


def test_tables_of_no_width_and_endless_nesting_are_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "e", {"codes": zeros("u1", 11, 6), "scales": zeros("f2", 11, 3)})
    with pytest.raises(BundleError, match="by zero"):
        EmbeddingTable(path, VOCAB, 0)
    path.write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    with pytest.raises(BundleError, match="recursion"):
        EmbeddingTable(path, VOCAB, HIDDEN)


class Letters:
    """A tokenizer of one id a letter."""

    def encode(self, text: str) -> np.ndarray:
        return np.array([ord(letter) - ord("a") for letter in text], np.int64)


def tokens(count: int, first: float) -> np.ndarray:
    return (first + np.arange(count * HIDDEN, dtype=np.float32)).reshape(count, HIDDEN)


CLIP = VisualTokens(tokens(6, 100.0), (2, 0, 1, 3), 5)
PHOTO = VisualTokens(tokens(2, 500.0), (2,), 6)
PIECES = ["ab", VisualSlot(0, 0), 3, VisualSlot(0, 1), VisualSlot(0, 2), VisualSlot(1, 0), "c", VisualSlot(0, 3), "de"]
IDS = [0, 1, 9, 9, 3, 9, 10, 10, 2, 9, 9, 9, 3, 4]


def spliced() -> SplicedPrompt:
    return splice(PIECES, [CLIP, PHOTO], [9, 10], Letters())  # type: ignore[arg-type]


def test_frames_of_a_clip() -> None:
    for index, (start, end) in enumerate([(0, 2), (2, 2), (2, 3), (3, 6)]):
        first, found = CLIP.frame(index)
        assert first == start
        np.testing.assert_array_equal(found, CLIP.tokens[start:end])


def test_ids_keys_and_spans() -> None:
    prompt = spliced()
    assert len(prompt) == 14
    assert prompt.ids.tolist() == IDS
    assert prompt.ids.dtype == prompt.keys.dtype == np.int64
    clip, photo = [-1 - (5 * 2**32 + n) for n in range(6)], [-1 - (6 * 2**32 + n) for n in range(2)]
    assert prompt.keys.tolist() == [0, 1, clip[0], clip[1], 3, clip[2], *photo, 2, *clip[3:], 3, 4]
    assert [at for at, _ in prompt.spans] == [2, 5, 5, 6, 9]
    for (_, found), expected in zip(
        prompt.spans, [CLIP.tokens[:2], CLIP.tokens[:0], CLIP.tokens[2:3], PHOTO.tokens, CLIP.tokens[3:]], strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_what_sessions_and_clips_share_cannot_be_changed() -> None:
    for value, name in ((CLIP, "tokens"), (spliced(), "keys")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, np.zeros(0))


def expected_inputs(values: np.ndarray) -> np.ndarray:
    rows = values[IDS].astype(np.float32)
    for positions, source in [([2, 3, 5, 9, 10, 11], CLIP.tokens), ([6, 7], PHOTO.tokens)]:
        for position, token in zip(positions, source, strict=True):
            rows[position] = token
    return rows


def test_embeddings_of_every_part(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((VOCAB, HIDDEN)).astype(np.float16)
    table = EmbeddingTable(write_table(tmp_path / "e", {"embeddings": values}), VOCAB, HIDDEN)
    expected, prompt = expected_inputs(values), spliced()
    np.testing.assert_array_equal(prompt.embeddings(table), expected)
    for start in range(15):
        np.testing.assert_array_equal(prompt.embeddings(table, start), expected[start:], err_msg=f"from {start}")
    for length in range(15):
        head = prompt.head(length)
        assert head.ids.tolist() == IDS[:length]
        assert head.keys.tolist() == prompt.keys[:length].tolist()
        assert all(at < length and at + len(found) <= length for at, found in head.spans)
        np.testing.assert_array_equal(head.embeddings(table), expected[:length], err_msg=f"first {length}")


@pytest.mark.parametrize(
    ("every", "lengths"), [(None, [14]), (1, [2, 4, 5, 6, 8, 9, 12, 14, 14]), (4, [4, 8, 12, 14]), (5, [5, 12, 14])]
)
def test_a_growing_prompt_is_its_own_beginning(every: int | None, lengths: list[int]) -> None:
    whole = spliced()
    parts = list(stream_incremental(PIECES, [CLIP, PHOTO], [9, 10], Letters(), every))  # type: ignore[arg-type]
    assert [len(part) for part in parts] == lengths
    for part in parts:
        assert part.ids.tolist() == whole.ids[: len(part)].tolist()
        assert part.keys.tolist() == whole.keys[: len(part)].tolist()
        assert [at for at, _ in part.spans] == [at for at, _ in whole.spans][: len(part.spans)]
        assert sum(len(found) for _, found in part.spans) == int((part.keys < 0).sum())


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2], [1, 2, 3], 2),
     ([1, 5, 3, 6], [1, 2, 3], 1), ([1, 2, 3, 6], [1, 5, 3], 1), ([4, 2], [1, 2], 0), ([3, 2], [1, 3], 0)],
)  # fmt: skip
def test_common_prefix(a: list[int], b: list[int], shared: int) -> None:
    found = common_prefix(np.array(a, np.int64), np.array(b, np.int64))
    assert (found, type(found)) == (shared, int)
