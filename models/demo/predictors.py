"""Two ways to answer the demo's questions, behind one protocol: the torch reference and an exported bundle.

Both read the clip's file with the runtime's video reader, so they see the same frames.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import open_bundle
from vl3edge.runtime.config import GenerationConfig, PruningConfig
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import load_decoder_graph
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.resize import PixelBudget, resize_rgb, target_size
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.model import VideoLlama3
from vl3edge.runtime.prompt.splice import EmbeddingTable
from vl3edge.runtime.vision.clip import Clip

from .answers import answer_logits, embed
from .clips import diff_prune
from .model import PATCH_PX, decode, encode_frames, merge_features
from .questions import Question
from .sequences import Sequence, SequenceBuilder, collate
from .stock import VideoLlama3ForConditionalGeneration

_MAX_NEW_TOKENS = 48


@dataclass(frozen=True)
class Prediction:
    """text: the greedy answer. logits: float32 [T, vocabulary], of each token of the *right* answer and of its end,
    given the right tokens before it."""

    text: str
    logits: NDArray[np.float32]


class Predictor(Protocol):
    """Answers questions about one clip (.mp4) or still (.png), each as a conversation of its own."""

    def predict(self, media: Path, questions: list[Question]) -> list[Prediction]: ...


class TorchPredictor:
    """The checkpoint in float32, with the batched forward of model.py.

    threshold: of DiffFP; None keeps every token.
    """

    def __init__(self, checkpoint: Path, threshold: float | None = 0.1) -> None:
        self.model = VideoLlama3ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.threshold = threshold
        self._builder = SequenceBuilder(self.tokenizer)
        self._video_budget = _budget(checkpoint / "video_preprocessor_config.json")
        self._image_budget = _budget(checkpoint / "preprocessor_config.json")

    @torch.no_grad()
    def predict(self, media: Path, questions: list[Question]) -> list[Prediction]:
        sequence = self._sequence(media, questions)
        logits, targets, _ = answer_logits(self.model, collate([sequence]), self._builder)
        predictions = []
        first = 0
        for question in questions:
            count = len(self._builder.encode(f"{question.answer}<|im_end|>"))
            part = logits[first : first + count]
            right = bool((part.argmax(-1) == targets[first : first + count]).all())
            first += count
            # Greedy decoding gives the answer if every right token is the likeliest after the ones before it.
            text = question.answer if right else self._greedy(media, question)
            predictions.append(Prediction(text, part.numpy()))
        return predictions

    def _sequence(self, media: Path, questions: list[Question]) -> Sequence:
        if media.suffix == ".png":
            picture = load_image(media)
            picture = resize_rgb(picture, target_size(picture.shape[0], picture.shape[1], self._image_budget))
            return self._builder.image(encode_frames(self.model, torch.tensor(picture[None]))[0], questions)
        reader = open_video(media)
        size = target_size(reader.height, reader.width, self._video_budget, reader.num_frames)
        frames = reader.read(size).frames
        features = merge_features(encode_frames(self.model, torch.from_numpy(frames)))
        return self._builder.video(features, self._keep(media, frames), questions)

    def _keep(self, media: Path, frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The tokens that stay, bool [F, h, w], of a video's frames."""
        return diff_prune(frames, self.threshold)

    def _greedy(self, media: Path, question: Question) -> str:
        sequence = self._sequence(media, [Question(question.kind, question.text, "")])
        end = sequence.ids.pop()  # the empty answer's end token
        for name in ("targets", "positions", "blocks", "moves", "events", "frames"):
            getattr(sequence, name).pop()
        prompt = len(sequence.ids)
        table = self.model.model.language_model.embed_tokens.weight
        for _ in range(_MAX_NEW_TOKENS):
            batch = collate([sequence])
            hidden, _ = decode(self.model, embed(self.model, batch, self._builder), batch.positions, batch.mask)
            token = int((hidden[0, -1] @ table.T).argmax())
            if token == end:
                break
            sequence.add([token], sequence.blocks[-1], len(sequence.ids))
        return str(self.tokenizer.decode(sequence.ids[prompt:]))


class BundlePredictor:
    """An exported bundle through vl3edge.runtime, as a user runs it. threshold: of DiffFP; None keeps every token."""

    def __init__(self, bundle: Path, threshold: float | None = 0.1, backend: str = "cpu") -> None:
        opened, chosen = open_bundle(bundle), select_backend(backend, num_threads=1)
        self.model = VideoLlama3(opened, chosen)
        self._decoder = Decoder(load_decoder_graph(chosen, opened), opened.manifest.text)
        self._table = EmbeddingTable.of(opened)
        self._tokenizer = Tokenizer.from_file(str(opened.path("tokenizer.json")))
        self._end = next(iter(opened.manifest.tokens.eos_ids))
        self._pruning = PruningConfig(enabled=False) if threshold is None else PruningConfig(threshold, enabled=True)

    def predict(self, media: Path, questions: list[Question]) -> list[Prediction]:
        clip = self._encode(media)
        config = GenerationConfig(max_new_tokens=_MAX_NEW_TOKENS, temperature=0.0, repetition_penalty=1.0)
        return [
            Prediction(self.model.ask(clip, question.text, config).text, self._logits(clip, question))
            for question in questions
        ]

    def _encode(self, media: Path) -> Clip:
        return self.model.encode(media, pruning=self._pruning)

    def _logits(self, clip: Clip, question: Question) -> NDArray[np.float32]:
        content = [{"type": clip.kind, clip.kind: clip}, {"type": "text", "text": question.text}]
        prompt = self.model.prompt([{"role": "user", "content": content}], [clip])
        answer = self._tokenizer.encode(question.answer, add_special_tokens=False).ids
        self._decoder.rewind(0)
        self._decoder.prefill(prompt.embeddings(self._table))
        rows = [self._decoder.logits[0].copy()]
        for token in answer:
            self._decoder.step(self._table.rows(np.array([token])))
            rows.append(self._decoder.logits[0].copy())
        return np.stack(rows)


def _budget(path: Path) -> PixelBudget:
    values = json.loads(path.read_text(encoding="utf-8"))
    size = values["size"]
    return PixelBudget(PATCH_PX, values["merge_size"], size["shortest_edge"], size["longest_edge"])
