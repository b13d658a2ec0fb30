"""Trains the fine model from scratch:

    python -m vl3edge.models.demo.fine.train --out DIR

Two stages (vision_stage.py, language_stage.py), each in two processes of one thread. All randomness follows from fixed
seeds, but x264 does not repeat itself exactly (see ../clips.py), so two runs agree closely, not bit for bit. Progress
is saved in DIR every few minutes, and the same command resumes an interrupted run. The result is DIR/checkpoint, in the
layout of the released models; `--export-only` writes it from the progress so far.

Training never sees the held-out seeds (see layout.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from vl3edge.runtime.cli.stderr import exit_status

from ..model import make_model
from ..producer import produced_clips
from ..ranks import run_ranks
from ..tokenizer import special_ids
from ..train import WORKERS, save_checkpoint
from .answers import encode_clip
from .clips import held_out_clip, make_clip
from .language_stage import FineTrainer
from .model import fine_config
from .questions import ask_all
from .tokenizer import fine_processor, train_tokenizer
from .vision_stage import VisionTrainer

_PROGRESS = range(500_000, 500_096)  # held-out clips whose figures the log shows; evaluate.py asks others


def _vision_stage(out: Path, steps: int) -> None:
    torch.set_num_threads(1)
    trainer = VisionTrainer(make_model(fine_config(special_ids(train_tokenizer()))), steps)
    if (out / "vision.pt").exists():
        trainer.load(out / "vision.pt")
    if trainer.step < steps:
        trainer.run(produced_clips(make_clip, trainer.clips_used), out / "vision.pt")


def _trainer(out: Path, steps: int, rank: int) -> FineTrainer:
    tokenizer = train_tokenizer()
    model = make_model(fine_config(special_ids(tokenizer)))
    model.model.vision_model.load_state_dict(torch.load(out / "vision.pt")["vision"])
    trainer = FineTrainer(model, tokenizer, steps, rank=rank, ranks=WORKERS)
    if (out / "language.pt").exists():
        trainer.load(out / "language.pt")
    return trainer


def _language_worker(rank: int, out: Path, steps: int) -> None:
    trainer = _trainer(out, steps, rank)
    clips = [held_out_clip(number) for number in _PROGRESS] if rank == 0 else []
    asked = [ask_all(clip.world, number) for clip, number in zip(clips, _PROGRESS, strict=False)]
    trainer.run(out / "language.pt", [encode_clip(trainer.model, clip) for clip in clips], asked)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the fine model from scratch.")
    parser.add_argument("--out", type=Path, required=True, help="folder for progress and the checkpoint")
    parser.add_argument("--vision-steps", type=int, default=1300)
    parser.add_argument("--language-steps", type=int, default=14_400)
    parser.add_argument("--export-only", action="store_true", help="write the checkpoint of a run's progress so far")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if not arguments.export_only:
        _vision_stage(out, arguments.vision_steps)
        run_ranks(WORKERS, _language_worker, out, arguments.language_steps)
    average = _trainer(out, arguments.language_steps, 0).average
    save_checkpoint(average, fine_processor(train_tokenizer()), out / "checkpoint")


if __name__ == "__main__":
    sys.exit(exit_status(main))
