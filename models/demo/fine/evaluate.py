"""The held-out evaluation of the fine model, and paired tests between ways to run it.

    python -m vl3edge.models.demo.fine.evaluate [--checkpoint DIR] [--clips N] [--seed S] [--json FILE] [WAY ...]

See ways.py for how ways are written; by default "torch" is compared with "torch:random" and "torch:0.1". All answer the
same questions, one of each kind that a clip allows, about the same files (H.264 in MP4, from seeds that training never
uses), read with the runtime's own sampling and resizing. The first way is the reference of the others:

    exact    share of answers that equal the right one character by character
    NLL      mean negative log-likelihood per token of the right answers, in nats
    KL       mean KL(first || this) per token of the right answers, in nats
    points   exact minus that of the first way, in percentage points, with its 95 % interval and p
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from vl3edge.runtime.cli.stderr import exit_status
from vl3edge.runtime.evaluate.paired import PairedDifference, paired_difference

from ..evaluate import Score, score
from ..predictors import Predictor
from ..render import HELD_OUT_SEED
from .clips import write_clip
from .questions import KINDS, ask_all
from .ways import make_way

ALL = "[all]"
CHECKPOINT = Path(__file__).parent / "checkpoint"


@dataclass(frozen=True)
class PairedLine:
    """One way's answers of a kind, or of all. difference: to the first way; of the first way itself None."""

    count: int
    exact: float
    nll: float
    kl: float
    difference: PairedDifference | None


def answer(ways: list[Predictor], tokenizer: Tokenizer, numbers: range) -> list[tuple[int, list[Score]]]:
    """For every question about the held-out clips of these numbers: the clip's number, and each way's score."""
    rows: list[tuple[int, list[Score]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            path = Path(folder) / f"{number}.mp4"
            questions = ask_all(write_clip(path, number), HELD_OUT_SEED + number)
            answers = [way.predict(path, questions) for way in ways]
            for question, *got in zip(questions, *answers, strict=True):
                ids = tokenizer.encode(f"{question.answer}<|im_end|>").ids
                first, *others = got
                rows.append((number, [score(question, ids, first), *(score(question, ids, o, first) for o in others)]))
            path.unlink()
    return rows


def summarize(rows: list[tuple[int, list[Score]]]) -> list[dict[str, PairedLine]]:
    """Each way's lines, by kind and under `ALL`; kinds that were not asked are left out."""
    report = []
    for way in range(len(rows[0][1])):
        lines = {}
        for kind in (*KINDS, ALL):
            chosen = [(number, scores[0], scores[way]) for number, scores in rows if kind in (ALL, scores[0].kind)]
            if chosen:
                numbers, first, own = zip(*chosen, strict=True)
                right = [s.right for s in own]
                lines[kind] = PairedLine(
                    count=len(own),
                    exact=float(np.mean(right)),
                    nll=float(np.concatenate([s.nll for s in own]).mean()),
                    kl=float(np.concatenate([s.kl for s in own]).mean()),
                    difference=paired_difference([s.right for s in first], right, numbers) if way else None,
                )
        report.append(lines)
    return report


def print_lines(way: str, lines: dict[str, PairedLine]) -> None:
    """A table of one way."""
    columns = f"{'count':>7}{'exact':>9}{'NLL':>10}{'KL':>11}{'lost':>6}{'gained':>8}{'points':>9}   95 % interval, p"
    print(f"\n{way}\n{'':12}{columns}")
    for kind, line in lines.items():
        text = f"{kind:12}{line.count:7}{line.exact:9.2%}{line.nll:10.5f}{line.kl:11.2e}"
        if line.difference is not None:
            d = line.difference
            text += f"{d.lost:6}{d.gained:8}{100 * d.value:9.2f}   {100 * d.low:.2f} to {100 * d.high:.2f}, {d.p:.2g}"
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the fine model on held-out clips.")
    parser.add_argument("ways", nargs="*", default=["torch", "torch:random", "torch:0.1"], metavar="WAY")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="the folder that 'torch' reads")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="first held-out clip, 0 to 400,000")
    parser.add_argument("--json", type=Path, help="write the lines to this file, too")
    arguments = parser.parse_args()
    ways = [make_way(way, arguments.checkpoint) for way in arguments.ways]
    tokenizer = Tokenizer.from_file(str(arguments.checkpoint / "tokenizer.json"))
    report = summarize(answer(ways, tokenizer, range(arguments.seed, arguments.seed + arguments.clips)))
    for way, lines in zip(arguments.ways, report, strict=True):
        print_lines(way, lines)
    if arguments.json:
        values = {
            way: {kind: asdict(line) for kind, line in lines.items()}
            for way, lines in zip(arguments.ways, report, strict=True)
        }
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_status(main))
