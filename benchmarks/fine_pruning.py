"""Which tokens may go? The fine model, whose tokens know their own place alone, on held-out clips through H.264.

    python benchmarks/fine_pruning.py [--clips 256] [--rules RULE …] [--json benchmarks/results/fine_pruning.json]

Rows of rules that are not named stay in the file, if they are of the same clips. Rules, at 50, 25 and 15 % of a clip's
tokens where they take a share:

    difffp    the released threshold, 0.1
    auto      each clip's own noise floor (`--threshold auto`)
    budget    the largest changes of the clip, by DiffFP's measure
    shifted   the same after the camera's motion: blocks are compared where the picture before has moved to
    unique    the most unique tokens
    shipped   DiffFP at 0.1, then the most unique (`--max-visual-tokens`)
    both      half of the way by `budget`, the rest by `unique`
    random    the control: any, as many of every frame

Every rule answers the same questions, one of each kind that a clip allows; `points` is the difference to all tokens in
percentage points, with its 95 % interval (runtime/evaluate/paired.py), `over` the same to `budget` at the same share.
The model is the float32 reference in torch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from largest_changes import budget_threshold, fewest_tokens
from machine import describe
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vl3edge.models.demo.clips import MERGE, PATCH_PX, keep_above
from vl3edge.models.demo.fine.answers import EncodedWorld, encode_clip, random_keep, right_answers
from vl3edge.models.demo.fine.clips import held_out_clip
from vl3edge.models.demo.fine.evaluate import CHECKPOINT
from vl3edge.models.demo.fine.questions import ask_all
from vl3edge.models.demo.fine.world import World
from vl3edge.models.demo.questions import Question
from vl3edge.models.demo.sequences import SequenceBuilder
from vl3edge.models.demo.stock import VideoLlama3ForConditionalGeneration
from vl3edge.runtime.config import PruningConfig
from vl3edge.runtime.evaluate.paired import PairedDifference, paired_difference
from vl3edge.runtime.vision.difffp import token_differences
from vl3edge.runtime.vision.difffp_threshold import choose_threshold
from vl3edge.runtime.vision.uniqueness import unique_tokens

SHARES = (0.5, 0.25, 0.15)
FIRST = 1000  # held-out clips below are asked elsewhere
_BATCH = 16
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class FineClip:
    """A held-out clip. tokens: projected, float32 [F · n, hidden]. changes: float64 [F, n], DiffFP's; shifted: the same
    after the camera's motion."""

    number: int
    clip: EncodedWorld
    tokens: NDArray[np.float32]
    changes: NDArray[np.float64]
    shifted: NDArray[np.float64]
    questions: list[Question]


@dataclass(frozen=True)
class Row:
    """One rule on the clips of one kind. tokens: share kept. difference: to all tokens. over: to `budget`."""

    rule: str
    share: float | None
    clips: str
    tokens: float
    exact: float
    answers: int
    difference: PairedDifference | None
    over: PairedDifference | None


