"""Configurations are read as the classes they were written for read them; everything else is refused by
name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference import load_processor, transformers_module

from vl3edge.models.config import MediaProcessing
from vl3edge.models.config_reader import read_config
from vl3edge.models.errors import CheckpointError
from vl3edge.models.synthetic.random import preset
from vl3edge.models.synthetic.random_files import write_files

Change = Callable[[dict[str, Any]], Any]


def edit(folder: Path, name: str, change: Change) -> None:
    """Applies a change to one JSON file; a file that is not there starts empty."""
    path = folder / name
    values = json.loads(path.read_text()) if path.is_file() else {}
    change(values)
    path.write_text(json.dumps(values))


@pytest.fixture
def native(tmp_path: Path) -> Path:
    write_files(tmp_path, preset("tiny"), "float32")
    return tmp_path


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    write_files(tmp_path, preset("tiny-untied", "authors"), "float32")
    return tmp_path


def without_name(config: Any) -> Any:
    return {key: value for key, value in vars(config).items() if key != "name"}


@pytest.mark.parametrize("name", ["tiny", "tiny-untied", "2b", "7b"])
@pytest.mark.parametrize("layout", ["transformers", "authors"])
def test_what_is_written_is_read(name: str, layout: Any, tmp_path: Path) -> None:
    config = preset(name, layout)
    write_files(tmp_path, config, "float32")
    assert without_name(read_config(tmp_path)) == without_name(config)


def test_model_defaults_are_those_of_transformers(native: Path) -> None:
    """With every optional key gone, each value equals the attribute of transformers' own configuration."""
    edit(native, "config.json", lambda c: (c.clear(), c.update(model_type="video_llama_3")))
    # Qwen2's 32 heads and transformers' default patch of 16 are valid together; nothing needs to be given.
    edit(native, "config.json", lambda c: c.update(text_config={"model_type": "qwen2"}, vision_config={}))
    for file in ("preprocessor_config.json", "video_preprocessor_config.json"):
        edit(native, file, lambda c: c.update(patch_size=16))
    config = read_config(native)
    expected = transformers_module().VideoLlama3Config.from_pretrained(native)
    vision, text = expected.vision_config, expected.text_config
    assert (config.image_token_id, config.video_token_id) == (expected.image_token_id, expected.video_token_id)
    assert config.text.tie_word_embeddings == expected.tie_word_embeddings
    for ours, theirs, names in (
        (config.vision, vision, ("hidden_size", "intermediate_size", "patch_size", "num_channels", "hidden_act")),
        (config.vision, vision, ("layer_norm_eps",)),
        (config.text, text, ("hidden_size", "intermediate_size", "vocab_size", "rms_norm_eps")),
        (config.text, text, ("max_position_embeddings",)),
    ):
        for name in names:
            assert getattr(ours, name) == getattr(theirs, name), name
    assert config.vision.num_layers == vision.num_hidden_layers
    assert config.vision.num_heads == vision.num_attention_heads
    assert config.vision.rope_theta == vision.rope_parameters["rope_theta"]
    assert config.text.num_layers == text.num_hidden_layers
    assert config.text.num_heads == text.num_attention_heads
    assert config.text.num_kv_heads == text.num_key_value_heads
    assert config.text.rope_theta == text.rope_parameters["rope_theta"]


def assert_processing_equals(folder: Path) -> None:
    """What is read equals what transformers' processor is set to."""
    config, processor = read_config(folder), load_processor(folder)
    for ours, theirs in (
        (config.image, processor.image_processor),
        (config.video, processor.video_processor),
    ):
        size = theirs.size
        expected = MediaProcessing(theirs.merge_size, "transformers", size["shortest_edge"], size["longest_edge"])
        assert ours == expected
        assert config.image_mean == tuple(theirs.image_mean)
        assert config.image_std == tuple(theirs.image_std)
    assert config.max_frames == processor.video_processor.max_frames
    assert config.use_token_compression == processor.video_processor.use_token_compression


def test_processor_defaults_are_those_of_transformers(native: Path) -> None:
    for name, kind in (("preprocessor", "Image"), ("video_preprocessor", "Video")):
        key = f"{kind.lower()}_processor_type"
        (native / f"{name}_config.json").write_text(json.dumps({key: f"VideoLlama3{kind}Processor"}))
    assert_processing_equals(native)


def test_pixel_limits_of_older_files(native: Path) -> None:
    edit(native, "preprocessor_config.json", lambda c: c.update(min_pixels=784, max_pixels=78400))
    edit(native, "video_preprocessor_config.json", lambda c: (c.pop("size"), c.update(max_pixels=313600)))
    assert read_config(native).image == MediaProcessing(1, "transformers", 784, 78400)
    assert_processing_equals(native)


