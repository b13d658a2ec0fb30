"""What the fine model is trained on: seeds that are not held out, labels that say what lies on tokens, sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fine_world import WORLD

from vl3edge.models.demo.fine import clips, language_stage
from vl3edge.models.demo.fine.answers import encode_clip, held_out_shares, random_keep, right_answers
from vl3edge.models.demo.fine.clips import WorldClip, held_out_clip, make_clip
from vl3edge.models.demo.fine.glyphs import GLYPHS
from vl3edge.models.demo.fine.labels import SIDE, UNKNOWN, news, token_labels
from vl3edge.models.demo.fine.language_stage import Example, FineTrainer, draw_questions
from vl3edge.models.demo.fine.layout import random_world, training_world
from vl3edge.models.demo.fine.model import fine_config
from vl3edge.models.demo.fine.questions import KINDS, ask_all, choices
from vl3edge.models.demo.fine.tokenizer import train_tokenizer
from vl3edge.models.demo.fine.vision_stage import VisionTrainer
from vl3edge.models.demo.fine.world import SHAPES
from vl3edge.models.demo.model import make_model
from vl3edge.models.demo.render import COLOURS, HELD_OUT_SEED
from vl3edge.models.demo.sequences import NO_LABEL, SequenceBuilder
from vl3edge.models.demo.stock import VideoLlama3ForConditionalGeneration
from vl3edge.models.demo.tokenizer import special_ids

TOKENIZER = train_tokenizer()


@pytest.fixture(scope="module")
def model() -> VideoLlama3ForConditionalGeneration:
    return make_model(fine_config(special_ids(TOKENIZER)), seed=3)


@pytest.mark.parametrize("make", [training_world, make_clip])
@pytest.mark.parametrize("seed", [HELD_OUT_SEED, HELD_OUT_SEED + 500_000, -1])
def test_training_refuses_held_out_seeds(make: Callable[[int], object], seed: int) -> None:
    with pytest.raises(ValueError, match="held out"):
        make(seed)


def test_both_stages_take_their_clips_from_the_refusing_function(
    model: VideoLlama3ForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seeds that a language trainer asks for are the ranks' own, below the held-out ones; beyond them it fails."""
    assert language_stage.make_clip is clips.make_clip
    asked: list[int] = []

    def made(seed: int) -> WorldClip:
        asked.append(seed)
        world = training_world(seed)
        return WorldClip(world, np.zeros((world.frames, 140, 140, 3), np.uint8))

    monkeypatch.setattr(language_stage, "make_clip", made)
    for rank in range(2):
        FineTrainer(model, TOKENIZER, 10, rank=rank, ranks=2, batch_clips=1).sequences(np.random.default_rng(0))
    assert len(asked) == len(set(asked))
    assert max(asked) < HELD_OUT_SEED
    with pytest.raises(ValueError, match="held out"):
        FineTrainer(model, TOKENIZER, 10, first_seed=HELD_OUT_SEED).sequences(np.random.default_rng(0))


def test_labels_say_what_lies_on_each_token() -> None:
    labels = token_labels([(WORLD, 0), (WORLD, 2), (WORLD, 4)])
    kind, glyph, owner = labels.kind[0], labels.glyph[0], labels.owner[0]
    # Label 0: a red circle about (42, 42), on one token; a sign about (70, 112), on the border of two rows.
    circle, sign = 1 + SHAPES.index("circle"), 1 + len(SHAPES)
    expected = np.zeros((SIDE, SIDE), int)
    expected[1, 1], expected[3, 2], expected[4, 2] = circle, sign, sign
    np.testing.assert_array_equal(kind, expected)
    assert np.argwhere(owner.numpy()).tolist() == [[1, 1], [4, 2]]
    assert labels.colour[0][1, 1] == list(COLOURS).index("red")
    assert glyph[3, 2] == glyph[4, 2] == GLYPHS.index("7")
    assert labels.colour[0][3, 2] == glyph[1, 1] == UNKNOWN
    # The sign's box is 56 to 84 and 98 to 126 pixels, 8 to 12 and 14 to 18 steps of 7.
    for row in (3, 4):
        edges = [getattr(labels, name)[0][row, 2].item() for name in ("left", "top", "right", "bottom")]
        assert edges == [8, 14, 12, 18]
    # Label 4, zoomed: a cross about (91, 91), 42 pixels wide, covers 7 of the 28 pixels of its outer tokens.
    cross = 1 + SHAPES.index("cross")
    assert labels.kind[2][3, 3] == cross
    assert labels.kind[2][2, 3] == labels.kind[2][3, 2] == cross
    assert labels.kind[2][2, 2] == cross


