"""Checkpoints of both layouts open to the same tensors; damaged and incomplete ones say all that is wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import load_reference, transformers_module
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from vl3edge.models import hub
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import ModelConfig
from vl3edge.models.errors import CheckpointError
from vl3edge.models.synthetic.random import PRESETS, preset, random_tensor, write_random_checkpoint
from vl3edge.models.synthetic.random_files import SPECIAL_TOKENS
from vl3edge.models.tensor_names import EMBEDDINGS, LM_HEAD, expected_shapes, stored_name

Tensors = dict[str, torch.Tensor]


def rewrite(folder: Path, change: Callable[[Tensors], Any]) -> None:
    """Changes the tensors of a one-file checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def native(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "native", preset("tiny"), seed=1)


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "authors", preset("tiny", "authors"), seed=1)


@pytest.mark.parametrize("name", ["tiny", "tiny-untied", "tiny-128"])
@pytest.mark.parametrize("shards", [1, 2, 7])
def test_both_layouts_hold_the_same_model(tmp_path: Path, name: str, shards: int) -> None:
    first = Checkpoint.open(write_random_checkpoint(tmp_path / "a", preset(name), seed=2, shards=shards))
    second = Checkpoint.open(write_random_checkpoint(tmp_path / "b", preset(name, "authors"), seed=2))
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == shards
    assert (first.layout, second.layout) == ("transformers", "authors")
    assert set(first.names) == set(second.names)
    for tensor in first.names:
        assert torch.equal(first.tensor(tensor), second.tensor(tensor)), tensor


def test_tensors_are_those_that_transformers_loads(native: Path) -> None:
    checkpoint, model = Checkpoint.open(native), load_reference(native)
    theirs = dict(model.named_parameters())
    assert set(checkpoint.names) == set(theirs)
    for name, value in theirs.items():
        assert checkpoint.shape(name) == tuple(value.shape)
        assert torch.equal(checkpoint.tensor(name), value), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_types(tmp_path: Path, dtype: str) -> None:
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path, preset("tiny"), seed=4, dtype=dtype))
    expected = random_tensor(EMBEDDINGS, (320, 96), seed=4).to(getattr(torch, dtype))
    assert torch.equal(checkpoint.tensor(EMBEDDINGS), expected)
    converted = checkpoint.tensor(EMBEDDINGS, torch.float32)
    assert converted.dtype == torch.float32
    assert torch.equal(converted, expected.float())


@pytest.mark.parametrize("prefix", ["model.vision_encoder.", "model.vision_encoder.vision_encoder."])
def test_authors_trainer_prefix(authors: Path, prefix: str) -> None:
    def rename(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("model.vision_encoder.")]:
            tensors[prefix + name.removeprefix("model.vision_encoder.")] = tensors.pop(name)

    before = Checkpoint.open(authors)
    values = {name: before.tensor(name).clone() for name in before.names}
    rewrite(authors, rename)
    after = Checkpoint.open(authors)
    assert set(after.names) == set(values)
    assert all(torch.equal(after.tensor(name), value) for name, value in values.items())


def test_saved_without_head_or_prefix(native: Path) -> None:
    """transformers' VideoLlama3Model, saved alone, has no `model.` in its names; transformers loads that
    too.
    """
    rewrite(native, lambda t: [t.__setitem__(name.removeprefix("model."), t.pop(name)) for name in list(t)])
    checkpoint = Checkpoint.open(native)
    assert set(checkpoint.names) == set(expected_shapes(checkpoint.config)) - {LM_HEAD}
    theirs = load_reference(native).state_dict()
    assert all(torch.equal(checkpoint.tensor(name), theirs[name]) for name in checkpoint.names)


def test_derived_buffers_are_ignored(native: Path) -> None:
    names = Checkpoint.open(native).names
    rewrite(
        native,
        lambda t: t.update(
            {
                "model.language_model.rotary_emb.inv_freq": torch.ones(16),
                "model.vision_model.rotary_pos_emb.inv_freq": torch.ones(5),
            }
        ),
    )
    assert Checkpoint.open(native).names == names


def test_tied_head_is_the_embeddings(native: Path) -> None:
    checkpoint = Checkpoint.open(native)
    assert LM_HEAD not in checkpoint
    assert checkpoint.config.text.tie_word_embeddings
    assert torch.equal(checkpoint.tensor(LM_HEAD), checkpoint.tensor(EMBEDDINGS))
    assert checkpoint.shape(LM_HEAD) == checkpoint.shape(EMBEDDINGS)