def test_nested_processors_win(native: Path) -> None:
    """transformers 5 saves both processors inside processor_config.json."""
    load_processor(native).save_pretrained(native / "saved")
    for name in ("config.json", "generation_config.json"):
        (native / "saved" / name).write_text((native / name).read_text())
    edit(native / "saved", "processor_config.json", lambda c: c["video_processor"].update(merge_size=4))
    assert sorted(path.name for path in (native / "saved").glob("*processor_config.json")) == ["processor_config.json"]
    assert read_config(native / "saved").video.merge_size == 4
    assert_processing_equals(native / "saved")


def test_one_old_file_serves_images_and_videos(native: Path) -> None:
    (native / "video_preprocessor_config.json").unlink()
    assert read_config(native).video.maximum == read_config(native).image.maximum


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 5e5, "rope_scaling": None, "rope_parameters": None},
        {"rope_theta": 1.0, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_parameters": None, "rope_scaling": {"type": "default"}},
    ],
)
def test_rope_theta_wherever_it_is(native: Path, values: dict[str, Any]) -> None:
    edit(native, "config.json", lambda c: c["text_config"].update(values))
    expected = transformers_module().VideoLlama3Config.from_pretrained(native).text_config.rope_parameters
    assert read_config(native).text.rope_theta == expected["rope_theta"] == 5e5


def test_tie_at_either_level(native: Path) -> None:
    edit(native, "config.json", lambda c: c.update(tie_word_embeddings=False))
    assert read_config(native).text.tie_word_embeddings is False
    edit(native, "config.json", lambda c: c["text_config"].update(tie_word_embeddings=True))
    assert transformers_module().VideoLlama3Config.from_pretrained(native).tie_word_embeddings is True
    assert read_config(native).text.tie_word_embeddings is True


def test_authors_defaults(authors: Path) -> None:
    """Those of their processor: 16 to 16384 tokens, 1 frame per second, at most 128, merge sizes 1 and 2."""
    (authors / "processor_config.json").unlink()
    for key in ("min_tokens", "max_tokens", "image_mean", "image_std"):
        edit(authors, "preprocessor_config.json", lambda c, key=key: c.pop(key))
    edit(authors, "config.json", lambda c: c.pop("use_token_compression"))
    config = read_config(authors)
    assert config.image == MediaProcessing(1, "authors", 16, 16384)
    assert config.video == MediaProcessing(2, "authors", 16, 16384)
    assert (config.fps, config.max_frames, config.use_token_compression) == (1.0, 128, True)
    assert config.image_mean == config.image_std == (0.5, 0.5, 0.5)
    assert config.image_token_id == config.video_token_id


@pytest.mark.parametrize(("stored", "expected"), [(7, (7,)), ([7, 9], (7, 9)), (None, (5,))])
def test_end_tokens(authors: Path, stored: Any, expected: tuple[int, ...]) -> None:
    edit(authors, "config.json", lambda c: c.update(eos_token_id=5))
    edit(authors, "generation_config.json", lambda c: c.update(eos_token_id=stored))
    assert read_config(authors).eos_token_ids == expected


def test_hub_name_is_kept(authors: Path) -> None:
    assert read_config(authors).name == authors.name
    edit(authors, "config.json", lambda c: c.update(_name_or_path="DAMO-NLP-SG/VideoLLaMA3-2B"))
    assert read_config(authors).name == "DAMO-NLP-SG/VideoLLaMA3-2B"
    edit(authors, "config.json", lambda c: c.update(_name_or_path="/home/someone/run"))
    assert read_config(authors).name == authors.name


def test_quantization_is_kept(authors: Path) -> None:
    assert read_config(authors).quantization is None
    (authors / "quantize_config.json").write_text('{"bits": 4, "group_size": 32}')
    assert read_config(authors).quantization == {"bits": 4, "group_size": 32}
    edit(authors, "config.json", lambda c: c.update(quantization_config={"quant_method": "gptq", "bits": 4}))
    assert read_config(authors).quantization == {"quant_method": "gptq", "bits": 4}


