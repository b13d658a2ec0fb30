"""Held-out evaluation of the demo model: how often answers are exactly right, and how likely the right ones are.

    python -m vl3edge.models.demo.evaluate [--bundle DIR] [--clips N] [--seed S] [--threshold T] [--json FILE]

Clips and stills are written as files (MP4 with H.264, PNG), from seeds that training never uses (see render.py), and
read back with the runtime's own sampling, resizing and pruning. Each kind of question is asked once about every clip,
in its main wording. Without --bundle the float32 torch reference answers; with it the bundle does, and the report adds
the divergence from the reference and the answers that flipped.

    exact    share of answers that equal the right one character by character
    NLL      mean negative log-likelihood per token of the right answers, in nats
    KL       mean KL(reference || bundle) per token of the right answers, in nats

Times are reported in two groups: clips that have the event, and "never" for those that do not, which are easier.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from vl3edge.runtime.cli.stderr import exit_status

from ..divergence import kl_divergence
from .clips import write_clip
from .predictors import BundlePredictor, Prediction, Predictor, TorchPredictor
from .questions import IMAGE_KINDS, TIME_KINDS, VIDEO_KINDS, Question, ask_image, ask_video
from .render import HELD_OUT_SEED, Scene, draw, draw_ground

CHECKPOINT = Path(__file__).parent / "checkpoint"
_GROUPS = {
    "captions": ("caption",),
    "attributes": ("colour", "shape", "ground", "direction"),
    "times, with event": TIME_KINDS,
    "times, never": tuple(f"{kind}, never" for kind in TIME_KINDS),
    "yes or no": ("stops?", "turns?"),
    "images": tuple(f"image {kind}" for kind in IMAGE_KINDS),
}


@dataclass(frozen=True)
class Score:
    """One answer. kind: as reported. nll: [T] nats per token of the right answer. kl: [T], zeros without a reference.
    reference_right: of the reference's answer; of this one where there is no reference."""

    kind: str
    right: bool
    reference_right: bool
    nll: NDArray[np.float64]
    kl: NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One line of the report: answers of a kind, see the module. lost, gained: answers right by the reference and wrong
    by the bundle, and the reverse."""

    count: int
    exact: float
    nll: float
    kl: float
    lost: int
    gained: int


def report_kind(question: Question, image: bool) -> str:
    """The kind under which an answer is counted."""
    if image:
        return f"image {question.kind}"
    return question.kind if question.event else f"{question.kind}, never"


def score(
    question: Question,
    answer_ids: list[int],
    got: Prediction,
    reference: Prediction | None = None,
    image: bool = False,
) -> Score:
    """Scores one answer. answer_ids: the right answer's tokens with its end.

    Raises ValueError if a prediction does not have one row of logits per answer token.
    """
    for prediction in (got, reference):
        if prediction is not None and len(prediction.logits) != len(answer_ids):
            raise ValueError(f"{len(prediction.logits)} rows of logits for {len(answer_ids)} tokens of {question}")
    log_q = log_softmax(got.logits)
    kl = np.zeros(len(answer_ids))
    if reference is not None:
        kl = kl_divergence(torch.from_numpy(log_softmax(reference.logits)), torch.from_numpy(log_q)).numpy()
    right = got.text == question.answer
    reference_right = right if reference is None else reference.text == question.answer
    nll = -log_q[np.arange(len(answer_ids)), answer_ids]
    return Score(report_kind(question, image), right, reference_right, nll, kl)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of the last axis, in float64."""
    result: NDArray[np.float64] = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    return result


