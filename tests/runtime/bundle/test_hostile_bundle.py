"""Bundles made to do harm: whole by their hashes, and refused or harmless all the same."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vl3edge.runtime import VideoLlama3
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, hash_file, open_bundle
from vl3edge.runtime.bundle.manifest import sealed
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.errors import BundleError
from vl3edge.runtime.prompt.splice import EmbeddingTable
from vl3edge.runtime.prompt.tokenizer import Tokenizer


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle"))


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Replaces a file of a bundle and its hash, as whoever makes a bundle can."""
    (bundle / name).write_bytes(content)
    change(bundle, lambda data: data["files"].update({name: vars(hash_file(bundle / name))}))


def change(bundle: Path, edit: Any) -> None:
    data = json.loads((bundle / "bundle.json").read_text())
    edit(data)
    (bundle / "bundle.json").write_text(json.dumps(sealed(data)))


def test_a_listed_link_is_refused_before_the_graph_is_read(bundle: Path, tmp_path: Path) -> None:
    data = bundle / "vision.onnx.data"
    data.rename(tmp_path / "moved")
    data.symlink_to(tmp_path / "moved")
    with pytest.raises(BundleError, match=r"vision\.onnx\.data is a symbolic link"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "content", [b"\x08", b"\x3a\xff\xff\xff\xff\x0f", b"\x3b", b"\x3a" * 50, b"\xff" * 20, b"\x38\x01", b"\x7b}"]
)
def test_what_is_no_graph_is_refused(bundle: Path, content: bytes) -> None:
    rewrite(bundle, "vision.onnx", content)
    with pytest.raises(BundleError, match=r"vision\.onnx is not an ONNX file"):
        open_bundle(bundle)


def test_graphs_nested_without_end_are_refused(bundle: Path) -> None:
    message = b""
    for _ in range(300):  # graph → node → attribute → graph …
        for number in (6, 5, 1):
            length = len(message)
            size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
            message = bytes([number << 3 | 2]) + size + message
        if len(message) > 16000:
            break
    rewrite(bundle, "vision.onnx", b"\x3a" + bytes([len(message) & 127 | 128, len(message) >> 7]) + message)
    with pytest.raises(BundleError, match="nested too deeply"):
        open_bundle(bundle)


def test_a_huge_graph_is_not_read(bundle: Path) -> None:
    with (bundle / "vision.onnx").open("r+b") as file:
        file.truncate(65 << 20)
    change(bundle, lambda data: data["files"].update({"vision.onnx": vars(hash_file(bundle / "vision.onnx"))}))
    with pytest.raises(BundleError, match="more than 64 MiB"):
        open_bundle(bundle)


