"""Adapters are merged as PEFT merges them, to the last bit where the sums are the same; what does not fit is told."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import ALL_PARTS, Tensors, lora_model, peft_answering, peft_merged, peft_module, quietly, save_adapter
from safetensors.torch import load_file, save_file

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.errors import CheckpointError
from vl3edge.models.lora.adapter import WEIGHTS, LoraAdapter
from vl3edge.models.lora.merged import AdapterRequest, merge_adapters
from vl3edge.models.lora.settings import FILE_NAME as SETTINGS
from vl3edge.models.lora.settings import LoraSettings
from vl3edge.models.tensor_names import EMBEDDINGS, LM_HEAD, stored_name
from vl3edge.runtime.errors import ConfigError

Checkpoints = Callable[..., Path]
ATTENTION = ["q_proj", "v_proj"]


@pytest.fixture(scope="module", autouse=True)
def _peft() -> None:
    peft_module()


def merged(checkpoint: Path, *adapters: tuple[Path, float]) -> Checkpoint:
    return merge_adapters(Checkpoint.open(checkpoint), [LoraAdapter.open(*adapter) for adapter in adapters])


def assert_equal(ours: Checkpoint, theirs: Tensors, bound: float = 0.0) -> None:
    """All tensors, within `bound` of a tensor's largest value; some of them differ from the checkpoint's."""
    base = Checkpoint.open(ours.folder)
    names = {name for name in theirs if not name.endswith(("inv_freq", "position_ids"))}
    assert names - {LM_HEAD} == set(ours.names) - {LM_HEAD}
    changed = 0
    for name in names:
        value, expected = ours.tensor(name, torch.float32), theirs[name]
        difference = (value - expected).abs()
        where = f"{name}: max {difference.max()}, mean {difference.mean()}"
        assert float(difference.max()) <= bound * float(expected.abs().max()), where
        changed += not torch.equal(value, base.tensor(name, torch.float32))
    assert changed


# What a convolution's kernels or an embedding add is another order of the same sums.
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"target_modules": ATTENTION, "r": 4, "lora_alpha": 24}, 0.0),
    "every part": ({"target_modules": ALL_PARTS, "r": 6, "lora_alpha": 7}, 1e-6),
    "all-linear": ({"target_modules": "all-linear", "r": 3}, 0.0),
    "rslora": ({"target_modules": ALL_PARTS, "r": 12, "lora_alpha": 16, "use_rslora": True}, 1e-6),
    "dora": ({"target_modules": ALL_PARTS, "r": 5, "lora_alpha": 10, "use_dora": True}, 1e-6),
    "dora, rslora": ({"target_modules": ATTENTION, "r": 9, "use_dora": True, "use_rslora": True}, 1e-6),
    "patterns": (
        {
            "target_modules": ["q_proj", "fc1", "down_proj"],
            "r": 8,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, r"layers\.\d+\.mlp\.fc1": 5, "q_proj": 3},
            "alpha_pattern": {"down_proj": 31, "^model.vision_model.encoder.layers.1.self_attn.q_proj": 1},
        },
        0.0,
    ),
    "some layers": (
        {"target_modules": ATTENTION, "layers_to_transform": [1], "layers_pattern": "layers", "exclude_modules": "v"},
        0.0,
    ),
    "fan_in_fan_out": ({"target_modules": ATTENTION, "fan_in_fan_out": True}, 0.0),
    "biases of layers": ({"target_modules": ["q_proj", "fc1", "patch_embedding"], "bias": "lora_only"}, 1e-6),
    "all biases": ({"target_modules": ["readout.0"], "bias": "all", "modules_to_save": ["readout.2"]}, 0.0),
    "bias of B": ({"target_modules": ["readout.0", "q_proj"], "lora_bias": True, "lora_alpha": 20}, 0.0),
    "saved whole": ({"target_modules": ["q_proj"], "modules_to_save": ["projector", "post_layernorm"]}, 0.0),
    "head saved whole": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, 0.0),
    "embeddings saved whole": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, 0.0),
    "tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 300, 17]}, 0.0),
    "tokens by name": ({"target_modules": ["o_proj"], "trainable_token_indices": {"embed_tokens": [5]}}, 0.0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["tiny", "tiny-untied"])
def test_as_peft_merges(checkpoints: Checkpoints, tmp_path: Path, preset: str, kind: str) -> None:
    settings, bound = KINDS[kind]
    checkpoint = checkpoints(preset)
    adapter = save_adapter(checkpoint, tmp_path / "a", **settings)
    theirs = peft_merged(checkpoint, [(adapter, 1.0)])
    ours = merged(checkpoint, (adapter, 1.0))
    assert_equal(ours, theirs, bound)
    assert ours.config.text.tie_word_embeddings == torch.equal(theirs[EMBEDDINGS], theirs[LM_HEAD])


EMBEDDING_KINDS: dict[str, dict[str, Any]] = {
    "embeddings": {"target_modules": ["embed_tokens"], "r": 4},
    "head": {"target_modules": ["lm_head", "q_proj"], "r": 4, "use_rslora": True},
    "both": {"target_modules": ["embed_tokens", "lm_head"], "r": 3},
    "dora": {"target_modules": ["embed_tokens", "lm_head"], "r": 3, "use_dora": True},
}


@pytest.mark.parametrize("kind", EMBEDDING_KINDS)
@pytest.mark.parametrize("preset", ["tiny", "tiny-untied"])
def test_embeddings_and_head(checkpoints: Checkpoints, tmp_path: Path, preset: str, kind: str) -> None:
    """Tied ones are untied first, as PEFT advises: its merge into the shared tensor is not what was trained, which the
    last lines show."""
    checkpoint = checkpoints(preset)
    adapter = save_adapter(checkpoint, tmp_path / "a", **EMBEDDING_KINDS[kind])
    tied = preset == "tiny"
    with quietly():
        ours = merged(checkpoint, (adapter, 1.0))
    assert_equal(ours, peft_merged(checkpoint, [(adapter, 1.0)], untied=tied), 1e-6)
    assert not ours.config.text.tie_word_embeddings
    if tied:
        ids = torch.tensor([[5, 9, 200, 31]])
        with torch.inference_mode():
            trained = peft_answering(checkpoint, adapter)(input_ids=ids).logits
            text = peft_answering(checkpoint, adapter).merge_and_unload().model.language_model
            table = torch.nn.functional.embedding(ids, ours.tensor(EMBEDDINGS))
            logits = text(inputs_embeds=table).last_hidden_state @ ours.tensor(LM_HEAD).T
            spoilt = text(input_ids=ids).last_hidden_state @ text.embed_tokens.weight.T
        assert float((logits - trained).abs().max()) < 1e-4
        assert float((spoilt - trained).abs().max()) > 0.1


# Of a tied model: what is trained, and whether embeddings and head are one afterwards.
TIED_KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "embeddings": ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "head": ({"target_modules": ["lm_head", "q_proj"], "ensure_weight_tying": True}, True),
    "saved whole": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True}, True),
    "dora": ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True, "use_dora": True}, False),
    "tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3], "lm_head": [3]}}, True),
    "tokens apart": (
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3], "lm_head": [5]}},
        False,
    ),
    "tokens of the head": ({"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [5]}}, False),
    "tokens, head": ({"target_modules": ["lm_head"], "trainable_token_indices": [3, 9]}, False),
}


def tied_as_in_training(checkpoint: Path, adapter: Path) -> tuple[Checkpoint, bool]:
    """The merged checkpoint, whose embeddings and head are those that PEFT's model computes with; whether these equal
    each other."""
    with quietly():
        ours = merged(checkpoint, (adapter, 1.0))
    trained = peft_answering(checkpoint, adapter)
    with torch.inference_mode():
        table = trained.get_input_embeddings()(torch.arange(320))
        head = trained.get_output_embeddings()(torch.eye(table.shape[1])).T
    assert float((ours.tensor(EMBEDDINGS) - table).abs().max()) < 1e-6
    assert float((ours.tensor(LM_HEAD) - head).abs().max()) < 1e-6
    return ours, torch.equal(table, head)


@pytest.mark.parametrize("kind", TIED_KINDS)
def test_a_tie_is_as_in_training(checkpoints: Checkpoints, tmp_path: Path, kind: str) -> None:
    """As PEFT's model computes; its merge adds a low-rank change to the shared tensor twice."""
    settings, stays = TIED_KINDS[kind]
    checkpoint = checkpoints("tiny")
    adapter = save_adapter(checkpoint, tmp_path / "a", **settings)
    ours, same = tied_as_in_training(checkpoint, adapter)
    assert ours.config.text.tie_word_embeddings == stays == same
    assert not torch.equal(ours.tensor(LM_HEAD), Checkpoint.open(checkpoint).tensor(LM_HEAD))


