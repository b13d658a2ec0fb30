"""Bundles of the demo checkpoint, run by the runtime: the answers of the torch reference, and how near they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.demo.evaluate import CHECKPOINT, evaluate, summarize, write_media
from vl3edge.models.demo.predictors import BundlePredictor, TorchPredictor
from vl3edge.models.demo.questions import Question
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE


def test_shipped_bundle_is_the_shipped_checkpoint() -> None:
    """Quantized, so near and not equal; a bundle of another training run would be nowhere near."""
    reference, bundle = TorchPredictor(CHECKPOINT), BundlePredictor(DEMO_BUNDLE)
    lines = summarize(list(evaluate(bundle, reference.tokenizer, range(300, 303), reference)))
    assert lines["[all]"].lost == lines["[all]"].gained == 0
    assert lines["[all]"].exact == 1.0
    for kind, line in lines.items():
        assert line.kl < 1e-3, f"{kind}: KL {line.kl:.2e}"


def test_wrong_answers_have_the_same_text(tmp_path: Path) -> None:
    _, clip, _ = write_media(tmp_path, 303, noise=0.0)
    question = Question("caption", "Describe this video.", "Not this.")
    ours = BundlePredictor(DEMO_BUNDLE).predict(clip, [question])[0]
    reference = TorchPredictor(CHECKPOINT).predict(clip, [question])[0]
    assert ours.text == reference.text
    assert ours.logits.shape == reference.logits.shape


@pytest.mark.long
@pytest.mark.parametrize("threshold", [0.1, 5.0, None])
def test_unquantized_bundle_equals_the_reference(tmp_path: Path, threshold: float | None) -> None:
    export_bundle(Checkpoint.open(CHECKPOINT), tmp_path / "demo")
    reference, bundle = TorchPredictor(CHECKPOINT, threshold), BundlePredictor(tmp_path / "demo", threshold)
    lines = summarize(list(evaluate(bundle, reference.tokenizer, range(300, 310), reference)))
    assert lines["[all]"].lost == lines["[all]"].gained == 0
    for kind, line in lines.items():
        assert line.kl < 1e-7, f"{kind}: KL {line.kl:.2e}"