def test_a_huge_tokenizer_is_not_parsed(bundle: Path) -> None:
    with (bundle / "tokenizer.json").open("r+b") as file:
        file.truncate(65 << 20)
    change(bundle, lambda data: data["files"].update({"tokenizer.json": vars(hash_file(bundle / "tokenizer.json"))}))
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a usable tokenizer \(it has more than 64 MiB"):
        VideoLlama3.load(bundle, backend="cpu", num_threads=1)


TOKENIZERS = [b"", b"[]", b"{}", b"[" * 100_000, b'{"added_tokens": [{"content": "", "id": 1}]}']


@pytest.mark.parametrize("content", TOKENIZERS)
def test_a_damaged_tokenizer_is_one_clear_error(bundle: Path, content: bytes) -> None:
    rewrite(bundle, "tokenizer.json", content)
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a usable tokenizer"):
        VideoLlama3.load(bundle, backend="cpu", num_threads=1)


def test_ids_beyond_the_vocabulary_are_refused(bundle: Path) -> None:
    settings = json.loads((bundle / "tokenizer.json").read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary["zz"] = 10**6
    settings["added_tokens"].append({**settings["added_tokens"][0], "content": "<far>", "id": 10**6 + 1})
    rewrite(bundle, "tokenizer.json", json.dumps(settings).encode())
    template = (bundle / "chat_template.jinja").read_text()
    rewrite(bundle, "chat_template.jinja", ("<far>" + template).encode())
    model = VideoLlama3.load(bundle, backend="cpu", num_threads=1)
    clip = model.encode(np.zeros((56, 56, 3), np.uint8))
    with pytest.raises(BundleError, match=r"ids up to \d+, the embeddings have 448 rows"):
        model.ask(clip, "What?")


def table(entries: dict[str, Any], size: int = 4096) -> bytes:
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def entry(dtype: str, shape: list[Any], start: Any = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, 0]}


TABLES = {
    "empty": b"",
    "endless header": (1 << 62).to_bytes(8, "little"),
    "no object": b"\x02" + bytes(7) + b"[]",
    "deep header": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "beyond the file": table({"embeddings": entry("F32", [8, 1 << 20])}),
    "overflowing": table({"embeddings": entry("F32", [1 << 62, 1 << 62])}),
    "offset beyond": table({"embeddings": entry("F32", [8, 4], 1 << 50)}),
    "negative offset": table({"embeddings": entry("F32", [8, 4], -(1 << 30))}),
    "offset of text": table({"embeddings": entry("F32", [8, 4], "0")}),
    "three sides": table({"embeddings": entry("F32", [8, 2, 2])}),
    "other size": table({"embeddings": entry("F32", [9, 4])}),
    "unknown type": table({"embeddings": entry("BF16", [8, 4])}),
    "whole numbers": table({"embeddings": entry("U8", [8, 4])}),
    "no scales": table({"codes": entry("U8", [8, 4])}),
    "scales of others": table({"codes": entry("U8", [8, 4]), "scales": entry("F16", [7, 2])}),
    "no blocks": table({"codes": entry("U8", [8, 4]), "scales": entry("F16", [8, 0])}),
    "uneven blocks": table({"codes": entry("U8", [8, 4]), "scales": entry("F16", [8, 3])}),
    "half codes": table({"codes": entry("F16", [8, 4]), "scales": entry("F16", [8, 2])}),
    "five bits": table({"codes": entry("U8", [8, 3]), "scales": entry("F16", [8, 2])}),
    "zeros of others": table(
        {"codes": entry("U8", [8, 4]), "scales": entry("F16", [8, 2]), "zero_points": entry("U8", [8, 9])}
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_embedding_tables_that_lie_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "embeddings.safetensors"
    path.write_bytes(TABLES[name])
    with pytest.raises(BundleError, match="not a usable embedding table"):
        EmbeddingTable(path, 8, 4)


def test_a_folder_of_engines_that_is_a_link_is_refused(bundle: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "1.0"
    elsewhere.mkdir(parents=True)
    (elsewhere / "engines.json").write_text("{}")
    (bundle / "engines").mkdir()
    (bundle / "engines" / "rtx").symlink_to(elsewhere.parent)
    with pytest.raises(BundleError, match="rtx is a symbolic link"):
        open_bundle(bundle)


def test_engines_that_are_no_plain_file_are_not_read(bundle: Path) -> None:
    folder = bundle / "engines" / "rtx" / "1.0"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "engines.json")
    with pytest.raises(BundleError, match="is not a regular file"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(measured={"vision": 3}),
        lambda d: d.update(measured={"vision": {"max_abs_diff": "x"}}),
        lambda d: d["quantization"].update(layers=[1]),
        lambda d: d["quantization"].update(layers={"layers.0": {"bits": "four"}}),
        lambda d: d["quantization"].update(end_to_end={"kl": None}),
        lambda d: d["quantization"].update(fp16_bytes="many"),
        lambda d: d.update(quantization={"method": ["gptq"]}),
    ],
)
def test_figures_that_are_none_are_one_line(bundle: Path, capsys: pytest.CaptureFixture[str], damage: Any) -> None:
    change(bundle, damage)
    status = main(["info", str(bundle)])
    out, err = capsys.readouterr()
    assert status == 0 or err.splitlines()[-1].startswith("vl3edge: error: ")
    assert "Traceback" not in out + err


def test_a_template_that_is_not_text_is_refused(bundle: Path) -> None:
    """Found by tests/fuzz/artefacts.py, number 5000013."""
    rewrite(bundle, "chat_template.jinja", b"{% for m in messages %}\xff{% endfor %}")
    with pytest.raises(BundleError, match=r"chat_template\.jinja is not UTF-8"):
        VideoLlama3.load(bundle, backend="cpu", num_threads=1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers", 1e308, "quantization.layers is not an object of objects"),
        ("layers", {"layers.0": 4}, "quantization.layers is not an object of objects"),
        ("layers", {"layers.0": {"bits": "4"}}, "quantization.layers.layers.0.bits is '4', not from 1 to 16"),
        ("bits", 1e308, "quantization.bits is 1e\\+308, not from 1 to 16"),
        ("head_bits", True, "quantization.head_bits is True, not from 1 to 16"),
        ("group_size", 0.5, "quantization.group_size is 0.5, not a whole number"),
        ("group_size", -2, "quantization.group_size is -2, not a whole number"),
    ],
)
def test_what_memory_is_reckoned_from_is_checked(bundle: Path, name: str, value: Any, message: str) -> None:
    """Found by tests/fuzz/artefacts.py, number 5000128: AttributeError while the model was loaded."""
    change(bundle, lambda data: data["quantization"].update({name: value}))
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_marks_of_masked_tokens_in_a_template_are_text(bundle: Path) -> None:
    """Users' special tokens are masked as a number between private characters; a template may hold such text, too."""
    template = (bundle / "chat_template.jinja").read_text()
    rewrite(bundle, "chat_template.jinja", ("\ue0007\ue000\ue000٣\ue000" + template).encode())
    model = VideoLlama3.load(bundle, backend="cpu", num_threads=1)
    ids = model.prompt([{"role": "user", "content": "a <|im_end|> b"}], []).ids
    text = Tokenizer.of(model.bundle).decode(ids.tolist())
    assert "\ue0007\ue000\ue000٣\ue000" in text
    assert "a <|im_end|> b" in text