def test_a_tie_that_came_apart_in_training(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """On a GPU the two adapters of a tie are trained apart; what was trained is what is merged."""
    checkpoint = checkpoints("tiny")
    adapter = save_adapter(checkpoint, tmp_path / "a", target_modules=["embed_tokens"], ensure_weight_tying=True)
    tensors = load_file(adapter / WEIGHTS)
    up, down = (tensors[f"base_model.model.lm_head.lora_{part}.weight"] for part in "BA")
    up += 0.05
    save_file(tensors, adapter / WEIGHTS)
    with pytest.warns(UserWarning, match="two matrices from now on"):
        ours = merged(checkpoint, (adapter, 1.0))
    assert not ours.config.text.tie_word_embeddings
    head = Checkpoint.open(checkpoint).tensor(LM_HEAD) + up @ down
    assert float((ours.tensor(LM_HEAD) - head).abs().max()) < 1e-6
    assert float((ours.tensor(EMBEDDINGS) - head).abs().max()) > 0.01


def test_several_with_weights(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """LoRA: the sum, as `add_weighted_adapter` makes it by concatenation. With DoRA: one after another."""
    checkpoint, peft = checkpoints("tiny"), peft_module()
    plain = save_adapter(checkpoint, tmp_path / "a", 1, target_modules=["q_proj", "readout.0"], r=4, lora_alpha=9)
    other = save_adapter(checkpoint, tmp_path / "b", 2, target_modules=[*ATTENTION, "fc1"], r=7, use_rslora=True)
    dora = save_adapter(checkpoint, tmp_path / "c", 3, target_modules=ALL_PARTS, r=2, use_dora=True)
    again = save_adapter(checkpoint, tmp_path / "d", 4, target_modules=ALL_PARTS, r=3, use_dora=True)
    for chosen in (
        [(plain, 0.25), (other, -1.5)],
        [(dora, 1.0), (again, 0.5)],
        [(plain, 2.0), (dora, 0.75), (other, 1.0)],
    ):
        assert_equal(merged(checkpoint, *chosen), peft_merged(checkpoint, chosen), 2e-6)
    with quietly():
        model = peft.PeftModel.from_pretrained(
            lora_model(checkpoint, r=1, target_modules=ATTENTION).unload(), plain, "a"
        )
        model.load_adapter(other, "b")
        model.add_weighted_adapter(["a", "b"], [0.25, -1.5], "sum", combination_type="cat")
        model.set_adapter("sum")
        summed = model.merge_and_unload(adapter_names=["sum"]).state_dict()
    assert_equal(merged(checkpoint, (plain, 0.25), (other, -1.5)), summed, 2e-6)
    backwards = merged(checkpoint, (again, 0.5), (dora, 1.0))
    with pytest.raises(AssertionError, match="max"):  # the order counts
        assert_equal(backwards, peft_merged(checkpoint, [(dora, 1.0), (again, 0.5)]), 2e-6)


@pytest.mark.parametrize("layout", ["transformers", "authors"])
@pytest.mark.parametrize("named_by", ["transformers", "authors"])
def test_names_of_either_layout_fit_either_checkpoint(
    checkpoints: Checkpoints, tmp_path: Path, layout: Any, named_by: Any
) -> None:
    """Also names that were not saved by PEFT, with the adapter's in them. Patterns are of the adapter's own names."""
    checkpoint = checkpoints("tiny")
    adapter = save_adapter(
        checkpoint, tmp_path / "a", target_modules=ALL_PARTS, r=4, use_dora=True, rank_pattern={"k_proj": 2}
    )
    theirs = peft_merged(checkpoint, [(adapter, 1.0)])
    prefix = "base_model.model."
    tensors = {
        prefix + stored_name(key.removeprefix(prefix), named_by): tensor
        for key, tensor in load_file(adapter / WEIGHTS).items()
    }
    if named_by == "authors":
        assert any(".mm_projector." in key for key in tensors)
        tensors = {
            key.replace("lora_A.", "lora_A.default.").replace("vector", "vector.default.weight"): tensor
            for key, tensor in tensors.items()
        }
    save_file(tensors, adapter / WEIGHTS)
    ours = merged(checkpoints("tiny", layout), (adapter, 1.0))
    assert ours.layout == layout
    assert_equal(ours, theirs, 1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_are_merged_in_float32(checkpoints: Checkpoints, tmp_path: Path, dtype: str) -> None:
    """As PEFT does with a base that is loaded in float32."""
    checkpoint = checkpoints("tiny", dtype=dtype)
    adapter = save_adapter(checkpoint, tmp_path / "a", target_modules=ALL_PARTS)
    halves = {key: tensor.to(getattr(torch, dtype)) for key, tensor in load_file(adapter / WEIGHTS).items()}
    save_file(halves, adapter / WEIGHTS)
    ours = merged(checkpoint, (adapter, 1.0))
    assert_equal(ours, peft_merged(checkpoint, [(adapter, 1.0)]), 1e-6)
    assert ours.tensor("model.language_model.norm.weight").dtype == getattr(torch, dtype)  # mapped, not copied


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_quarters_are_merged_in_float32(checkpoints: Checkpoints, tmp_path: Path, dtype: torch.dtype) -> None:
    """What is stored in 8 bits is what is merged; infinity and NaN are found in it, too."""
    checkpoint = checkpoints("tiny")
    quarters, plain = (save_adapter(checkpoint, tmp_path / n, target_modules=ATTENTION) for n in "ab")
    stored = {key: tensor.to(dtype) for key, tensor in load_file(plain / WEIGHTS).items()}
    save_file(stored, quarters / WEIGHTS)
    save_file({key: tensor.float() for key, tensor in stored.items()}, plain / WEIGHTS)
    ours = merged(checkpoint, (quarters, 1.0))
    assert_equal(ours, peft_merged(checkpoint, [(plain, 1.0)]))
    save_file(stored | {next(iter(stored)): torch.full((8, 96), float("nan")).to(dtype)}, quarters / WEIGHTS)
    refused(checkpoint, quarters, "holds NaN or infinity")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["lm_head", "k_proj"], "r": 4, "rank_pattern": {"embed_tokens": 2}},
        {"target_modules": ["embed_tokens"], "r": 3, "rank_pattern": {"lm_head": 5}, "alpha_pattern": {"lm_head": 40}},
        {"target_modules": ["embed_tokens"], "rank_pattern": {"lm_head": 5}, "use_dora": True, "use_rslora": True},
    ],
)
def test_a_tied_head_has_the_rank_of_the_embeddings(
    checkpoints: Checkpoints, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Whatever patterns say of its name; its scale is that of its own pattern, as PEFT's model computes."""
    checkpoint = checkpoints("tiny")
    adapter = save_adapter(checkpoint, tmp_path / "a", ensure_weight_tying=True, **settings)
    tied_as_in_training(checkpoint, adapter)


def test_requests() -> None:
    assert AdapterRequest.parse("runs/one:0.5") == AdapterRequest("runs/one", 0.5)
    assert AdapterRequest.parse("runs/one:-2") == AdapterRequest("runs/one", -2.0)
    for path in ("runs/one", "C:\\runs\\one", "a:b/c", "owner/name", "runs:", ":0.5"):
        assert AdapterRequest.parse(path) == AdapterRequest(path)
    assert AdapterRequest.parse("a:b:1e-1") == AdapterRequest("a:b", 0.1)
    for weight in ("nan", "inf", "-inf"):
        with pytest.raises(ConfigError, match="finite"):
            AdapterRequest.parse(f"one:{weight}")


def test_a_folder_may_end_like_a_weight(tmp_path: Path) -> None:
    (tmp_path / "run:2").mkdir()
    assert AdapterRequest.parse(f"{tmp_path}/run:2") == AdapterRequest(f"{tmp_path}/run:2")
    assert AdapterRequest.parse(f"{tmp_path}/run:2:3") == AdapterRequest(f"{tmp_path}/run:2", 3.0)


@pytest.fixture
def adapter(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    return save_adapter(checkpoints("tiny"), tmp_path / "adapter", target_modules=["q_proj", "readout.0"], r=4)


Q = "base_model.model.model.language_model.layers.1.self_attn.q_proj"


def drop(key: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.pop(key)


def put(key: str, *shape: int, value: float = 0.0) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({key: torch.full(shape, value)})


BAD_TENSORS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "half of a pair": (drop(f"{Q}.lora_B.weight"), r"lacks lora_B of model\.language_model\.layers\.1"),
    "the other half": (drop(f"{Q}.lora_A.weight"), "lacks lora_A of"),
    "another width": (
        put(f"{Q}.lora_A.weight", 4, 128),
        r"is \[4, 128\], not \[4, 96\]: the adapter was trained on an",
    ),
    "another rank": (put(f"{Q}.lora_B.weight", 128, 8), r"is \[128, 8\], not \[128, 4\]"),
    "a layer too many": (put(Q.replace("1", "9") + ".lora_A.weight", 4, 96), r"layers\.9.* fits no tensor of"),
    "another model's": (put("base_model.model.model.layers.x.lora_A.weight", 4, 9), "fits no tensor of"),
    "an unknown tensor": (put("base_model.model.extra.weight", 4), "extra.weight fits no tensor of"),
    "an unknown part": (put(f"{Q}.lora_E", 4), "lora_E fits no tensor of"),
    "a length of DoRA": (
        put(f"{Q}.lora_magnitude_vector", 128),
        "lora_magnitude_vector .*is not of what adapter_config",
    ),
    "not a number": (put(f"{Q}.lora_B.weight", 128, 4, value=float("nan")), "holds NaN or infinity"),
    "infinity": (put(f"{Q}.lora_A.weight", 4, 96, value=float("inf")), "holds NaN or infinity"),
    "twice": (put(f"{Q}.lora_A.default.weight", 4, 96), "two changes of one tensor"),
    "twice, once whole": (put(f"{Q}.weight", 128, 96), "two changes of one tensor"),
    "no tokens": (
        put("base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta", 2, 96),
        "lacks the tokens of .*embed_tokens",
    ),
    "another base": (
        put("base_model.model.model.language_model.embed_tokens.base_layer.weight", 320, 96, value=1.0),
        "is not that of .*trained on another model",
    ),
    "another vocabulary": (
        put("base_model.model.model.language_model.embed_tokens.base_layer.weight", 322, 96),
        r"is \[322, 96\], not \[320, 96\]",
    ),
    "whole numbers": (
        lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 96, dtype=torch.int64)}),
        "I64, not of fl",
    ),
    "nothing": (lambda tensors: tensors.clear(), "changes nothing"),
}


