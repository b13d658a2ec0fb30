"""The whole path against transformers: file in, the same tokens out, in fp32."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from reference import VisualInput, generate_from_visuals, load_processor, load_reference, reference_generate

from vl3edge.export.options import ExportOptions
from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.resize import PixelBudget, resize_rgb, target_size
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.prompt.tokenizer import Tokenizer
from vl3edge.runtime.vision.difffp import keep_mask

NEW_TOKENS = 32
VIDEOS = ["nasa_13013.mp4", "h265_video.mp4", "video_90.mov", "corrupted.mp4"]
IMAGES = ["cat.jpg", "chart.jpg"]


@dataclass(frozen=True)
class Case:
    """A random checkpoint that exercises something the others do not."""

    preset: str
    layout: str = "transformers"
    seed: int = 0
    dtype: str = "float32"
    shards: int = 1
    image_merge: int = 1
    video_merge: int = 2


CASES = {
    "tied": Case("tiny"),
    "untied-sharded": Case("tiny-untied", seed=3, shards=3),
    "bf16-merged-images": Case("tiny-128", seed=5, dtype="bfloat16", image_merge=2, video_merge=1),
    "authors": Case("tiny", "authors", seed=7, dtype="float16"),
    "authors-untied-sharded": Case("tiny-untied", "authors", seed=9, shards=2),
}


@dataclass
class Exported:
    checkpoint: Checkpoint
    model: VideoLlama3
    reference: Any
    processor: Any


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp("parity")
    config = preset(case.preset, case.layout)
    config = replace(
        config,
        image=replace(config.image, merge_size=case.image_merge),
        video=replace(config.video, merge_size=case.video_merge),
    )
    write_random_checkpoint(folder / "checkpoint", config, seed=case.seed, dtype=case.dtype, shards=case.shards)
    checkpoint = Checkpoint.open(folder / "checkpoint")
    export_bundle(checkpoint, folder / "bundle", ExportOptions())
    processor = load_processor(folder / "checkpoint") if case.layout == "transformers" else None
    model = VideoLlama3.load(folder / "bundle", backend="cpu", num_threads=1)
    return Exported(checkpoint, model, load_reference(folder / "checkpoint"), processor)


def all_frames(path: Path) -> list[np.ndarray]:
    """Every frame of a video, decoded by a loop that knows nothing of sampling."""
    frames = []
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.best("video")):
            try:
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
            except av.FFmpegError:
                continue
    return frames


def prepared(
    exported: Exported, path: Path, plan: SamplingPlan, size: tuple[int, int] | None = None
) -> tuple[Any, tuple[float, ...]]:
    """The frames of a video as the model gets them (size: in a conversation), and their times."""
    processor, patch = exported.model.bundle.manifest.processor, exported.model.bundle.manifest.vision.patch_size
    spec = processor.video
    budget = PixelBudget(patch, spec.merge_size, spec.min_pixels, spec.max_pixels, processor.rule)
    reader = open_video(path, plan)
    size = size or target_size(reader.height, reader.width, budget, reader.num_frames)
    return reader.read(size, processor.rule).frames, reader.timestamps_s


@pytest.mark.parametrize("name", VIDEOS)
def test_video_tokens(exported: Exported, media: Path, name: str) -> None:
    """From the same resized frames: pruning, encoder, projector, splicing and decoding."""
    plan = SamplingPlan(fps=1.0, max_frames=8)
    frames, times = prepared(exported, media / name, plan)
    question = "What happens, and when?"
    clip = exported.model.encode(media / name, plan)
    answer = exported.model.stream(clip, question, GenerationConfig(max_new_tokens=NEW_TOKENS))
    ours = generated_ids(exported, clip, question, answer)
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": frames, "timestamps": times},
                {"type": "text", "text": question},
            ],
        }
    ]
    if exported.processor is not None:
        run = reference_generate(
            exported.checkpoint.folder, messages, NEW_TOKENS, False, exported.reference, exported.processor
        )
        mask = run.inputs["video_compression_mask"].reshape(len(frames), -1)
        assert clip.tokens_per_frame == tuple(mask.sum(axis=1))
        assert ours == run.new_ids
    else:
        spec = exported.model.bundle.manifest.processor
        keep = keep_mask(frames, 14, spec.video.merge_size) if len(frames) > 1 else None
        visual = VisualInput(frames, spec.video.merge_size, keep)
        ids = exported.model.prompt(messages, [clip]).ids
        assert ours == generate_from_visuals(
            exported.reference, exported.checkpoint.config, ids.tolist(), [visual], NEW_TOKENS
        )


@pytest.mark.parametrize("name", IMAGES)
def test_image_tokens(exported: Exported, media: Path, name: str) -> None:
    spec = exported.model.bundle.manifest.processor
    budget = PixelBudget(14, spec.image.merge_size, spec.image.min_pixels, spec.image.max_pixels, spec.rule)
    image = load_image(media / name)
    image = resize_rgb(image, target_size(*image.shape[:2], budget), spec.rule)
    clip = exported.model.encode(media / name)
    question = "What is in it?"
    ours = generated_ids(
        exported, clip, question, exported.model.stream(clip, question, GenerationConfig(max_new_tokens=NEW_TOKENS))
    )
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
    if exported.processor is not None:
        run = reference_generate(
            exported.checkpoint.folder, messages, NEW_TOKENS, False, exported.reference, exported.processor
        )
        assert ours == run.new_ids
    else:
        ids = exported.model.prompt(messages, [clip]).ids
        assert ours == generate_from_visuals(
            exported.reference,
            exported.checkpoint.config,
            ids.tolist(),
            [VisualInput(image[None], spec.image.merge_size)],
            NEW_TOKENS,
        )


def test_mixed_media_over_several_turns(exported: Exported, media: Path) -> None:
    """Two images, a video and text, in two turns, with the budget shared as the layout shares it."""
    plan = SamplingPlan(fps=0.5, max_frames=4)
    spec = exported.model.bundle.manifest.processor
    budget = PixelBudget(14, spec.image.merge_size, spec.image.min_pixels, spec.image.max_pixels, spec.rule)
    images = [load_image(media / name) for name in IMAGES]
    sizes: list[tuple[int, int]] = [target_size(*image.shape[:2], budget) for image in images]
    video_size = None
    if spec.rule == "authors":  # all sides divided by one number, so that there are max_tokens; see test_mixed_media.py
        reader = open_video(media / "nasa_13013.mp4", plan)
        shapes = [(1, 14, *image.shape[:2]) for image in images] + [
            (reader.num_frames, 28, reader.height, reader.width)
        ]
        total = sum(n * math.ceil(h / side) * math.ceil(w / side) for n, side, h, w in shapes)
        beta = math.sqrt(total / exported.checkpoint.config.image.maximum)
        assert beta > 1
        *sizes, video_size = [
            (max(1, math.floor(h / beta / side)) * side, max(1, math.floor(w / beta / side)) * side)
            for _, side, h, w in shapes
        ]
    frames, times = prepared(exported, media / "nasa_13013.mp4", plan, video_size)
    images = [resize_rgb(image, size, spec.rule) for image, size in zip(images, sizes, strict=True)]

    def conversation(first: Any, video: Any, second: Any) -> list[dict[str, Any]]:
        return [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": first},
                    {"type": "text", "text": "First this, then"},
                    {"type": "video", **video},
                    {"type": "text", "text": "Same?"},
                ],
            },
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": [{"type": "image", "image": second}, {"type": "text", "text": "And this?"}]},
        ]

    config = GenerationConfig(max_new_tokens=NEW_TOKENS)
    paths = conversation(media / IMAGES[0], {"video": media / "nasa_13013.mp4"}, media / IMAGES[1])
    answer = exported.model.generate(paths, config, sampling=plan)
    arrays = conversation(images[0], {"video": frames, "timestamps": times}, images[1])
    if exported.processor is not None:
        run = reference_generate(
            exported.checkpoint.folder, arrays, NEW_TOKENS, False, exported.reference, exported.processor
        )
        new_ids, prompt_tokens = run.new_ids, len(run.prompt_ids)
    else:
        keep = keep_mask(frames, 14, spec.video.merge_size)
        visuals = [
            VisualInput(images[0][None], spec.image.merge_size),
            VisualInput(frames, spec.video.merge_size, keep),
            VisualInput(images[1][None], spec.image.merge_size),
        ]
        clips = exported.model.encode_all([media / IMAGES[0], media / "nasa_13013.mp4", media / IMAGES[1]], plan)
        ids = exported.model.prompt(arrays, clips).ids.tolist()
        new_ids = generate_from_visuals(exported.reference, exported.checkpoint.config, ids, visuals, NEW_TOKENS)
        prompt_tokens = len(ids)
    assert answer.stats.prompt_tokens == prompt_tokens
    assert answer.text == decoded(exported, new_ids)


def test_from_file_with_transformers_own_resizing(exported: Exported, media: Path) -> None:
    """Nothing shared but the file: transformers gets full-size frames and does everything itself."""
    if exported.processor is None:
        pytest.skip("transformers has no processor for the authors' layout")
    decoded_frames = all_frames(media / "nasa_13013.mp4")
    frames = np.stack(decoded_frames[24::25][:6])
    times = [float(t) for t in range(len(frames))]
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": frames, "timestamps": times},
                {"type": "text", "text": "Describe this video."},
            ],
        }
    ]
    run = reference_generate(
        exported.checkpoint.folder, messages, NEW_TOKENS, True, exported.reference, exported.processor
    )
    clip = exported.model.encode(frames, SamplingPlan(fps=1.0))
    assert clip.timestamps_s == tuple(times)
    mask = run.inputs["video_compression_mask"].reshape(len(frames), -1)
    assert clip.tokens_per_frame == tuple(mask.sum(axis=1))
    answer = exported.model.ask(clip, "Describe this video.", GenerationConfig(max_new_tokens=NEW_TOKENS))
    assert answer.text == decoded(exported, run.new_ids)


def test_a_second_question_reuses_the_clip(exported: Exported, media: Path) -> None:
    """Rolling back to the clip's prefix gives what a fresh cache gives, for any order of questions."""
    model = exported.model
    clip = model.encode(media / "nasa_13013.mp4", SamplingPlan(max_frames=4), PruningConfig(enabled=False))
    other = model.encode(media / "cat.jpg")
    config = GenerationConfig(max_new_tokens=12)
    fresh = {}
    for question in ("What?", "Where is it?"):
        model.ask(other, "Something else.", config)
        fresh[question] = model.ask(clip, question, config)
        assert fresh[question].stats.reused_tokens < 8
    for question in ("What?", "Where is it?", "What?", "What?"):
        again = model.ask(clip, question, config)
        assert again.text == fresh[question].text
        assert again.stats.reused_tokens >= clip.num_tokens
        assert again.stats.prompt_tokens == fresh[question].stats.prompt_tokens


def decoded(exported: Exported, ids: list[int]) -> str:
    return Tokenizer.of(exported.model.bundle).decode(ids)


def generated_ids(exported: Exported, clip: Any, question: str, chunks: Any) -> list[int]:
    """The ids of an answer: its text is not enough where ids decode to nothing."""
    generator, model = exported.model._generator, exported.model
    content = [{"type": clip.kind, clip.kind: clip}, {"type": "text", "text": question}]
    prompt = model.prompt([{"role": "user", "content": content}], [clip])
    ids = list(generator.tokens(prompt, GenerationConfig(max_new_tokens=NEW_TOKENS)))
    text = "".join(chunk.text for chunk in chunks)
    assert text == decoded(exported, ids)
    return ids
