"""Training sequences are exactly the prompts of the chat template and of transformers' processor."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from vl3edge.models.demo.answers import answer_logits
from vl3edge.models.demo.clips import diff_prune, make_clip
from vl3edge.models.demo.model import encode_frames, make_config, make_model, merge_features, patchify
from vl3edge.models.demo.questions import ask_image, ask_video
from vl3edge.models.demo.sequences import EVENTS, MOVES, NO_LABEL, SequenceBuilder, collate, encode_clip, frame_labels
from vl3edge.models.demo.stock import VideoLlama3ForConditionalGeneration, VideoLlama3Processor
from vl3edge.models.demo.tokenizer import make_processor, save_processor, special_ids, token_id, train_tokenizer

TOKENIZER = train_tokenizer()
SEED = 11


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> VideoLlama3Processor:
    """As transformers loads it from the files."""
    folder = tmp_path_factory.mktemp("processor")
    save_processor(make_processor(TOKENIZER), folder)
    return VideoLlama3Processor.from_pretrained(folder)


@pytest.fixture(scope="module")
def model() -> VideoLlama3ForConditionalGeneration:
    """Random weights, large enough that every part matters to the logits."""
    model = make_model(make_config(special_ids(TOKENIZER)), seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def _video_inputs(processor: VideoLlama3Processor, frames: np.ndarray, messages: list[dict], generate: bool) -> dict:
    text = processor.apply_chat_template(messages, add_generation_prompt=generate, tokenize=False)
    metadata = {"fps": 1, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
    return processor(text=[text], videos=[frames], video_metadata=[metadata], return_tensors="pt")


def test_video_prompt_and_logits_equal_transformers(
    processor: VideoLlama3Processor, model: VideoLlama3ForConditionalGeneration
) -> None:
    clip = make_clip(SEED)
    keep = diff_prune(clip.frames, 0.1)
    question = ask_video(clip.scene, "caption")
    builder = SequenceBuilder(TOKENIZER)
    with torch.no_grad():
        features = merge_features(encode_frames(model, torch.from_numpy(clip.frames)))
        sequence = builder.video(features, keep, [question])
        messages = [
            {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.text}]},
            {"role": "assistant", "content": question.answer},
        ]
        inputs = _video_inputs(processor, clip.frames, messages, generate=False)
        line_end = TOKENIZER.encode("\n").ids  # the template ends the answer's line, a training sequence does not
        assert inputs["input_ids"][0].tolist() == sequence.ids + line_end
        assert 0 < keep.sum() < keep.size
        reference = model(**inputs).logits[0, :-1][torch.tensor(sequence.targets).ne(NO_LABEL)]
        ours, targets, _ = answer_logits(model, collate([sequence]), builder)
    difference = (ours - reference).abs()
    assert difference.max() < 1e-4, f"max {difference.max():.2e}, mean {difference.mean():.2e}"
    assert TOKENIZER.decode(targets.tolist(), skip_special_tokens=False) == question.answer + "<|im_end|>"


def test_image_prompt_and_logits_equal_transformers(
    processor: VideoLlama3Processor, model: VideoLlama3ForConditionalGeneration
) -> None:
    clip = make_clip(SEED)
    question = ask_image(clip.scene, "caption")
    builder = SequenceBuilder(TOKENIZER)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]},
        {"role": "assistant", "content": question.answer},
    ]
    text = processor.apply_chat_template(messages, tokenize=False)
    with torch.no_grad():
        inputs = processor(text=[text], images=[clip.frames[0]], return_tensors="pt")
        sequence = builder.image(encode_frames(model, torch.from_numpy(clip.frames[:1]))[0], [question])
        assert inputs["input_ids"][0, :-1].tolist() == sequence.ids
        reference = model(**inputs).logits[0, :-1][torch.tensor(sequence.targets).ne(NO_LABEL)]
        ours, _, _ = answer_logits(model, collate([sequence]), builder)
    difference = (ours - reference).abs()
    assert difference.max() < 1e-4, f"max {difference.max():.2e}, mean {difference.mean():.2e}"


def test_generation_prompt_is_what_an_answer_follows(processor: VideoLlama3Processor) -> None:
    clip = make_clip(SEED)
    question = ask_video(clip.scene, "stop")
    features = torch.zeros(len(clip.frames), 4, 4, 96)
    sequence = SequenceBuilder(TOKENIZER).video(features, diff_prune(clip.frames, 0.1), [question])
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.text}]}]
    prompt = _video_inputs(processor, clip.frames, messages, generate=True)["input_ids"][0].tolist()
    first = next(i for i, target in enumerate(sequence.targets) if target != NO_LABEL)
    assert sequence.ids[: first + 1] == prompt


def test_turns_are_those_of_the_template(processor: VideoLlama3Processor) -> None:
    clip = make_clip(SEED)
    questions = [ask_video(clip.scene, kind) for kind in ("colour", "stop", "direction")]
    features = torch.zeros(len(clip.frames), 4, 4, 96)
    sequence = SequenceBuilder(TOKENIZER).video(features, diff_prune(clip.frames, 0.1), questions, chain=True)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": questions[0].text}]}]
    for before, after in itertools.pairwise(questions):
        messages += [{"role": "assistant", "content": before.answer}, {"role": "user", "content": after.text}]
    messages.append({"role": "assistant", "content": questions[-1].answer})
    ids = _video_inputs(processor, clip.frames, messages, generate=False)["input_ids"][0].tolist()
    assert ids[:-1] == sequence.ids
    assert sequence.positions == list(range(len(sequence.ids)))


def test_questions_side_by_side_are_conversations_of_their_own(model: VideoLlama3ForConditionalGeneration) -> None:
    clip = encode_clip(model, make_clip(SEED))
    builder = SequenceBuilder(TOKENIZER)
    keep = np.ones(clip.features.shape[:3], dtype=bool)
    questions = [ask_video(clip.scene, kind) for kind in ("caption", "stop", "colour")]
    with torch.no_grad():
        together, _, _ = answer_logits(model, collate([builder.video(clip.features, keep, questions)]), builder)
        alone = [
            answer_logits(model, collate([builder.video(clip.features, keep, [question])]), builder)[0]
            for question in questions
        ]
    difference = (together - torch.cat(alone)).abs()
    assert difference.max() < 1e-4, f"max {difference.max():.2e}, mean {difference.mean():.2e}"


def test_padding_changes_nothing(model: VideoLlama3ForConditionalGeneration) -> None:
    builder = SequenceBuilder(TOKENIZER)
    rows = []
    for seed in (SEED, SEED + 1):
        clip = encode_clip(model, make_clip(seed))
        keep = np.ones(clip.features.shape[:3], dtype=bool)
        rows.append(builder.video(clip.features, keep, [ask_video(clip.scene, "caption")]))
    assert len(rows[0].ids) != len(rows[1].ids)
    with torch.no_grad():
        together = answer_logits(model, collate(rows), builder)[0]
        alone = torch.cat([answer_logits(model, collate([row]), builder)[0] for row in rows])
    difference = (together - alone).abs()
    assert difference.max() < 1e-4, f"max {difference.max():.2e}, mean {difference.mean():.2e}"


def test_frame_labels_follow_the_scene() -> None:
    scene = next(
        s for s in (make_clip(seed).scene for seed in range(9, 60)) if s.wait_s and len(s.legs) == 2 and s.rest_s
    )
    labels = frame_labels(scene)
    moves = [MOVES[move] for move, _ in labels]
    legs = [name for name, seconds in scene.legs for _ in range(seconds)]
    assert moves == ["first frame", *["rests"] * scene.wait_s, *legs, *["rests"] * scene.rest_s]
    events = {EVENTS[event]: n - 1 for n, (_, event) in enumerate(labels) if event}
    assert events == {"start": scene.wait_s, "turn": scene.turn_time, "stop": scene.stop_time}


def test_patches_are_normalized_in_raster_order() -> None:
    frames = torch.zeros(1, 28, 28, 3, dtype=torch.uint8)
    frames[0, 0, 15, 1] = 255  # second patch of the first row: row 0, column 1 of it, green
    patches = patchify(frames)
    assert patches.shape == (1, 4, 588)
    assert patches[0, 1, 196 + 1] == 1.0
    assert (patches == -1).sum() == patches.numel() - 1


def test_any_text_can_be_encoded() -> None:
    for text in ("Grüße, 東京!", "a\tb\r\n\x00", "Time 3.0s: 🎥"):
        assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text
    with pytest.raises(KeyError, match="unknown"):
        token_id(TOKENIZER, "<|unknown|>")


def test_save_processor_writes_the_released_files(tmp_path: Path) -> None:
    save_processor(make_processor(TOKENIZER), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "chat_template.jinja",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