def test_tied_head_may_be_stored(native: Path) -> None:
    rewrite(native, lambda t: t.update({LM_HEAD: t[EMBEDDINGS].clone()}))
    assert Checkpoint.open(native).config.text.tie_word_embeddings


def test_tied_embeddings_may_be_stored_as_head(native: Path) -> None:
    rewrite(native, lambda t: t.update({LM_HEAD: t.pop(EMBEDDINGS)}))
    checkpoint, model = Checkpoint.open(native), load_reference(native)
    assert torch.equal(checkpoint.tensor(EMBEDDINGS), checkpoint.tensor(LM_HEAD))
    assert torch.equal(checkpoint.tensor(EMBEDDINGS), model.get_input_embeddings().weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_different_head_unties(native: Path, dtype: torch.dtype) -> None:
    """transformers keeps both in this case; so do we, and say so."""
    rewrite(native, lambda t: t.update({LM_HEAD: (t[EMBEDDINGS] + 1).to(dtype)}))
    with pytest.warns(UserWarning, match="a different lm_head.weight is stored and used"):
        checkpoint = Checkpoint.open(native)
    model = load_reference(native)
    assert not checkpoint.config.text.tie_word_embeddings
    assert torch.equal(checkpoint.tensor(LM_HEAD, torch.float32), model.lm_head.weight)
    assert torch.equal(checkpoint.tensor(EMBEDDINGS), model.get_input_embeddings().weight)


def test_every_problem_is_named_at_once(authors: Path) -> None:
    def damage(tensors: Tensors) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        del tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary.weight"] = torch.ones(2)
        tensors["model.mm_projector.readout.0.bias"] = torch.ones(3)
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)

    rewrite(authors, damage)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(authors)
    assert str(caught.value).splitlines() == [
        f"{authors}: 5 tensors do not match config.json:",
        "  missing: model.language_model.embed_tokens.weight",
        "  missing: model.language_model.layers.1.mlp.up_proj.weight",
        "  unexpected: model.language_model.layers.0.self_attn.rotary.weight"
        " (stored as model.layers.0.self_attn.rotary.weight)",
        "  wrong shape: model.projector.readout.0.bias is [3], not [96]",
        "  wrong type: model.language_model.norm.weight is I32, not one of F32, F16, BF16",
    ]