def test_news_are_new_things_and_new_glyphs() -> None:
    found = news(WORLD)
    assert found.shape == (5, SIDE, SIDE)
    assert found[0, 1, 1] == 1  # the circle is there from the start
    assert found[1, 1, 1] == 0  # it moved with the camera, and so did nothing
    assert found[1][found[1] != UNKNOWN].max() == 0
    sign = found[2][3:]
    assert set(sign[sign != UNKNOWN].tolist()) == {1}, "7 became C"
    assert found[0, 0, 4] == UNKNOWN


def test_sequences_label_visual_tokens_alone(model: VideoLlama3ForConditionalGeneration) -> None:
    trainer = FineTrainer(model, TOKENIZER, steps=10, step=9)
    clip = encode_clip(model, make_clip(5))
    example = Example(clip, choices(clip.world), news(clip.world))
    sequence = trainer.sequence(example, np.random.default_rng(1))
    slots = [i for i, token in enumerate(sequence.ids) if token == trainer.builder.video_id]
    assert 25 < len(slots) == len(sequence.visual) < 25 * clip.world.frames, "the first frame is whole, others pruned"
    assert all(sequence.frames[i] != NO_LABEL for i in slots)
    others = set(range(len(sequence.ids))) - set(slots)
    assert {sequence.events[i] for i in others} == {sequence.frames[i] for i in others} == {NO_LABEL}
    np.testing.assert_array_equal([sequence.events[i] for i in slots[:25]], example.news[0].ravel())


@pytest.mark.parametrize(("step", "few"), [(0, 0.85), (40, 0.25)])
def test_tokens_that_show_something_are_never_dropped_at_random(
    model: VideoLlama3ForConditionalGeneration, step: int, few: float
) -> None:
    trainer = FineTrainer(model, TOKENIZER, steps=100, step=step)
    clip = encode_clip(model, make_clip(8))
    example = Example(clip, choices(clip.world), news(clip.world))
    rng = np.random.default_rng(0)
    keeps = [trainer.keep(example, rng) for _ in range(200)]
    assert all(keep[example.news != UNKNOWN].all() for keep in keeps)
    assert np.mean([not keep.all() for keep in keeps]) == pytest.approx(few, abs=0.08)
    assert {bool((keep.sum(axis=(1, 2)) > 0).all()) for keep in keeps} == {True}


def test_questions_are_drawn_without_copies_and_cover_all_kinds() -> None:
    rng, kinds = np.random.default_rng(0), set()
    for seed in range(30):
        drawn = draw_questions(choices(random_world(seed)), rng)
        assert drawn
        assert len(drawn) == len(set(drawn))
        kinds |= {question.kind for question in drawn}
    assert kinds == set(KINDS)


def test_every_text_is_in_the_vocabulary() -> None:
    for seed in range(100):
        for question in ask_all(random_world(seed), seed):
            for text in (question.text, question.answer):
                ids = TOKENIZER.encode(text).ids
                assert TOKENIZER.decode(ids) == text
                assert len(ids) <= 32, f"{text} takes {len(ids)} tokens"


def test_random_keep_keeps_its_share_of_every_frame() -> None:
    keep = random_keep((6, 5, 5), 0.5, np.random.default_rng(0))
    assert keep.sum(axis=(1, 2)).tolist() == [12] * 6
    assert len({row.tobytes() for row in keep}) == 6
    assert random_keep((2, 5, 5), 0.0, np.random.default_rng(0)).sum(axis=(1, 2)).tolist() == [1, 1]


def test_right_answers_are_counted_per_question(model: VideoLlama3ForConditionalGeneration) -> None:
    clip = encode_clip(model, held_out_clip(3))
    builder = SequenceBuilder(TOKENIZER)
    questions = ask_all(clip.world, 3)
    keep = np.ones(clip.features.shape[:3], bool)
    assert right_answers(model, builder, [clip], [keep], [questions]) == [[False] * len(questions)]
    shares = held_out_shares(model, builder, [clip], [questions], "half")
    assert shares["all"] == 0.0
    assert set(shares) == {question.kind for question in questions} | {"all"}


def test_both_stages_go_on_where_they_stopped(model: VideoLlama3ForConditionalGeneration, tmp_path: Path) -> None:
    made = [make_clip(seed) for seed in range(20)]
    vision = VisionTrainer(make_model(model.config), steps=2, size=8)
    vision.run(iter(made), tmp_path / "vision.pt")
    again = VisionTrainer(make_model(model.config), steps=2, size=8)
    again.load(tmp_path / "vision.pt")
    assert (again.step, again.clips_used) == (2, vision.clips_used)
    language = FineTrainer(model, TOKENIZER, steps=2, batch_clips=1)
    language.run(tmp_path / "language.pt", [], [], every=100)
    other = FineTrainer(make_model(model.config), TOKENIZER, steps=4, batch_clips=1)
    other.load(tmp_path / "language.pt")
    assert (other.step, other.clips_made) == (2, language.clips_made)
    for mine, theirs in zip(language.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert other.optimizer.state_dict()["state"][0]["step"] == 2