def summarize(scores: list[Score]) -> dict[str, Line]:
    """Lines by kind, then by group, then for all; kinds and groups that were not asked are omitted."""
    kinds = list(dict.fromkeys(score.kind for score in scores))
    members: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in kinds}
    members |= {f"[{name}]": group for name, group in _GROUPS.items()} | {"[all]": tuple(kinds)}
    lines = {}
    for name, group in members.items():
        chosen = [score for score in scores if score.kind in group]
        if chosen:
            lines[name] = Line(
                count=len(chosen),
                exact=float(np.mean([score.right for score in chosen])),
                nll=float(np.concatenate([score.nll for score in chosen]).mean()),
                kl=float(np.concatenate([score.kl for score in chosen]).mean()),
                lost=sum(score.reference_right and not score.right for score in chosen),
                gained=sum(score.right and not score.reference_right for score in chosen),
            )
    return lines


def write_media(folder: Path, seed: int, noise: float | None) -> tuple[Scene, Path, Path]:
    """One held-out clip and a still of its scene as files. noise: of the sensor, in 8-bit levels; None draws it, and
    the encoder's quality, as training does: none in six of ten clips, up to 4 in the others, crf 18 to 28."""
    rng = np.random.default_rng([HELD_OUT_SEED + seed, 4])
    drawn = 0.0 if rng.random() < 0.6 else float(rng.uniform(0.5, 4.0))
    clip, still = folder / f"{seed}.mp4", folder / f"{seed}.png"
    scene = write_clip(clip, seed, drawn if noise is None else noise, crf=int(rng.integers(18, 29)))
    centre = scene.centres[int(rng.integers(scene.frames))]
    Image.fromarray(np.clip(np.rint(draw(scene, draw_ground(scene), centre)), 0, 255).astype(np.uint8)).save(still)
    return scene, clip, still


def evaluate(
    predictor: Predictor,
    tokenizer: Tokenizer,
    seeds: range,
    reference: Predictor | None = None,
    noise: float | None = None,
) -> Iterator[Score]:
    """Scores of every question about the held-out clips and stills of the seeds."""
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            scene, clip, still = write_media(Path(folder), seed, noise)
            for media, questions in (
                (clip, [ask_video(scene, kind) for kind in VIDEO_KINDS]),
                (still, [ask_image(scene, kind) for kind in IMAGE_KINDS]),
            ):
                answers = predictor.predict(media, questions)
                references = reference.predict(media, questions) if reference else [None] * len(questions)
                for question, got, other in zip(questions, answers, references, strict=True):
                    ids = tokenizer.encode(f"{question.answer}<|im_end|>").ids
                    yield score(question, ids, got, other, image=media == still)


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the demo model on held-out clips.")
    parser.add_argument("--bundle", type=Path, help="an exported demo bundle; without it the torch reference")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="the torch reference's folder")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="first held-out clip, 0 to 400,000")
    parser.add_argument("--threshold", type=float, default=0.1, help="DiffFP's threshold; negative keeps every token")
    parser.add_argument("--noise", type=float, help="sensor noise in 8-bit levels for all clips; drawn by default")
    parser.add_argument("--json", type=Path, help="write the report's lines to this file, too")
    arguments = parser.parse_args()
    threshold = arguments.threshold if arguments.threshold >= 0 else None
    torch_predictor = TorchPredictor(arguments.checkpoint, threshold)
    predictor: Predictor = BundlePredictor(arguments.bundle, threshold) if arguments.bundle else torch_predictor
    reference = torch_predictor if arguments.bundle else None
    seeds = range(arguments.seed, arguments.seed + arguments.clips)
    lines = summarize(list(evaluate(predictor, torch_predictor.tokenizer, seeds, reference, arguments.noise)))
    print(f"{'':20}{'count':>7}{'exact':>9}{'NLL':>10}{'KL':>11}{'lost':>6}{'gained':>8}")
    for name, line in lines.items():
        print(f"{name:20}{line.count:7}{line.exact:9.2%}{line.nll:10.5f}{line.kl:11.2e}{line.lost:6}{line.gained:8}")
    if arguments.json:
        arguments.json.write_text(json.dumps({name: asdict(line) for name, line in lines.items()}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(exit_status(main))