def test_layers_beyond_the_configuration_are_unexpected(native: Path) -> None:
    config = json.loads((native / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    (native / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"unexpected: model.language_model.layers.2.mlp.up_proj.weight"):
        Checkpoint.open(native)


def test_one_tensor_under_two_names(authors: Path) -> None:
    name = "model.vision_encoder.post_layernorm.bias"
    doubled = "model.vision_encoder.vision_encoder.post_layernorm.bias"
    rewrite(authors, lambda t: t.update({doubled: t[name].clone()}))
    with pytest.raises(CheckpointError, match="are the same tensor"):
        Checkpoint.open(authors)


def test_gptq_decoder(native: Path) -> None:
    """Packed layers stand in for their weights; their shapes follow from bits and group size."""
    config = json.loads((native / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (native / "config.json").write_text(json.dumps(config))
    layer = "model.language_model.layers.0.mlp.down_proj."  # 160 inputs, 96 outputs

    def pack(tensors: Tensors) -> None:
        del tensors[f"{layer}weight"]
        tensors[f"{layer}qweight"] = torch.zeros(160 // 8, 96, dtype=torch.int32)
        tensors[f"{layer}qzeros"] = torch.zeros(5, 96 // 8, dtype=torch.int32)
        tensors[f"{layer}scales"] = torch.ones(5, 96, dtype=torch.float16)
        tensors[f"{layer}g_idx"] = torch.zeros(160, dtype=torch.int32)

    rewrite(native, pack)
    checkpoint = Checkpoint.open(native)
    assert checkpoint.shape(f"{layer}qweight") == (20, 96)
    assert checkpoint.tensor(f"{layer}g_idx").dtype == torch.int32
    rewrite(native, lambda t: t.update({f"{layer}scales": torch.ones(4, 96)}))
    with pytest.raises(CheckpointError, match=r"down_proj.scales is \[4, 96\], not \[5, 96\]"):
        Checkpoint.open(native)


def test_truncated_file(native: Path) -> None:
    path = native / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        Checkpoint.open(native)


@pytest.mark.parametrize("content", [b"", b"not a tensor file", struct.pack("<Q", 1 << 40) + b"{}"])
def test_not_a_tensor_file(native: Path, content: bytes) -> None:
    (native / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged or not a safetensors file"):
        Checkpoint.open(native)


def tensor_file(entries: Any, size: int = 64) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def entry(begin: int, end: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "beyond the file": {"a": entry(0, 1 << 40, [1 << 38])},
    "overlapping": {"a": entry(0, 64, [16]), "b": entry(32, 64, [8])},
    "a gap": {"a": entry(0, 16, [4]), "b": entry(48, 64, [4])},
    "shape of another size": {"a": entry(0, 64, [1 << 20])},
    "backwards": {"a": entry(64, 0, [16])},
    "negative": {"a": entry(-64, 64, [16])},
    "overflowing": {"a": entry(0, 64, [1 << 62, 1 << 62])},
    "no offsets": {"a": {"dtype": "F32", "shape": [16]}},
    "no object": [1, 2],
}


@pytest.mark.parametrize("name", LIES)
def test_headers_that_lie(native: Path, name: str) -> None:
    (native / "model.safetensors").write_bytes(tensor_file(LIES[name]))
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged or not a safetensors file"):
        Checkpoint.open(native)


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 5000, "{", "[]", "\0"])
def test_configurations_that_are_none(native: Path, content: str) -> None:
    (native / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.open(native)


def test_a_huge_configuration_is_not_read(native: Path) -> None:
    with (native / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=r"config\.json is too large"):
        Checkpoint.open(native)


@pytest.mark.parametrize(
    "shard", ["../other.safetensors", "/etc/passwd", "sub/../../x.safetensors", "sub/x.safetensors"]
)
def test_no_path_of_an_index_leaves_the_folder(sharded: Path, shard: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {EMBEDDINGS: shard}}))
    with pytest.raises(CheckpointError, match="names files outside its folder"):
        Checkpoint.open(sharded)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "sharded", preset("tiny"), shards=3)


def test_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index.json names model-00002-of-00003.safetensors, which is missing"):
        Checkpoint.open(sharded)


def test_index_that_does_not_match(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][EMBEDDINGS] = "model-00003-of-00003.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"not in the shard it gives: {EMBEDDINGS}"):
        Checkpoint.open(sharded)


def test_index_may_not_leave_the_folder(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {EMBEDDINGS: "../other.safetensors"}}))
    with pytest.raises(CheckpointError, match="names files outside its folder"):
        Checkpoint.open(sharded)


def test_pickled_weights_are_refused(native: Path) -> None:
    (native / "model.safetensors").rename(native / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"pickled weights only \(pytorch_model.bin\).*Convert them to safetensors"
    ):
        Checkpoint.open(native)


def test_no_weights(native: Path) -> None:
    (native / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        Checkpoint.open(native)


def test_places_that_are_no_checkpoint(native: Path, tmp_path: Path) -> None:
    for place, message in (
        (tmp_path / "nowhere", "does not exist"),
        ("nowhere", "does not exist, and is not a hub id"),
        (native / "config.json", "is a file; give the folder"),
        (tmp_path, "config.json does not exist"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Checkpoint.open(place)
    with pytest.raises(CheckpointError, match="is a local folder, which has no revision 'v1'"):
        Checkpoint.open(native, revision="v1")


def test_hub_download_is_pinned(
    native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub client is replaced: what is asked for, and what becomes of its answer."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked: dict[str, Any] = {}

    def snapshot_download(hub_id: str, **options: Any) -> str:
        asked.update(options, id=hub_id)
        return str(native.rename(tmp_path / commit))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    checkpoint = Checkpoint.open("owner/name", revision="main")
    assert checkpoint.commit == commit
    assert capsys.readouterr().err == f"owner/name at commit {commit}\n"
    assert (asked["id"], asked["revision"]) == ("owner/name", "main")
    assert "*.safetensors" in asked["allow_patterns"]
    assert not {"*", "*.bin", "*.py"} & set(asked["allow_patterns"])


def test_hub_failure_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(hub_id: str, **options: Any) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=r"owner/name is not a local folder and could not be fetched .* no route"):
        hub.find_checkpoint("owner/name")


def test_chat_template_wherever_it_is(native: Path) -> None:
    jinja = native / "chat_template.jinja"
    text = jinja.read_text()
    assert Checkpoint.open(native).chat_template() == text
    jinja.unlink()
    with pytest.raises(CheckpointError, match="has no chat template"):
        Checkpoint.open(native).chat_template()
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "in tokenizer"}]
    for file, value, expected in (
        ("tokenizer_config.json", named, "in tokenizer"),
        ("processor_config.json", "in processor", "in processor"),
        ("chat_template.json", "in its own file", "in its own file"),
    ):
        path = native / file
        values = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**values, "chat_template": value}))
        assert Checkpoint.open(native).chat_template() == expected


