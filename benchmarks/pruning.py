"""How few visual tokens do, and which threshold finds them? The demo model on noisy clips that went through H.264.

    python benchmarks/pruning.py [--clips 256] [--json benchmarks/results/pruning.json]

Held-out clips get sensor noise, are encoded as H.264 at a camera's quality and asked the ten questions of the
evaluation, with the tokens that each rule keeps:

    fixed     one threshold for all clips; 0.1 is the released one
    auto      each clip's own noise floor (`--threshold auto`)
    budget    a share of the clip's tokens, the largest differences of the clip
    random    the control: as many tokens as the budget, but any; as everywhere the first frame whole, one of each other

Exact match and NLL are of the right answers; KL is to the model's own distribution with every token kept, so it is what
pruning changed. NLL and KL are means per answer token, in nats. The model is the float32 reference in torch.

The demo model's answers hardly need the tokens (see `random`): its encoder's attention is global, so each token knows
its whole frame, and its world is small. So the tokens are also judged by themselves: *changed* ones are those that the
released threshold keeps of the rendered frames, before noise and H.264. A good rule keeps these and drops the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from largest_changes import budget_threshold, fewest_tokens
from machine import describe
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vl3edge.models.demo.answers import answer_logits
from vl3edge.models.demo.clips import MERGE, PATCH_PX, decode_sampled, encode_mp4, keep_above
from vl3edge.models.demo.evaluate import CHECKPOINT, log_softmax
from vl3edge.models.demo.model import encode_frames, merge_features
from vl3edge.models.demo.questions import TIME_KINDS, VIDEO_KINDS, Question, ask_video
from vl3edge.models.demo.render import HELD_OUT_SEED, random_scene, source_frames
from vl3edge.models.demo.sequences import SequenceBuilder, collate
from vl3edge.models.demo.stock import VideoLlama3ForConditionalGeneration
from vl3edge.runtime.config import PruningConfig
from vl3edge.runtime.vision.difffp import RELEASED_THRESHOLD, token_differences
from vl3edge.runtime.vision.difffp_threshold import choose_threshold

NOISE = (0.0, 2.0, 4.0)  # standard deviation in 8-bit levels
CRF = 18
THRESHOLDS = (0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 25.5)
SHARES = (0.75, 0.5, 0.35, 0.25)
_BATCH = 8


@dataclass(frozen=True)
class NoisyClip:
    """A clip as the decoder reads it.

    features: float [F, 4, 4, 96]. differences: [F, 16], of DiffFP. changed: bool [F - 1, 16], after the first frame.
    """

    seed: int
    questions: list[Question]
    features: torch.Tensor
    differences: NDArray[np.float64]
    changed: NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """Which tokens are kept. setting: the threshold of `fixed`, the share of tokens of `budget` and `random`."""

    kind: str
    setting: float | None = None

    def keep(self, clip: NoisyClip) -> tuple[NDArray[np.bool_], float | None]:
        """Kept tokens, bool [F, 4, 4], and the threshold that decided."""
        differences = clip.differences
        threshold = self.setting
        if self.kind == "auto":
            threshold = choose_threshold(differences, PruningConfig("auto"))
        elif self.setting is not None and self.kind != "fixed":
            budget = max(int(self.setting * differences.size), fewest_tokens(*differences.shape))
            if self.kind == "random":
                differences = np.random.default_rng([clip.seed, 7]).random(differences.shape)
            least = RELEASED_THRESHOLD if self.kind == "budget" else 0.0
            threshold = max(least, budget_threshold(differences, budget))
        return keep_above(differences[1:].reshape(-1, *clip.features.shape[1:3]), threshold), threshold


RULES = (
    *(Rule("fixed", threshold) for threshold in THRESHOLDS),
    Rule("auto"),
    *(Rule("budget", share) for share in SHARES),
    *(Rule("random", share) for share in SHARES),
)


@dataclass(frozen=True)
class Answers:
    """Of all questions about all clips. log_probs: float64 [T, vocabulary] of every token of the right answers;
    nll: [T]; right: [answers]; dated: bool [answers], whether it asks for the time of something that happens."""

    log_probs: NDArray[np.float64]
    nll: NDArray[np.float64]
    right: NDArray[np.bool_]
    dated: NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """One point of the plot. tokens, changed, idle: shares kept of all tokens, of the changed ones and of the others
    (these two without first frames). exact, exact_times: of all answers, and of those that date an event.
    lost, gained: answers right only with every token, and only with those kept."""

    noise: float
    rule: str
    setting: float | None
    threshold: float | None
    tokens: float
    changed: float
    idle: float
    exact: float
    exact_times: float
    nll: float
    kl: float
    lost: int
    gained: int
    answers: int


class Demo:
    """The demo model in float32, and its tokenizer."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = VideoLlama3ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.builder = SequenceBuilder(Tokenizer.from_file(str(checkpoint / "tokenizer.json")))

    @torch.no_grad()
    def clip(self, seed: int, noise: float) -> NoisyClip:
        """The held-out clip of a number, filmed with noise."""
        scene = random_scene(HELD_OUT_SEED + seed)
        mp4 = encode_mp4(source_frames(scene, noise, seed), scene.fps, CRF, "veryfast")
        frames = decode_sampled(mp4, scene.fps)
        rendered = source_frames(scene, 0.0, seed)[scene.fps - 1 :: scene.fps]
        changed = token_differences(rendered, PATCH_PX, MERGE)[1:] > RELEASED_THRESHOLD
        features = merge_features(encode_frames(self.model, torch.from_numpy(frames)))
        questions = [ask_video(scene, kind) for kind in VIDEO_KINDS]
        return NoisyClip(seed, questions, features, token_differences(frames, PATCH_PX, MERGE), changed)

    @torch.no_grad()
    def answers(self, clips: Sequence[NoisyClip], keeps: Sequence[NDArray[np.bool_]]) -> Answers:
        """Teacher-forced, which finds the same answers right as greedy decoding."""
        log_probs, nll, right = [], [], []
        (end,) = self.builder.encode("<|im_end|>")
        for start in range(0, len(clips), _BATCH):
            pairs = zip(clips[start : start + _BATCH], keeps[start : start + _BATCH], strict=True)
            rows = [self.builder.video(clip.features, keep, clip.questions) for clip, keep in pairs]
            logits, targets, _ = answer_logits(self.model, collate(rows), self.builder)
            hits = (logits.argmax(-1) == targets).numpy()
            starts = np.append(0, np.flatnonzero(targets.numpy() == end)[:-1] + 1)
            right.append(np.logical_and.reduceat(hits, starts))
            log_probs.append(log_softmax(logits.numpy()))
            nll.append(-log_probs[-1][np.arange(len(targets)), targets.numpy()])
        dated = [question.kind in TIME_KINDS and question.event for clip in clips for question in clip.questions]
        return Answers(np.concatenate(log_probs), np.concatenate(nll), np.concatenate(right), np.array(dated))


