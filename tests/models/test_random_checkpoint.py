"""Random checkpoints behave as real ones: in transformers, with both prompt formats, and when text is
generated.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from reference import (
    VisualInput,
    block_major_patches,
    generate_from_visuals,
    load_processor,
    load_reference,
    reference_generate,
)

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.synthetic.random import main, preset, write_random_checkpoint
from vl3edge.models.synthetic.random_files import AUTHORS_TEMPLATE, TRANSFORMERS_TEMPLATE

QUESTION = {"type": "text", "text": "What is the cat doing?"}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("native"), preset("tiny"), seed=1)


def clip(rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Three frames of noise, of which the second changes in its first 28 × 28 pixels and the third not at
    all.
    """
    frame = np.random.default_rng(0).integers(0, 256, (rows * 28, columns * 28, 3), dtype=np.uint8)
    frames = np.stack([frame, frame, frame])
    frames[1:, :28, :28] = 7
    return frames


def counted(prompt: str) -> str:
    return re.sub(r"(<\|\w+_pad\|>)\1*", lambda m: f"{m[1]}×{len(m[0]) // len(m[1])}", prompt)


def test_transformers_prompt(native: Path) -> None:
    """The layout that transformers' processor makes of the template, with pruned tokens gone."""
    content = [
        {"type": "video", "video": clip(3, 4), "timestamps": [0.0, 1.0, 2.46]},
        {"type": "image", "image": clip(2, 2)[0]},
        QUESTION,
    ]
    run = reference_generate(native, [{"role": "user", "content": content}], resize=False)
    assert counted(run.prompt) == (
        "<|im_start|>user\nTime 0.0s:<|video_pad|>×12,Time 1.0s:<|video_pad|>×1,Time 2.5s:<|video_pad|>×1\n"
        "<|image_pad|>×16\nWhat is the cat doing?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_both_ways_to_the_reference_agree(native: Path) -> None:
    """Our patches are transformers', and generating from visuals equals generating from its processor's
    tensors.
    """
    frames, picture = clip(3, 4), clip(2, 2)[:1]
    content = [
        {"type": "image", "image": picture[0]},
        {"type": "video", "video": frames, "timestamps": [0, 1, 2]},
        QUESTION,
    ]
    model, config = load_reference(native), Checkpoint.open(native).config
    run = reference_generate(native, [{"role": "user", "content": content}], resize=False, model=model)
    for name, pixels, merge_size in (("pixel_values", picture, 1), ("pixel_values_videos", frames, 2)):
        difference = np.abs(run.inputs[name] - block_major_patches(pixels, config, merge_size))
        assert difference.max() < 1e-6, f"max {difference.max():.2e}, mean {difference.mean():.2e}"
    keep = run.inputs["video_compression_mask"]
    assert keep.reshape(3, 12).sum(axis=1).tolist() == [12, 1, 1]
    visuals = [VisualInput(picture, 1), VisualInput(frames, 2, keep)]
    assert generate_from_visuals(model, config, run.prompt_ids, visuals) == run.new_ids


@pytest.mark.parametrize("layout", ["transformers", "authors"])
@pytest.mark.parametrize("name", ["tiny", "tiny-untied", "tiny-128"])
def test_generated_tokens_vary(tmp_path: Path, name: str, layout: Any) -> None:
    """A model stuck on one token would agree with any other model stuck on it."""
    folder = write_random_checkpoint(tmp_path, preset(name, layout), seed=3)
    model, config = load_reference(folder), Checkpoint.open(folder).config
    model.generation_config.eos_token_id = None
    new = generate_from_visuals(model, config, [5, 9, 30, 77, 120], [])
    assert len(new) == 32
    assert len(set(new)) >= 8, new


def test_processor_settings_reach_transformers(native: Path) -> None:
    processor, config = load_processor(native), preset("tiny")
    assert processor.image_token_id == config.image_token_id
    assert processor.video_token_id == config.video_token_id
    assert processor.video_processor.fps == config.fps
    assert processor.chat_template == TRANSFORMERS_TEMPLATE


def render(messages: list[dict[str, Any]], **variables: Any) -> str:
    return jinja2.Environment().from_string(AUTHORS_TEMPLATE).render(messages=messages, **variables)


def test_authors_template() -> None:
    video = {"type": "video", "num_frames": 3, "timestamps": [0.0, 1.0, 12.349]}
    messages = [
        {"role": "user", "content": [{"type": "image"}, video, QUESTION]},
        {"role": "assistant", "content": "It sits."},
    ]
    turn = (
        "<|im_start|>user\n<image>\nTime 0.0s:<image>,Time 1.0s:<image>,Time 12.3s:<image>\n"
        "What is the cat doing?<|im_end|>\n<|im_start|>assistant\nIt sits.<|im_end|>\n"
    )
    assert render(messages) == turn
    assert render(messages, add_generation_prompt=True) == f"{turn}<|im_start|>assistant\n"
    assert render(messages, add_system_prompt=True).startswith("<|im_start|>system\n")
    assert render(messages, image_token="<x>") == turn.replace("<image>", "<x>")


def test_authors_template_streams() -> None:
    video = {"type": "video", "num_frames": 2, "timestamps": [3.0, 4.0]}
    assert render([{"role": "stream", "content": [video]}]) == (
        "<|stream_start|>stream\nTime 3.0s: <image>\nTime 4.0s: <image>\n<|stream_end|>\n"
    )


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "tiny",
        str(tmp_path / "new"),
        "--layout",
        "authors",
        "--seed",
        "7",
        "--dtype",
        "bfloat16",
        "--shards",
        "2",
    ]
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""
    checkpoint = Checkpoint.open(tmp_path / "new")
    assert checkpoint.layout == "authors"
    assert len(list((tmp_path / "new").glob("*.safetensors"))) == 2
    assert str(checkpoint.tensor("lm_head.weight").dtype) == "torch.bfloat16"