TEXTS = [
    "What is the cat doing?",
    "  Two\n\n\tlines, 12345 times.",
    "naïve café — 猫は? 🐈",
    "I'll don't <|im_start|>x",
]


def test_tokenizer_from_older_files(native: Path) -> None:
    """vocab.json and merges.txt give the same ids as the tokenizer.json they come from."""
    path = native / "tokenizer.json"
    expected = Tokenizer.from_file(str(path))
    model = json.loads(path.read_text())["model"]
    (native / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (native / "merges.txt").write_text("\n".join(lines) + "\n")
    path.unlink()
    rebuilt = Tokenizer.from_str(Checkpoint.open(native).tokenizer_json())
    for text in TEXTS:
        assert rebuilt.encode(text).ids == expected.encode(text).ids
        assert rebuilt.decode(rebuilt.encode(text).ids, skip_special_tokens=False) == text
    assert [rebuilt.token_to_id(token) for token in SPECIAL_TOKENS] == [
        expected.token_to_id(token) for token in SPECIAL_TOKENS
    ]


def test_tokenizer_equals_transformers(native: Path) -> None:
    theirs = transformers_module().AutoTokenizer.from_pretrained(native)
    ours = Tokenizer.from_str(Checkpoint.open(native).tokenizer_json())
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"]


def test_unusable_tokenizer(native: Path) -> None:
    (native / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is not a usable tokenizer"):
        Checkpoint.open(native).tokenizer_json()
    (native / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        Checkpoint.open(native).tokenizer_json()


def test_file_access(native: Path) -> None:
    assert Checkpoint.open(native).file("tokenizer.json") == native / "tokenizer.json"
    with pytest.raises(CheckpointError, match=r"vocab.json does not exist"):
        Checkpoint.open(native).file("vocab.json")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("layout", ["transformers", "authors"])
def test_names_map_both_ways(name: str, layout: Any) -> None:
    from vl3edge.models.tensor_names import canonical_name

    config: ModelConfig = preset(name, layout)
    for canonical in expected_shapes(config):
        assert canonical_name(stored_name(canonical, layout), layout) == canonical


def test_released_sizes() -> None:
    """Parameters of the 2B and 7B configurations: vision encoder, projector and Qwen2.5 together."""
    counts = {}
    for name in ("2b", "7b"):
        shapes = expected_shapes(preset(name))
        if preset(name).text.tie_word_embeddings:
            del shapes[LM_HEAD]
        counts[name] = sum(torch.Size(shape).numel() for shape in shapes.values())
    # Qwen2.5-1.5B and 7B have 1,543,714,304 and 7,615,616,512 parameters by their publisher's count.
    vision = sum(
        torch.Size(shape).numel()
        for part, shape in expected_shapes(preset("2b")).items()
        if part.startswith("model.vision_model.")
    )
    for name, decoder in (("2b", 1_543_714_304), ("7b", 7_615_616_512)):
        width = preset(name).text.hidden_size
        projector = 1152 * width + width + width * width + width
        assert counts[name] == decoder + vision + projector


def test_random_checkpoint_refuses_what_cannot_be(tmp_path: Path) -> None:
    config = preset("tiny")
    with pytest.raises(ValueError, match="no preset 'huge'; there are: tiny"):
        preset("huge")
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, not 'int8'"):
        write_random_checkpoint(tmp_path, config, dtype="int8")
    with pytest.raises(ValueError, match="shards must be between 1 and"):
        write_random_checkpoint(tmp_path, config, shards=0)
    with pytest.raises(ValueError, match="vocab_size must be at least the tokenizer's"):
        write_random_checkpoint(tmp_path, replace(config, text=replace(config.text, vocab_size=100)))


def test_seeds_differ() -> None:
    shape = (8, 8)
    assert torch.equal(random_tensor("a.weight", shape, 0), random_tensor("a.weight", shape, 0))
    assert not torch.equal(random_tensor("a.weight", shape, 0), random_tensor("a.weight", shape, 1))
    assert not torch.equal(random_tensor("a.weight", shape, 0), random_tensor("b.weight", shape, 0))