REFUSED: dict[str, tuple[str, Change, str]] = {
    "model type": ("config.json", lambda c: c.update(model_type="llava"), "config.json: model_type is 'llava'"),
    "no model type": ("config.json", lambda c: c.pop("model_type"), "config.json: model_type is missing"),
    "no text": ("config.json", lambda c: c.pop("text_config"), "config.json: text_config is missing"),
    "text is a list": ("config.json", lambda c: c.update(text_config=[]), "text_config must be an object"),
    "other decoder": (
        "config.json",
        lambda c: c["text_config"].update(model_type="llama"),
        r'text_config.model_type is "llama"; supported: "qwen2"',
    ),
    "string size": (
        "config.json",
        lambda c: c["vision_config"].update(hidden_size="80"),
        'vision_config.hidden_size must be a whole number, not "80"',
    ),
    "boolean size": (
        "config.json",
        lambda c: c["text_config"].update(num_hidden_layers=True),
        "text_config.num_hidden_layers must be a whole number, not true",
    ),
    "zero": (
        "config.json",
        lambda c: c["text_config"].update(vocab_size=0),
        "text_config.vocab_size must be at least 1",
    ),
    "scaled rope": (
        "config.json",
        lambda c: c["text_config"].update(rope_parameters={"rope_type": "yarn", "factor": 4.0}),
        r'text_config.rope_parameters.rope_type is "yarn"; supported: "default"',
    ),
    "scaled rope, older": (
        "config.json",
        lambda c: c["text_config"].update(rope_scaling={"type": "linear", "factor": 2.0}),
        r'text_config.rope_scaling.type is "linear"',
    ),
    "sliding window": (
        "config.json",
        lambda c: c["text_config"].update(use_sliding_window=True),
        "text_config.use_sliding_window is true",
    ),
    "activation": (
        "config.json",
        lambda c: c["vision_config"].update(hidden_act="quick_gelu"),
        'vision_config.hidden_act is "quick_gelu"; supported: "gelu_pytorch_tanh", "gelu"',
    ),
    "uneven heads": (
        "config.json",
        lambda c: c["vision_config"].update(num_attention_heads=3),
        r"vision_config.num_attention_heads \(3\)",
    ),
    "uneven kv heads": (
        "config.json",
        lambda c: c["text_config"].update(num_key_value_heads=3),
        r"text_config.num_key_value_heads \(3\) must divide the 4",
    ),
    "grey": ("config.json", lambda c: c["vision_config"].update(num_channels=1), "num_channels must be 3"),
    "resampling": (
        "preprocessor_config.json",
        lambda c: c.update(resample=2),
        "preprocessor_config.json: resample is 2; supported: 3",
    ),
    "no normalization": (
        "preprocessor_config.json",
        lambda c: c.update(do_normalize=False),
        "do_normalize is false; supported: true",
    ),
    "rescale": (
        "video_preprocessor_config.json",
        lambda c: c.update(rescale_factor=1 / 256),
        "rescale_factor must be 1/255",
    ),
    "temporal patches": (
        "video_preprocessor_config.json",
        lambda c: c.update(temporal_patch_size=2),
        "temporal_patch_size is 2; supported: 1",
    ),
    "patch": (
        "preprocessor_config.json",
        lambda c: c.update(patch_size=16),
        r"patch_size differs from the vision encoder's \(14\)",
    ),
    "two means": (
        "video_preprocessor_config.json",
        lambda c: c.update(image_mean=[0.1, 0.1, 0.1]),
        "image_mean and image_std differ from those of images",
    ),
    "short std": (
        "preprocessor_config.json",
        lambda c: c.update(image_std=[0.5, 0.5]),
        r"image_std must be 3 numbers, not \[0.5, 0.5\]",
    ),
    "zero std": (
        "preprocessor_config.json",
        lambda c: c.update(image_std=[0.5, 0, 0.5]),
        "image_std must be above zero",
    ),
    "half a size": (
        "preprocessor_config.json",
        lambda c: c.update(size={"shortest_edge": 784}),
        "size.longest_edge is missing",
    ),
    "end token": (
        "generation_config.json",
        lambda c: c.update(eos_token_id="<|im_end|>"),
        "generation_config.json: eos_token_id must be one or several token ids",
    ),
    "no end token": (
        "generation_config.json",
        lambda c: c.clear(),
        "eos_token_id is in neither config.json and generation_config.json",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_file_and_key(native: Path, case: str) -> None:
    file, change, message = REFUSED[case]
    edit(native, file, change)
    with pytest.raises(CheckpointError, match=message):
        read_config(native)


@pytest.mark.parametrize("key", ["vision_encoder_config", "image_token_index"])
def test_authors_keys_without_default(authors: Path, key: str) -> None:
    edit(authors, "config.json", lambda c: c.pop(key))
    with pytest.raises(CheckpointError, match=f"config.json: {key} is missing"):
        read_config(authors)


def test_unset_placeholder_is_refused(authors: Path) -> None:
    """-1 is what the authors' class defaults to before a tokenizer is known."""
    edit(authors, "config.json", lambda c: c.update(image_token_index=-1))
    with pytest.raises(CheckpointError, match="image_token_index must be at least 0, not -1"):
        read_config(authors)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_unreadable_json(native: Path, text: str) -> None:
    (native / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(native)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_missing_file(native: Path, name: str) -> None:
    (native / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_config(native)
