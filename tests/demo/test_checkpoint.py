"""The committed checkpoint: transformers loads it, and its own processor and `generate` give the right answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from vl3edge.models.demo.clips import write_clip
from vl3edge.models.demo.evaluate import CHECKPOINT, evaluate, summarize
from vl3edge.models.demo.predictors import TorchPredictor
from vl3edge.models.demo.questions import Question, ask_image, ask_video
from vl3edge.models.demo.stock import VideoLlama3ForConditionalGeneration, VideoLlama3Processor
from vl3edge.runtime.media.video import read_video

VIDEO_SEEDS = range(100, 102)


@pytest.fixture(scope="module")
def stock() -> tuple[VideoLlama3ForConditionalGeneration, VideoLlama3Processor]:
    """transformers' model and processor, from the committed files alone."""
    model = VideoLlama3ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return model, VideoLlama3Processor.from_pretrained(CHECKPOINT)


def _generate(
    stock: tuple[VideoLlama3ForConditionalGeneration, VideoLlama3Processor],
    content: list[dict],
    **media: object,
) -> str:
    model, processor = stock
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=[text], return_tensors="pt", **media)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    return str(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])


def test_files_are_those_of_the_released_layout_and_small() -> None:
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert names == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
    assert (CHECKPOINT / "model.safetensors").stat().st_size < 4_000_000
    assert json.loads((CHECKPOINT / "config.json").read_text())["model_type"] == "video_llama_3"
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_transformers_answers_held_out_clips(
    stock: tuple[VideoLlama3ForConditionalGeneration, VideoLlama3Processor], tmp_path: Path
) -> None:
    wrong = []
    for seed in VIDEO_SEEDS:
        scene = write_clip(tmp_path / "clip.mp4", seed)
        frames = read_video(tmp_path / "clip.mp4").frames
        metadata = {"fps": 1, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
        for kind in ("caption", "stop"):
            question = ask_video(scene, kind)
            content = [{"type": "video"}, {"type": "text", "text": question.text}]
            answer = _generate(stock, content, videos=[frames], video_metadata=[metadata])
            if answer != question.answer:
                wrong.append((seed, question, answer))
        question = ask_image(scene, "caption")
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        answer = _generate(stock, content, images=[frames[0]])
        if answer != question.answer:
            wrong.append((seed, question, answer))
    assert not wrong


def test_evaluation_of_a_few_clips_is_near_the_reported_figures() -> None:
    predictor = TorchPredictor(CHECKPOINT)
    lines = summarize(list(evaluate(predictor, predictor.tokenizer, range(200, 206))))
    assert lines["[captions]"].exact >= 0.9
    assert lines["[attributes]"].exact >= 0.95
    assert lines["[times, with event]"].exact >= 0.9
    assert lines["[images]"].exact >= 0.95
    assert lines["[all]"].nll < 0.05


def test_greedy_text_of_a_wrong_expectation(
    stock: tuple[VideoLlama3ForConditionalGeneration, VideoLlama3Processor], tmp_path: Path
) -> None:
    """Asked to predict a wrong answer, the predictor says what the model really answers, as transformers does."""
    write_clip(tmp_path / "clip.mp4", 100)
    predictor = TorchPredictor(CHECKPOINT)
    questions = [Question("caption", "Describe this video.", "No.")]
    predictions = predictor.predict(tmp_path / "clip.mp4", questions)
    frames = read_video(tmp_path / "clip.mp4").frames
    metadata = {"fps": 1, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
    for question, prediction in zip(questions, predictions, strict=True):
        content = [{"type": "video"}, {"type": "text", "text": question.text}]
        expected = _generate(stock, content, videos=[frames], video_metadata=[metadata])
        assert prediction.text == expected
        assert prediction.text != question.answer


def test_threshold_reaches_the_pruner(tmp_path: Path) -> None:
    scene = write_clip(tmp_path / "clip.mp4", 101)
    question = ask_video(scene, "caption")
    logits = [
        TorchPredictor(CHECKPOINT, threshold).predict(tmp_path / "clip.mp4", [question])[0].logits
        for threshold in (0.1, None)
    ]
    likely = [np.take_along_axis(x, x.argmax(-1)[:, None], -1) for x in logits]
    assert np.abs(likely[0] - likely[1]).max() > 0, "pruning had no effect at all"
