"""Pictures and videos in one conversation: sizes, tokens and ids as the authors' processor makes them.

The rule is written here a second time, after the authors' image processor, which is given the frames and pictures of a
whole conversation at once.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import ceil, floor, sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vl3edge.runtime import GenerationConfig, PruningConfig, VideoLlama3
from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.media.resize import MediaShape, PixelBudget, size_in_conversation, target_size

WHOLE = PruningConfig(enabled=False)
MAX_TOKENS = 64  # of the random checkpoint
IMAGE, VIDEO = 14, 28  # sides of a visual token, in pixels
Medium = tuple[int, int, int]  # frames (0: a picture), height, width


def rule(media: list[Medium], max_tokens: int) -> list[tuple[int, int]]:
    """Sizes of pictures and videos that meet in a conversation."""
    total = 0
    for frames, height, width in media:
        side = VIDEO if frames else IMAGE
        total += max(1, frames) * ceil(Fraction(height, side)) * ceil(Fraction(width, side))
    sizes = []
    for frames, height, width in media:
        side = VIDEO if frames else IMAGE
        if total > max_tokens:
            beta = sqrt(total / max_tokens)
            sizes.append((floor(height / beta / side) * side, floor(width / beta / side) * side))
        else:
            sizes.append((round(height / side) * side, round(width / side) * side))
    return sizes


def shapes(media: list[Medium], max_tokens: int) -> list[MediaShape]:
    """The media with their budgets, at the minimum that the release has."""
    budgets = PixelBudget.from_tokens(14, 1, 16, max_tokens), PixelBudget.from_tokens(14, 2, 16, max_tokens)
    return [MediaShape(max(1, frames), height, width, budgets[frames > 0]) for frames, height, width in media]


sides = st.integers(30, 3000)
pictures, videos = st.tuples(st.just(0), sides, sides), st.tuples(st.integers(1, 60), sides, sides)


@settings(deadline=None, max_examples=300)
@given(pictures, videos, st.lists(pictures | videos, max_size=3), st.sampled_from([64, 1600, 16384, 10**6]))
def test_sizes_at_many_shapes(first: Medium, second: Medium, more: list[Medium], max_tokens: int) -> None:
    media = [first, second, *more]
    conversation = shapes(media, max_tokens)
    for shape, size in zip(conversation, rule(media, max_tokens), strict=True):
        if max(shape.height, shape.width) > 200 * min(shape.height, shape.width):
            continue  # refused, whatever stands beside it
        # Where the rule leaves nothing of a side, the authors' processor fails; here it keeps one token.
        assert size_in_conversation(shape, conversation) == tuple(max(shape.budget.factor, side) for side in size)


def test_one_factor_for_all_and_no_minimum() -> None:
    """A clip beside a large picture shrinks with it."""
    media = [(0, 1080, 1240), (6, 112, 112)]
    conversation = shapes(media, 1600)
    sizes = [size_in_conversation(shape, conversation) for shape in conversation]
    assert sizes == rule(media, 1600)
    assert sizes[1] < (112, 112)  # though it would fit an even share
    small = shapes([(0, 28, 28), (2, 56, 56)], 1600)
    assert [size_in_conversation(shape, small) for shape in small] == [(28, 28), (56, 56)]  # 4 tokens, below 16
    alone = shapes([(0, 28, 28), (0, 28, 28)], 1600)
    assert size_in_conversation(alone[0], alone) == (56, 56)


def test_media_of_one_merge_size_share_evenly() -> None:
    for media in ([(0, 900, 700), (0, 100, 1000)], [(4, 900, 700), (9, 100, 1000)], [(0, 500, 500)]):
        conversation = shapes(media, 64)
        shared = sum(shape.num_frames for shape in conversation)
        for shape in conversation:
            wanted = target_size(shape.height, shape.width, shape.budget, shared)
            assert size_in_conversation(shape, conversation) == wanted
    merged = [MediaShape(n, 900, 700, PixelBudget.from_tokens(14, 2, 16, 64)) for n in (1, 5)]  # pictures merged, too
    assert size_in_conversation(merged[0], merged) == target_size(900, 700, merged[0].budget, 6)


@pytest.mark.parametrize(("height", "width"), [(0, 50), (20, 4020)])
def test_what_the_model_cannot_take_is_refused(height: int, width: int) -> None:
    conversation = shapes([(0, height, width), (3, 60, 60)], 64)
    with pytest.raises(MediaError, match=r"empty|aspect ratio"):
        size_in_conversation(conversation[0], conversation)


@pytest.fixture(scope="module")
def model(authors_bundle: Path) -> VideoLlama3:
    return VideoLlama3.load(authors_bundle, backend="cpu", num_threads=1)


PAIRS: dict[str, list[Medium]] = {
    "picture and video, below the budget": [(0, 30, 45), (3, 60, 90)],
    "picture and video, above": [(0, 301, 199), (3, 211, 157)],
    "two pictures and a video": [(0, 150, 97), (0, 75, 333), (4, 99, 141)],
    "video first": [(5, 121, 83), (0, 240, 320)],
    "a video of one frame": [(1, 130, 130), (0, 130, 130)],
    "exactly the budget": [(0, 56, 56), (3, 112, 112)],
    "one token more": [(0, 56, 57), (3, 112, 112)],
    "a sliver": [(0, 14, 700), (2, 100, 100)],
}


def pixels(medium: Medium) -> np.ndarray:
    frames, *sides = medium
    return np.random.default_rng(sum(medium)).integers(0, 256, (*[frames] * (frames > 0), *sides, 3), dtype=np.uint8)


def content(media: list[Medium]) -> list[dict[str, object]]:
    kinds = ["video" if frames else "image" for frames, *_ in media]
    found: list[dict[str, object]] = [
        {"type": kind, kind: pixels(medium)} for kind, medium in zip(kinds, media, strict=True)
    ]
    return [*found, {"type": "text", "text": "What is it?"}]


def expected_text(media: list[Medium], sizes: list[tuple[int, int]]) -> str:
    """A user's turn as the authors' template and processor write it, one placeholder for every token."""
    parts = []
    for (frames, *_), (height, width) in zip(media, sizes, strict=True):
        side = VIDEO if frames else IMAGE
        tokens = "<image>" * (height // side * (width // side))
        parts.append(",".join(f"Time {k}.0s:{tokens}" for k in range(frames)) if frames else tokens)
    return "<|im_start|>user\n" + "".join(f"{part}\n" for part in parts) + "What is it?<|im_end|>\n"


@pytest.mark.parametrize("name", PAIRS)
def test_ids_of_conversations(model: VideoLlama3, checkpoints: Callable[..., Path], name: str) -> None:
    media = PAIRS[name]
    sizes = [(max(IMAGE, height), max(IMAGE, width)) for height, width in rule(media, MAX_TOKENS)]
    clips = model.encode_all([pixels(medium) for medium in media], pruning=WHOLE)
    assert [(clip.height_px, clip.width_px) for clip in clips] == sizes
    tokenizer = Tokenizer.from_file(str(checkpoints("tiny", "authors") / "tokenizer.json"))
    text = expected_text(media, sizes) + "<|im_start|>assistant\n"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    messages = [{"role": "user", "content": content(media)}]
    assert model.prompt(messages, clips).ids.tolist() == ids
    config = GenerationConfig(max_new_tokens=1)
    assert model.generate(messages, config, pruning=WHOLE).stats.prompt_tokens == len(ids)


def test_turns_of_a_chat_share_what_comes_with_them(model: VideoLlama3) -> None:
    """What was encoded in an earlier turn keeps its size."""
    turns = [PAIRS["picture and video, above"], [(0, 301, 199)], PAIRS["video first"]]
    config = GenerationConfig(max_new_tokens=1)
    chat = model.chat(pruning=WHOLE)
    for media in turns:
        chat.ask("What is it?", *map(pixels, media), config=config)
    sizes = [[(clip.height_px, clip.width_px) for clip in turn.clips] for turn in chat.turns]
    even = target_size(301, 199, PixelBudget.from_tokens(14, 1, 16, MAX_TOKENS))
    assert sizes == [rule(turns[0], MAX_TOKENS), [even], rule(turns[2], MAX_TOKENS)]


def test_a_clip_encoded_before_counts_with_its_size(model: VideoLlama3) -> None:
    video = model.encode(pixels((4, 112, 112)), pruning=WHOLE)
    picture = (0, 280, 280)
    clips = model.encode_all([video, pixels(picture)])
    assert clips[0] is video
    wanted = rule([(4, video.height_px, video.width_px), picture], MAX_TOKENS)[1]
    assert (clips[1].height_px, clips[1].width_px) == wanted


def test_transformers_layout_shares_nothing(bundle: Path) -> None:
    model = VideoLlama3.load(bundle, backend="cpu", num_threads=1)
    media = [pixels(medium) for medium in PAIRS["two pictures and a video"]]
    together = model.encode_all(media, pruning=WHOLE)
    alone = [model.encode(item, pruning=WHOLE) for item in media]
    assert [(c.height_px, c.width_px) for c in together] == [(c.height_px, c.width_px) for c in alone]
