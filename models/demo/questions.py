"""The questions about a scene, and the one right answer to each.

Answers follow from the scene alone (see render.py on its clock). Answers about times name the label of a sampled frame:
it *starts* at the last frame before it moves, *turns* at the frame where the direction changes and *stops* at the first
frame after which it stays. If there is no such event the answer says so, and `Question.event` is False: those are easy
and are reported separately.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .render import Scene

VIDEO_PROMPT = "Describe this video."
IMAGE_PROMPT = "Describe this image."

ATTRIBUTE_KINDS = ("colour", "shape", "ground")
TIME_KINDS = ("start", "turn", "stop")
VIDEO_KINDS = ("caption", *ATTRIBUTE_KINDS, "direction", "stops?", "turns?", *TIME_KINDS)
IMAGE_KINDS = ("caption", *ATTRIBUTE_KINDS)

# The evaluation asks the first wording of each kind; training draws any.
WORDINGS: dict[str, tuple[str, ...]] = {
    "caption": (VIDEO_PROMPT, "Describe the video.", "What happens in this video?", "What is happening?"),
    "image caption": (IMAGE_PROMPT, "Describe the image.", "What is in this image?", "What do you see?"),
    "colour": (
        "What colour is it?",
        "What color is the shape?",
        "Which colour does the shape have?",
        "What color is it?",
    ),
    "shape": ("What shape is it?", "Which shape do you see?", "What is the shape?"),
    "ground": ("What is the ground like?", "What is the background like?", "Which pattern does the ground have?"),
    "direction": ("Which way does it move?", "In which direction does it move?", "Where does the shape go?"),
    "stops?": ("Does it stop?", "Does the shape stop?"),
    "turns?": ("Does it turn?", "Does it change direction?"),
    "start": ("When does it start moving?", "When does it start to move?", "When does the shape start moving?"),
    "turn": ("When does it turn?", "When does it change direction?", "At what time does it turn?"),
    "stop": ("When does it stop?", "When does the shape stop?", "At what time does it stop?"),
}


@dataclass(frozen=True)
class Question:
    """kind: a key of `VIDEO_KINDS` or `IMAGE_KINDS`. event: for times, whether there is an event to date; else True."""

    kind: str
    text: str
    answer: str
    event: bool = True


def _look(scene: Scene) -> str:
    return f"A {scene.colour} {scene.shape} on a {scene.ground} ground."


def _course(scene: Scene) -> str:
    """What it does, in order: "It waits, moves right, turns down and stops." """
    if not scene.legs:
        return "It does not move."
    acts = ["waits"] if scene.wait_s else []
    acts.append(f"moves {scene.legs[0][0]}")
    if len(scene.legs) == 2:
        acts.append(f"turns {scene.legs[1][0]}")
    if scene.rest_s:
        acts.append("stops")
    return f"It {', '.join(acts[:-1])} and {acts[-1]}." if len(acts) > 1 else f"It {acts[0]}."


def _start(scene: Scene) -> tuple[str, bool]:
    if not scene.legs:
        return "It never moves.", False
    if scene.wait_s == 0:
        return "It moves from the start.", False
    return f"At {scene.wait_s}.0s.", True


def _event(time: int | None, otherwise: str) -> tuple[str, bool]:
    return (otherwise, False) if time is None else (f"At {time}.0s.", True)


def ask_video(scene: Scene, kind: str, wording: int = 0) -> Question:
    """The question of a kind about a clip, in one of its wordings. Raises KeyError for an unknown kind."""
    answer, event = {
        "caption": lambda: (f"{_look(scene)} {_course(scene)}", True),
        "colour": lambda: (f"{scene.colour.capitalize()}.", True),
        "shape": lambda: (f"A {scene.shape}.", True),
        "ground": lambda: (f"{scene.ground.capitalize()}.", True),
        "direction": lambda: (
            f"It moves {', then '.join(name for name, _ in scene.legs)}." if scene.legs else "It does not move.",
            True,
        ),
        "stops?": lambda: ("Yes." if scene.stop_time is not None else "No.", True),
        "turns?": lambda: ("Yes." if scene.turn_time is not None else "No.", True),
        "start": lambda: _start(scene),
        "turn": lambda: _event(scene.turn_time, "It never turns."),
        "stop": lambda: _event(scene.stop_time, "It never stops."),
    }[kind]()
    return Question(kind, WORDINGS[kind][wording], answer, event)


def ask_image(scene: Scene, kind: str, wording: int = 0) -> Question:
    """The question of a kind about one still of the scene. Raises KeyError for an unknown kind."""
    if kind == "caption":
        return Question(kind, WORDINGS["image caption"][wording], _look(scene))
    if kind not in IMAGE_KINDS:
        raise KeyError(kind)
    return ask_video(scene, kind, wording)


def draw_wording(kind: str, image: bool, rng: np.random.Generator) -> int:
    """An index into the kind's wordings; the first is drawn half of the time."""
    count = len(WORDINGS["image caption" if image and kind == "caption" else kind])
    return 0 if rng.random() < 0.5 else int(rng.integers(count))
