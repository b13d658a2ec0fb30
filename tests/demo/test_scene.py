"""Scenes and questions: seeded, and every answer agrees with where the shape is on the sampled frames."""

from __future__ import annotations

import numpy as np
import pytest

from vl3edge.models.demo.questions import IMAGE_KINDS, TIME_KINDS, VIDEO_KINDS, WORDINGS, ask_image, ask_video
from vl3edge.models.demo.render import (
    HELD_OUT_SEED,
    SIZE_PX,
    TRAIN_SEED,
    Scene,
    coverage,
    draw,
    draw_ground,
    random_scene,
    source_frames,
)

SCENE = Scene(
    shape="ring",
    colour="green",
    ground="dotted",
    wait_s=1,
    legs=(("right", 2), ("down", 3)),
    rest_s=2,
    start_px=(30.0, 40.0),
    step_px=12.0,
    radius_px=20.0,
    fps=4,
    texture_seed=3,
)


def test_answers_of_a_known_scene() -> None:
    answers = {kind: ask_video(SCENE, kind).answer for kind in VIDEO_KINDS}
    assert answers == {
        "caption": "A green ring on a dotted ground. It waits, moves right, turns down and stops.",
        "colour": "Green.",
        "shape": "A ring.",
        "ground": "Dotted.",
        "direction": "It moves right, then down.",
        "stops?": "Yes.",
        "turns?": "Yes.",
        "start": "At 1.0s.",
        "turn": "At 3.0s.",
        "stop": "At 6.0s.",
    }
    assert ask_image(SCENE, "caption").answer == "A green ring on a dotted ground."
    assert ask_image(SCENE, "caption").text == "Describe this image."
    assert ask_video(SCENE, "caption").text == "Describe this video."
    assert SCENE.centres[[0, 1, 3, 6, 8]].tolist() == [[30, 40], [30, 40], [54, 40], [54, 76], [54, 76]]


def test_answers_without_events() -> None:
    still = Scene("circle", "red", "plain", 4, (), 0, (50.0, 50.0), 12.0, 20.0, 4, 0)
    moving = Scene("circle", "red", "plain", 0, (("left", 4),), 0, (90.0, 50.0), 12.0, 20.0, 4, 0)
    assert [ask_video(still, kind).answer for kind in TIME_KINDS] == [
        "It never moves.",
        "It never turns.",
        "It never stops.",
    ]
    assert [ask_video(moving, kind).answer for kind in TIME_KINDS] == [
        "It moves from the start.",
        "It never turns.",
        "It never stops.",
    ]
    assert ask_video(still, "caption").answer == "A red circle on a plain ground. It does not move."
    assert ask_video(moving, "caption").answer == "A red circle on a plain ground. It moves left."
    assert not any(ask_video(scene, kind).event for scene in (still, moving) for kind in TIME_KINDS)


def test_images_are_not_asked_about_motion() -> None:
    with pytest.raises(KeyError, match="stop"):
        ask_image(SCENE, "stop")
    assert set(IMAGE_KINDS) <= set(VIDEO_KINDS)


def test_times_agree_with_positions_for_many_seeds() -> None:
    """An independent reading of the events, from the sampled positions alone."""
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + 400):
        scene = random_scene(seed)
        steps = np.diff(scene.centres, axis=0)
        ways = [tuple(np.sign(np.rint(step)).astype(int).tolist()) for step in steps]
        moving = [n for n, way in enumerate(ways) if way != (0, 0)]
        lengths = np.abs(steps).sum(axis=1)
        assert ((lengths == 0) | (lengths >= 11.999)).all(), f"seed {seed}: a step of {lengths}"
        turns = [n + 1 for n in range(len(ways) - 1) if (0, 0) not in ways[n : n + 2] and ways[n] != ways[n + 1]]
        expected = {
            "start": moving[0] if moving and moving[0] > 0 else None,
            "turn": turns[0] if turns else None,
            "stop": moving[-1] + 1 if moving and moving[-1] + 1 < len(ways) else None,
        }
        # A rest at the end is at least one whole step, so that a stop can be seen.
        for kind, time in expected.items():
            question = ask_video(scene, kind)
            assert question.event == (time is not None), f"seed {seed}: {question}"
            assert time is None or question.answer == f"At {time}.0s.", f"seed {seed}: {question}"
        assert 5 <= scene.frames <= 9
        assert (scene.centres >= 23.999).all(), f"seed {seed}: {scene.centres.min()}"
        assert (scene.centres <= SIZE_PX - 23.999).all(), f"seed {seed}: {scene.centres.max()}"


def test_pixels_follow_from_the_seed() -> None:
    first, again, other = (source_frames(random_scene(seed), 2.0, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or (first != other).any()


def test_sampled_frame_shows_the_shape_at_its_label() -> None:
    """Label n is the last source frame before n + 1 seconds."""
    frames = source_frames(SCENE)
    assert frames.shape == (9 * 4, SIZE_PX, SIZE_PX, 3)
    ground = draw_ground(SCENE)
    for n in range(SCENE.frames):
        expected = np.clip(np.rint(draw(SCENE, ground, SCENE.centres[n])), 0, 255)
        np.testing.assert_array_equal(frames[(n + 1) * 4 - 1], expected.astype(np.uint8), err_msg=f"frame {n}")


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "cross", "ring"])
def test_shapes_cover_what_they_should(shape: str) -> None:
    scene = Scene(shape, "red", "plain", 4, (), 0, (56.0, 56.0), 12.0, 20.0, 4, 0)
    mask = coverage(scene, np.array([56.0, 56.0]))
    areas = {"circle": np.pi * 400, "square": 34**2, "cross": 2 * 40 * 13.6 - 13.6**2, "ring": np.pi * 300}
    areas["triangle"] = 34 * (2 * 34 * 0.488 / 0.873) / 2
    assert mask.sum() == pytest.approx(areas[shape], rel=0.03)
    np.testing.assert_allclose(mask, mask[:, ::-1], atol=1e-4, err_msg="left and right must mirror")


def test_training_never_reaches_held_out_seeds() -> None:
    assert HELD_OUT_SEED - TRAIN_SEED >= 10**9
    assert len({wording for wordings in WORDINGS.values() for wording in wordings}) == sum(map(len, WORDINGS.values()))