class FineModel:
    """The fine model in float32."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = VideoLlama3ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.builder = SequenceBuilder(Tokenizer.from_file(str(checkpoint / "tokenizer.json")))

    @torch.no_grad()
    def clip(self, number: int) -> FineClip:
        made = held_out_clip(number)
        encoded = encode_clip(self.model, made)
        tokens = self.model.model.projector(encoded.features.float().flatten(0, 2)).numpy()
        changes = token_differences(made.frames, PATCH_PX, MERGE)
        return FineClip(number, encoded, tokens, changes, shifted_differences(made.frames), ask_all(made.world, number))

    def right(self, clips: Sequence[FineClip], keeps: Sequence[Mask]) -> list[list[bool]]:
        answers: list[list[bool]] = []
        for start in range(0, len(clips), _BATCH):
            part = clips[start : start + _BATCH]
            asked, encoded = [clip.questions for clip in part], [clip.clip for clip in part]
            shaped = [
                keep.reshape(clip.features.shape[:3])
                for keep, clip in zip(keeps[start : start + _BATCH], encoded, strict=True)
            ]
            answers += right_answers(self.model, self.builder, encoded, shaped, asked)
        return answers


def motion(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[int, int]:
    """How far (rows, columns) a picture [H, W] moved, by phase correlation."""
    cross = np.fft.rfft2(after) * np.conj(np.fft.rfft2(before))
    peaks = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), after.shape)
    where = np.unravel_index(int(peaks.argmax()), peaks.shape)
    down, right = (int(at) - size if at > size // 2 else int(at) for at, size in zip(where, peaks.shape, strict=True))
    return down, right


def shifted_differences(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """`token_differences` with each frame's predecessor moved as the camera did; what comes into view is infinite."""
    side = frames.shape[1] // (PATCH_PX * MERGE)
    rows = [np.full(side * side, np.inf)]
    for before, after in pairwise(frames):
        down, right = motion(before.mean(axis=2), after.mean(axis=2))
        moved = np.roll(before, (down, right), axis=(0, 1))
        row = token_differences(np.stack([moved, after]), PATCH_PX, MERGE)[1].reshape(side, side)
        for axis, by in ((0, down), (1, right)):
            new = -(-abs(by) // (PATCH_PX * MERGE))
            lines = slice(0, new) if by > 0 else slice(side - new, side)
            row[(lines, slice(None)) if axis == 0 else (slice(None), lines)] = np.inf
        rows.append(row.ravel())
    return np.stack(rows)


def _above(differences: NDArray[np.float64], threshold: float) -> Mask:
    """DiffFP's decisions."""
    side = int(differences.shape[1] ** 0.5)
    return keep_above(differences[1:].reshape(-1, side, side), threshold)


def _budget(differences: NDArray[np.float64], share: float) -> Mask:
    count = max(round(share * differences.size), fewest_tokens(*differences.shape))
    return _above(differences, budget_threshold(differences, count))


def _unique(clip: FineClip, share: float, among: Mask | None = None) -> Mask:
    keep = np.ones(len(clip.tokens), np.bool_) if among is None else among.ravel().copy()
    counts = keep.reshape(len(clip.changes), -1).sum(axis=1).tolist()
    keep[keep] = unique_tokens(clip.tokens[keep], counts, round(share * len(clip.tokens)))
    return keep


Rule = Callable[[FineClip, float], Mask]
RULES: dict[str, Rule] = {
    "budget": lambda c, share: _budget(c.changes, share),  # first: others are compared with it
    "random": lambda c, share: random_keep(c.clip.features.shape[:3], share, np.random.default_rng([c.number, 16])),
    "shifted": lambda c, share: _budget(c.shifted, share),
    "unique": _unique,
    "shipped": lambda c, share: _unique(c, share, _above(c.changes, 0.1)),
    "both": lambda c, share: _unique(c, share, _budget(c.changes, (1 + share) / 2)),
}
FIXED: dict[str, Rule] = {
    "all": lambda c, _: np.ones_like(c.changes, np.bool_),
    "difffp": lambda c, _: _above(c.changes, 0.1),
    "auto": lambda c, _: _above(c.changes, choose_threshold(c.changes, PruningConfig("auto"))),
}


def kinds(world: World) -> list[str]:
    """What a clip is a case of."""
    cameras = [np.ptp(np.array(shot.cameras), axis=0) for shot in world.shots]
    found = ["all"]
    found += ["panning"] if any(moved[:2].any() for moved in cameras) else []
    found += ["zooming"] if any(moved[2] for moved in cameras) else []
    found += ["cut"] if world.cut is not None else []
    found += ["noisy"] if world.noise else []
    found += ["still"] if len(found) == 1 else []
    return found


def measure(model: FineModel, clips: Sequence[FineClip], rules: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    whole: list[list[bool]] = []
    budget: dict[float | None, list[list[bool]]] = {}
    plan = [(name, None, rule) for name, rule in FIXED.items() if name in rules]
    plan += [(name, share, rule) for name, rule in RULES.items() for share in SHARES if name in rules]
    for name, share, rule in plan:
        keeps = [rule(clip, share or 1.0) for clip in clips]
        right = model.right(clips, keeps)
        whole = whole or right
        budget.setdefault(share, right)
        for kind in ("all", "still", "panning", "zooming", "noisy", "cut"):
            of = [n for n, clip in enumerate(clips) if kind in kinds(clip.clip.world)]
            flat = [hit for n in of for hit in right[n]]
            before = [hit for n in of for hit in whole[n]]
            fitted = [hit for n in of for hit in budget[share][n]]
            numbers = [n for n in of for _ in right[n]]
            rows.append(
                Row(
                    rule=name,
                    share=share,
                    clips=kind,
                    tokens=round(sum(int(keeps[n].sum()) for n in of) / sum(keeps[n].size for n in of), 4),
                    exact=round(float(np.mean(flat)), 5),
                    answers=len(flat),
                    difference=None if name == "all" else paired_difference(before, flat, numbers),
                    over=None if name == "budget" or share is None else paired_difference(fitted, flat, numbers),
                )
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--rules", nargs="+", choices=[*FIXED, *RULES], default=[*FIXED, *RULES], help="default: all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = FineModel(options.checkpoint)
    asked = {"all", "budget", *options.rules}  # the first two are what others are compared with
    rows = measure(model, [model.clip(number) for number in range(FIRST, FIRST + options.clips)], sorted(asked))
    if options.json:
        about = {"clips": options.clips, "first": FIRST}
        before = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else {}
        kept = before["rows"] if all(before.get(key) == value for key, value in about.items()) else []
        together = [row for row in kept if row["rule"] not in asked] + [asdict(row) for row in rows]
        order = [*FIXED, *RULES]
        together.sort(key=lambda row: order.index(row["rule"]))
        result = {"machine": describe(), **about, "rows": together}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        points = ""
        if (d := row.difference) is not None:
            points = f"{100 * d.value:7.2f} ({100 * d.low:.2f} to {100 * d.high:.2f}), p {d.p:.2g}"
        share = "" if row.share is None else f"{row.share:.2f}"
        print(f"{row.rule:8} {share:5} {row.clips:8} {row.tokens:7.1%} {row.exact:7.2%} of {row.answers:5} {points}")


if __name__ == "__main__":
    main()
