"""Trains the demo model from scratch, in about an hour and a half on two cores:

    python -m vl3edge.models.demo.train --out DIR

Two stages (vision_stage.py, language_stage.py), each in two single-threaded processes, which is much faster on a small
machine than two threads. All randomness follows from fixed seeds, but x264 does not repeat itself exactly (clips.py):
two runs agree closely, not bit for bit. Progress is saved in DIR, and the same command continues an interrupted run.
The result is DIR/checkpoint, in the layout of the released models; `--export-only` writes it from the progress so far.

Training never sees the held-out seeds (see render.py).

The committed checkpoint took 31 and 52 minutes for its two stages, on cores shared with other work. Its run differed
slightly from this recipe: up to step 1750 there was no head for frame numbers, questions about times were asked a
little less often, and the learning rate was constant.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from vl3edge.runtime.cli.stderr import exit_status

from .clips import make_clip
from .language_stage import LanguageTrainer
from .model import make_config, make_model
from .producer import produced_clips
from .ranks import run_ranks
from .render import HELD_OUT_SEED, TRAIN_SEED
from .sequences import encode_clip
from .stock import VideoLlama3ForConditionalGeneration, VideoLlama3Processor
from .tokenizer import make_processor, save_processor, special_ids, train_tokenizer
from .vision_stage import train_vision

WORKERS = 2
_PROGRESS_CLIPS = 128
_PROGRESS_SEED = HELD_OUT_SEED + 500_000  # not those that evaluate.py asks by default


def save_checkpoint(model: VideoLlama3ForConditionalGeneration, processor: VideoLlama3Processor, folder: Path) -> None:
    """Writes the model in float16 with its tokenizer, template and processor files."""
    model.half().save_pretrained(folder)
    generation = model.generation_config
    generation.eos_token_id = model.config.text_config.eos_token_id
    generation.pad_token_id = model.config.text_config.pad_token_id
    generation.do_sample = False
    generation.save_pretrained(folder)
    save_processor(processor, folder)


def _vision_stage(out: Path, steps: int) -> None:
    torch.set_num_threads(1)
    model = make_model(make_config(special_ids(train_tokenizer())))
    clips = produced_clips(make_clip, TRAIN_SEED)
    train_vision(model, clips, steps)
    torch.save(model.model.vision_model.state_dict(), out / "vision.pt")


def _trainer(out: Path, steps: int, rank: int) -> LanguageTrainer:
    torch.set_num_threads(1)
    tokenizer = train_tokenizer()
    model = make_model(make_config(special_ids(tokenizer)))
    model.model.vision_model.load_state_dict(torch.load(out / "vision.pt"))
    trainer = LanguageTrainer(model, tokenizer, steps, rank=rank, ranks=WORKERS)
    if (out / "language.pt").exists():
        trainer.load(out / "language.pt")
    return trainer


def _language_worker(rank: int, out: Path, steps: int) -> None:
    trainer = _trainer(out, steps, rank)
    seeds = range(_PROGRESS_SEED, _PROGRESS_SEED + _PROGRESS_CLIPS) if rank == 0 else range(0)
    trainer.run(out / "language.pt", [encode_clip(trainer.model, make_clip(seed)) for seed in seeds])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model from scratch.")
    parser.add_argument("--out", type=Path, required=True, help="folder for progress and the checkpoint")
    parser.add_argument("--vision-steps", type=int, default=2000)
    parser.add_argument("--language-steps", type=int, default=3200)
    parser.add_argument("--export-only", action="store_true", help="write the checkpoint of a run's progress so far")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if not arguments.export_only:
        if not (out / "vision.pt").exists():
            _vision_stage(out, arguments.vision_steps)
        run_ranks(WORKERS, _language_worker, out, arguments.language_steps)
    average = _trainer(out, arguments.language_steps, 0).average
    save_checkpoint(average, make_processor(train_tokenizer()), out / "checkpoint")


if __name__ == "__main__":
    sys.exit(exit_status(main))