def refused(checkpoint: Path, adapter: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        merged(checkpoint, (adapter, 1.0))
    assert "\n" not in str(caught.value)
    assert str(adapter) in str(caught.value)


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_do_not_fit(checkpoints: Checkpoints, adapter: Path, name: str) -> None:
    change, match = BAD_TENSORS[name]
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)
    refused(checkpoints("tiny"), adapter, match)


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "IA3": ({"peft_type": "IA3"}, "peft_type is IA3: only LoRA"),
    "prompts": ({"peft_type": "PROMPT_TUNING"}, "is PROMPT_TUNING: only LoRA"),
    "AdaLoRA": ({"peft_type": "ADALORA"}, "is ADALORA: only LoRA"),
    "no kind": ({"peft_type": None}, "peft_type is missing"),
    "start": ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base"),
    "start of OLoRA": ({"init_lora_weights": "olora"}, "'olora', which changes the base"),
    "activated": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
    "groups": ({"use_qalora": True}, "use_qalora is set"),
    "repeated layers": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is set"),
    "parameters": ({"target_parameters": ["q_proj.weight"]}, "target_parameters is set"),
    "of tomorrow": ({"use_something_new": True}, "use_something_new is set"),
    "rank": ({"r": 0}, "r must be at least 1"),
    "text": ({"r": "4"}, "r must be a whole number"),
    "another rank": ({"rank_pattern": {"q_proj": 5}}, r"not \[5, "),
    "rank of no number": ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern must give whole numbers"),
    "no pattern": ({"alpha_pattern": {"(": 5}}, "holds a pattern that is none"),
    "alpha of no number": ({"alpha_pattern": {"q_proj": None}}, "gives 'q_proj' no number"),
    "lengths": ({"use_dora": True}, "lacks lora_magnitude_vector of"),
    "saved elsewhere": (
        {"modules_to_save": ["projector"]},
        "lacks model.projector.readout.*, of projector in modules_to",
    ),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_that_cannot_be_merged(checkpoints: Checkpoints, adapter: Path, name: str) -> None:
    values, match = BAD_SETTINGS[name]
    file = adapter / SETTINGS
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    refused(checkpoints("tiny"), adapter, match)


