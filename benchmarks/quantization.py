"""Does calibrating on video pay? The demo model and its outlier twin, quantized and asked held-out questions.

    python benchmarks/quantization.py [--clips 150] [--checkpoint DIR] [--json benchmarks/results/quantization.json]

Every row is a decoder quantized by `vl3edge.quant`, its output head at 8 bits like the bundle's, evaluated in float32:

    RTN         round-to-nearest on a min-max grid, which needs no data
    text        GPTQ, calibrated on the conversations alone, as tools do that know nothing of visual tokens
    synthetic   GPTQ, calibrated on the built-in synthetic scenes and texts, which know nothing of the demo's world
    video       GPTQ, calibrated on clips of the demo's world, pruned by DiffFP, with their conversations

All calibration sets have about as many tokens. Their clips are training clips, the questions are about held-out ones,
14 per clip. KL (to the float32 answer) and NLL (of the right answer) are means per answer token, in nats; flips count
answers that float32 has right and the row wrong, and the reverse.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from collections.abc import Sequence as Sequence_
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from machine import describe
from tokenizers import Tokenizer

from vl3edge.export.calibrate.sequences import calibration_set
from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.demo.answers import embed
from vl3edge.models.demo.clips import keep_above, make_clip
from vl3edge.models.demo.evaluate import CHECKPOINT
from vl3edge.models.demo.model import decode
from vl3edge.models.demo.questions import IMAGE_KINDS, VIDEO_KINDS, ask_image, ask_video
from vl3edge.models.demo.render import HELD_OUT_SEED
from vl3edge.models.demo.sequences import NO_LABEL, Sequence, SequenceBuilder, collate, encode_clip
from vl3edge.models.demo.stock import VideoLlama3ForConditionalGeneration
from vl3edge.models.demo.twin import write_outlier_twin
from vl3edge.models.tensor_names import DECODER
from vl3edge.quant.decoder import HEAD, quantize_decoder
from vl3edge.quant.dequantized import Linears
from vl3edge.quant.plan import QuantizationPlan
from vl3edge.quant.sequences import CalibrationSequence
from vl3edge.runtime.bundle.bundle import open_bundle

_THRESHOLD = 0.1  # DiffFP's released one
_CALIBRATION_SEED = 40_000_000  # training clips that the demo model's own training does not reach either
_BATCH = 8


@dataclass(frozen=True)
class Row:
    """One line of the table; bits and group_size are 0 for the model as it is."""

    model: str
    method: str
    bits: int
    group_size: int
    symmetric: bool
    kl: float
    nll: float
    exact: float
    lost: int
    gained: int
    questions: int


class Demo:
    """A checkpoint of the demo model with the questions of the evaluation, ready to be asked with other weights."""

    def __init__(self, folder: Path, clips: int) -> None:
        self.checkpoint = Checkpoint.open(folder)
        self.model = VideoLlama3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.builder = SequenceBuilder(tokenizer)
        self._table = self.model.model.language_model.embed_tokens.weight.detach()
        self._original = {
            name: parameter.detach().clone() for name, parameter in self.model.model.language_model.named_parameters()
        }
        questions: list[Sequence] = []
        for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + clips):
            questions += self._sequences(seed, chain=False)
        self._batches = [collate(questions[i : i + _BATCH]) for i in range(0, len(questions), _BATCH)]
        self._reference = self._logits(None)
        self._right = self._answers_right(self._reference)

    def calibration(self, kind: str, tokens: int) -> list[CalibrationSequence]:
        """Sequences of about so many tokens in all: "text", "video", or "synthetic"."""
        found: list[CalibrationSequence] = []
        size = 0
        for sequence in self._synthetic() if kind == "synthetic" else self._conversations(kind == "video"):
            if size >= tokens:
                break
            found.append(sequence)
            size += len(sequence.embeddings)
        return found

    def score(self, linears: Linears) -> tuple[float, float, float, int, int, int]:
        """KL, NLL, share of exact answers, answers lost and gained, number of questions."""
        log_p, log_q = (torch.log_softmax(x.double(), -1) for x in (self._reference, self._logits(linears)))
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        nll = -log_q.gather(1, self._targets()[:, None]).mean()
        right = self._answers_right(log_q)
        lost, gained = int((self._right & ~right).sum()), int((right & ~self._right).sum())
        return float(kl), float(nll), float(right.float().mean()), lost, gained, len(right)

    def float32(self) -> tuple[float, float, float, int, int, int]:
        """`score` of the model as it is."""
        log_p = torch.log_softmax(self._reference.double(), -1)
        nll = float(-log_p.gather(1, self._targets()[:, None]).mean())
        return 0.0, nll, float(self._right.float().mean()), 0, 0, len(self._right)

    def _sequences(self, seed: int, chain: bool) -> list[Sequence]:
        clip = encode_clip(self.model, make_clip(seed))
        keep = keep_above(clip.difference, _THRESHOLD)
        videos = [ask_video(clip.scene, kind) for kind in VIDEO_KINDS]
        images = [ask_image(clip.scene, kind) for kind in IMAGE_KINDS]
        return [
            self.builder.video(clip.features.float(), keep, videos, chain),
            self.builder.image(clip.image.float(), images, chain),
        ]

    def _conversations(self, with_media: bool) -> Iterator[CalibrationSequence]:
        seed = _CALIBRATION_SEED
        while True:
            for sequence in self._sequences(seed, chain=True):
                embeddings = self._embeddings(sequence)
                if not with_media:
                    visual = np.isin(sequence.ids, (self.builder.image_id, self.builder.video_id))
                    embeddings = embeddings[~visual]
                yield CalibrationSequence(embeddings)
            seed += 1

    def _synthetic(self) -> Iterator[CalibrationSequence]:
        """What `vl3edge export` calibrates on without media."""
        with tempfile.TemporaryDirectory() as folder:
            export_bundle(self.checkpoint, Path(folder) / "bundle")
            made = calibration_set(open_bundle(Path(folder) / "bundle"), max_tokens=1 << 20)
        yield from made.calibration

    @torch.no_grad()
    def _embeddings(self, sequence: Sequence) -> np.ndarray:
        array: np.ndarray = embed(self.model, collate([sequence]), self.builder)[0].numpy()
        return array

    @torch.no_grad()
    def _logits(self, linears: Linears | None) -> torch.Tensor:
        """Logits [N, vocabulary] of every answer token of every question, with linears in place of the model's own."""
        head = self._table
        with self._substituted(linears):
            if linears is not None and HEAD in linears.names:
                head = torch.from_numpy(linears.linear(HEAD).dequantized())
            rows = []
            for batch in self._batches:
                inputs = embed(self.model, batch, self.builder)
                hidden, _ = decode(self.model, inputs, batch.positions, batch.mask)
                rows.append(hidden[batch.targets.ne(NO_LABEL)] @ head.T)
        return torch.cat(rows)

    @contextmanager
    def _substituted(self, linears: Linears | None) -> Iterator[None]:
        decoder = self.model.model.language_model
        names = [] if linears is None else [name for name in linears.names if name != HEAD]
        for name in names:
            weight = torch.from_numpy(linears.linear(name).dequantized())
            decoder.get_parameter(f"{name.removeprefix(DECODER)}.weight").data = weight
        yield
        for name in names:
            own = f"{name.removeprefix(DECODER)}.weight"
            decoder.get_parameter(own).data = self._original[own]

    def _targets(self) -> torch.Tensor:
        return torch.cat([batch.targets[batch.targets.ne(NO_LABEL)] for batch in self._batches])

    def _answers_right(self, logits: torch.Tensor) -> torch.Tensor:
        """bool [questions]: whether greedy decoding gives the right answer.

        It does if every right token is the likeliest after the right ones before it.
        """
        tokens = logits.argmax(-1) == self._targets()
        starts = torch.cat([_answer_starts(batch.targets) for batch in self._batches])
        answer = starts.cumsum(0) - 1
        wrong = torch.zeros(int(answer[-1]) + 1).index_add_(0, answer, (~tokens).float())
        return wrong == 0