def measure(demo: Demo, noise: float, num_clips: int) -> Iterator[Row]:
    """One row for each rule, and a first one for every token kept."""
    clips = [demo.clip(seed, noise) for seed in range(num_clips)]
    whole: Answers | None = None
    for rule in (Rule("all"), *RULES):
        kept = [rule.keep(clip) for clip in clips]
        answers = demo.answers(clips, [keep for keep, _ in kept])
        whole = whole or answers
        kl = (np.exp(whole.log_probs) * (whole.log_probs - answers.log_probs)).sum(axis=-1)
        later = np.concatenate([keep[1:].ravel() for keep, _ in kept])
        changed = np.concatenate([clip.changed.ravel() for clip in clips])
        thresholds = [threshold for _, threshold in kept if threshold is not None]
        yield Row(
            noise=noise,
            rule=rule.kind,
            setting=rule.setting,
            threshold=round(float(np.median(thresholds)), 3) if thresholds and rule.kind != "random" else None,
            tokens=round(sum(int(keep.sum()) for keep, _ in kept) / sum(keep.size for keep, _ in kept), 4),
            changed=round(float(later[changed].mean()), 4),
            idle=round(float(later[~changed].mean()), 4),
            exact=round(float(answers.right.mean()), 5),
            exact_times=round(float(answers.right[answers.dated].mean()), 5),
            nll=float(f"{answers.nll.mean():.4g}"),
            kl=float(f"{max(0.0, kl.mean()):.4g}"),
            lost=int((whole.right & ~answers.right).sum()),
            gained=int((answers.right & ~whole.right).sum()),
            answers=len(answers.right),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--noise", type=float, nargs="+", default=NOISE, help="of the sensor, in 8-bit levels")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    demo = Demo(options.checkpoint)
    rows = [row for noise in options.noise for row in measure(demo, noise, options.clips)]
    if options.json:
        result = {"machine": describe(), "clips": options.clips, "crf": CRF, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    columns = [field.name for field in fields(Row)]
    print(*(f"{name:>11}" for name in columns))
    for row in rows:
        print(*(f"{'' if getattr(row, name) is None else getattr(row, name):>11}" for name in columns))


if __name__ == "__main__":
    main()