def test_an_adapter_of_another_size(checkpoints: Checkpoints, adapter: Path) -> None:
    refused(checkpoints("tiny-128"), adapter, r"the adapter was trained on another model than")


def test_missing_files(checkpoints: Checkpoints, adapter: Path) -> None:
    checkpoint = checkpoints("tiny")
    whole = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    refused(checkpoint, adapter, "is damaged or not a safetensors file")
    (adapter / WEIGHTS).unlink()
    refused(checkpoint, adapter, f"{WEIGHTS} does not exist")
    (adapter / "adapter_model.bin").write_bytes(b"x")
    refused(checkpoint, adapter, "is a pickle, and unpickling can run any code")
    (adapter / SETTINGS).unlink()
    refused(checkpoint, adapter, f"{SETTINGS} does not exist")
    shutil.rmtree(adapter)
    refused(checkpoint, adapter, "does not exist")
    adapter.write_text("x")
    refused(checkpoint, adapter, "is a file; give the adapter's folder")


def test_what_was_trained_beside_an_adapter_is_not_left_out(checkpoints: Checkpoints, adapter: Path) -> None:
    (adapter / "non_lora_trainables.bin").write_bytes(b"x")
    refused(checkpoints("tiny"), adapter, r"non_lora_trainables\.bin is a pickle")


