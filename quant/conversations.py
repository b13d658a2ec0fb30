"""Conversations about calibration media: questions as users ask them, answers in the forms a model gives.

Answers need not be true of the clip. What matters is that text of every form follows visual tokens: sentences, lists,
JSON, numbers, other languages.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QA:
    question: str
    answer: str


PAIRS: tuple[QA, ...] = (
    QA(
        "Describe this video.",
        "The video shows an outdoor scene filmed from a fixed position. Several objects move slowly from the left side "
        "of the frame to the right, while the background stays the same. Towards the end the light becomes softer and "
        "the last object comes to rest near the centre.",
    ),
    QA("What is the cat doing?", "The cat is sitting on the windowsill and watching the birds outside."),
    QA("How many people are visible?", "There are three people: two adults standing at the counter and a child."),
    QA("When does the car stop?", "The car stops at about 4.0 seconds, just before the crossing."),
    QA(
        "List the main events with their times.",
        "1. 0.0s – 2.0s: A person enters the room and closes the door.\n2. 3.0s – 6.0s: They walk to the table and "
        "pick up a red cup.\n3. 7.0s: The cup is placed on the shelf.",
    ),
    QA(
        "Answer in JSON with the keys objects, action and confidence.",
        '{"objects": ["bicycle", "dog", "bench"], "action": "riding past a park bench", "confidence": 0.87}',
    ),
    QA("Is the camera moving?", "Yes. It pans slowly to the left and then holds still."),
    QA(
        "What text can be read on the sign?",
        'The sign reads "OPEN 24 HOURS", and below it, in smaller letters, "EST. 1987".',
    ),
    QA("视频里发生了什么？", "视频中，一名男子在公园里骑自行车，随后停下来和朋友说话。背景是绿色的树木和一条小路。"),
    QA(
        "Which step of the recipe is shown, and what comes next?",
        "The cook is whisking eggs with sugar until the mixture is pale. Next, the flour is folded in with a spatula.",
    ),
    QA("Does anything unusual happen?", "No, nothing unusual happens. The scene stays quiet throughout."),
    QA(
        "Compare the beginning and the end of the clip.",
        "At the beginning the street is empty and it is getting light. At the end there is steady traffic in both "
        "directions, and the shops have opened.",
    ),
    QA("What colour is the largest object?", "Blue."),
    QA("¿Qué se ve en la imagen?", "Se ve una playa con rocas oscuras, olas pequeñas y un faro blanco al fondo."),
    QA(
        "Explain why the ball bounces lower each time.",
        "Each bounce turns part of the ball's kinetic energy into heat and sound, so less is left to lift it: if 75 % "
        "of the energy survives, a drop from 1.0 m is followed by bounces of 0.75 m, 0.56 m and 0.42 m.",
    ),
    QA("Summarize in one sentence.", "A delivery robot crosses a busy hall, waits for two people, and docks."),
)
