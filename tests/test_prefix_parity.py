"""An answer with a prefix against transformers: the ids of prompt and prefix, then generate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference import VisualInput, generate_from_visuals, load_reference, transformers_module

from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import Layout
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.runtime import GenerationConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.decode.generate import join
from vl3edge.runtime.jobs import CaptionJob
from vl3edge.runtime.vision.difffp import keep_mask

NEW_TOKENS = 16
QUESTION = "What happens?"
PREFIXES = ("A video of", " two\nlines: ", "日本語で", "<|im_end|> is text")


@pytest.mark.parametrize("layout", ["transformers", "authors"])
def test_the_tokens_are_those_of_transformers_after_the_same_ids(layout: Layout, tmp_path: Path) -> None:
    """Alone, streamed while the clip is encoded, and in a batch."""
    write_random_checkpoint(tmp_path / "checkpoint", preset("tiny", layout), seed=21, dtype="float32")
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    export_bundle(checkpoint, tmp_path / "bundle")
    model, reference = VideoLlama3.load(tmp_path / "bundle", "cpu", 1), load_reference(checkpoint.folder)
    tokenizer = transformers_module().AutoTokenizer.from_pretrained(checkpoint.folder)
    frames = np.random.default_rng(3).integers(0, 256, (3, 112, 112, 3), np.uint8)
    frames[2] = frames[1]
    clip = model.encode(frames, SamplingPlan(fps=1.0), kind="video")
    content = [{"type": "video", "video": clip}, {"type": "text", "text": QUESTION}]
    prompt = model.prompt([{"role": "user", "content": content}], [clip]).ids.tolist()
    visual = VisualInput(frames, 2, keep_mask(frames, 14, 2))
    ends, said = set(checkpoint.config.eos_token_ids), []
    for prefix in PREFIXES:
        ids = tokenizer(prefix, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        new = generate_from_visuals(reference, checkpoint.config, [*prompt, *ids], [visual], NEW_TOKENS)
        expected = [*ids, *(token for token in new if token not in ends)]
        config = GenerationConfig(max_new_tokens=NEW_TOKENS, prefix=prefix, temperature=0.0)
        chunks = list(model.stream(clip, QUESTION, config))
        assert (chunks[0].text, list(chunks[0].token_ids)) == (prefix, ids)
        assert list(join(iter(chunks)).token_ids) == expected
        pending = model.begin(frames, SamplingPlan(fps=1.0), kind="video")
        assert list(model.ask(pending, QUESTION, config).token_ids) == expected
        for result in model.caption_all([CaptionJob(clip, QUESTION), CaptionJob(clip, QUESTION)], config, batch=2):
            assert result.answer is not None
            assert list(result.answer.token_ids) == expected
            assert result.caption is not None
            assert result.caption.startswith(prefix)
        said.append(tuple(new))
    assert len(set(said)) > 1  # the prefix decides something