def test_weights_beside_an_adapter_are_not_left_out(checkpoints: Checkpoints, adapter: Path) -> None:
    """As some trainers leave an encoder that was trained whole."""
    save_file({"visual.weight": torch.zeros(2)}, adapter / "vit.safetensors")
    refused(checkpoints("tiny"), adapter, r"vit\.safetensors would be left out")


def test_what_was_trained_beside_an_adapter_of_the_hub_is_not_left_out(
    checkpoints: Checkpoints, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub client is replaced by one that fetches what it is asked for of a folder."""
    (adapter / "non_lora_trainables.bin").write_bytes(b"x")

    def snapshot_download(hub_id: str, allow_patterns: list[str], **options: Any) -> str:
        names = [file.name for file in adapter.iterdir()]
        wanted = {name for pattern in allow_patterns for name in fnmatch.filter(names, pattern)}
        shutil.copytree(adapter, fetched := adapter.parent / "fetched", ignore=lambda _, all_: {*all_} - wanted)
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=r"non_lora_trainables\.bin is a pickle"):
        LoraAdapter.open("owner/adapter")


def test_two_adapters_cannot_store_one_module(checkpoints: Checkpoints, adapter: Path, tmp_path: Path) -> None:
    checkpoint = checkpoints("tiny")
    whole = save_adapter(checkpoint, tmp_path / "w", target_modules=["k_proj"], modules_to_save=["readout.0"])
    for order in ([(whole, 1.0), (adapter, 1.0)], [(adapter, 1.0), (whole, 1.0)], [(whole, 1.0), (whole, 1.0)]):
        with pytest.raises(CheckpointError, match=r"both change model\.projector\.readout\.0"):
            merged(checkpoint, *order)


def test_what_an_adapter_says_of_itself(checkpoints: Checkpoints, adapter: Path) -> None:
    (spec,) = merged(checkpoints("tiny"), (adapter, 0.5)).adapters
    assert (spec.name, spec.weight, len(spec.sha256)) == ("adapter", 0.5, 64)
    assert LoraAdapter.open(f"{adapter}/.").spec.name == "adapter"
    assert LoraSettings.read(adapter / SETTINGS).rank == 4
    assert Checkpoint.open(checkpoints("tiny")).adapters == ()
    assert merge_adapters(checkpoint := Checkpoint.open(checkpoints("tiny")), []) is checkpoint