def _answer_starts(targets: torch.Tensor) -> torch.Tensor:
    """int64 [answer tokens of the batch], 1 at the first token of each answer."""
    labelled = targets.ne(NO_LABEL)
    before = torch.nn.functional.pad(labelled, (1, 0))[:, :-1]
    return (labelled & ~before)[labelled].long()


def measure(
    demo: Demo, model: str, methods: Sequence_[str], grids: Sequence_[tuple[int, int, bool]], tokens: int
) -> list[Row]:
    """One row per method and (bits, group size, symmetric)."""
    data = {method: [] if method == "RTN" else demo.calibration(method, tokens) for method in methods}
    rows = []
    for bits, group_size, symmetric in grids:
        for method in methods:
            plan = QuantizationPlan("rtn" if method == "RTN" else "gptq", bits, head_bits=8, group_size=group_size)
            with tempfile.TemporaryDirectory() as work:
                linears = quantize_decoder(
                    demo.checkpoint, data[method], replace(plan, symmetric=symmetric), Path(work)
                )
                rows.append(Row(model, method, bits, group_size, symmetric, *demo.score(linears)))
            print(format_row(rows[-1]), flush=True)
    return rows


def format_row(row: Row) -> str:
    grid = (
        ""
        if not row.bits
        else f"{row.bits} bits, groups of {row.group_size}, {'symmetric' if row.symmetric else 'asymmetric'}"
    )
    flips = row.lost + row.gained
    return (
        f"{row.model:5} {grid:38} {row.method:10} KL {row.kl:9.2e}  NLL {row.nll:8.5f}  exact {row.exact:7.2%}  "
        f"flips {row.lost:4} lost, {row.gained:4} gained = {flips / row.questions:6.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--clips", type=int, default=150, help="held-out clips, 14 questions each")
    parser.add_argument("--tokens", type=int, default=16384, help="to calibrate on")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3])
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--methods", nargs="+", default=["RTN", "text", "synthetic", "video"])
    parser.add_argument("--models", nargs="+", choices=["demo", "twin"], default=["demo", "twin"])
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    grids = [(bits, size, not options.asymmetric) for bits in options.bits for size in options.group_sizes]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            source = options.checkpoint
            if name == "twin":
                source = write_outlier_twin(Checkpoint.open(source), Path(folder) / "twin")
            demo = Demo(source, options.clips)
            rows.append(Row(name, "float32", 0, 0, True, *demo.float32()))
            print(format_row(rows[-1]), flush=True)
            rows += measure(demo, name, options.methods, grids, options.tokens)
    if options.json:
        result = {"machine": describe(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
