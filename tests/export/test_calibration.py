"""Calibration sequences are what the runtime's decoder would read of the same conversation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vl3edge.export.calibrate import sequences as calibration
from vl3edge.export.calibrate.sequences import CalibrationEmbedder, calibration_set
from vl3edge.quant.calibration import CalibrationItem, calibration_items
from vl3edge.quant.conversations import PAIRS
from vl3edge.quant.errors import QuantError
from vl3edge.runtime import SamplingPlan, VideoLlama3
from vl3edge.runtime.bundle.bundle import open_bundle
from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.prompt.splice import EmbeddingTable


@pytest.mark.parametrize("name", ["nasa_13013.mp4", "cat.jpg"])
def test_a_sequence_is_the_prompt_and_its_answer(bundle: Path, media: Path, name: str) -> None:
    item = CalibrationItem(media / name, None, PAIRS[1])
    got = CalibrationEmbedder(open_bundle(bundle))(item).embeddings
    model = VideoLlama3.load(bundle, backend="cpu", num_threads=1)
    clip = model.encode(media / name, SamplingPlan(max_frames=16))
    content = [{"type": clip.kind, clip.kind: clip}, {"type": "text", "text": item.exchange.question}]
    prompt = model.prompt([{"role": "user", "content": content}], [clip])
    text = model.bundle.manifest.text
    table = EmbeddingTable(bundle / "embeddings.safetensors", text.vocab_size, text.hidden_size)
    expected = prompt.embeddings(table)
    assert len(got) > len(expected)
    different = (got[: len(expected)] != expected).any(axis=1)
    assert not different.any(), f"positions {np.flatnonzero(different)} of {len(expected)}"
    assert clip.num_tokens > 20


def test_built_in_scenes_fill_the_budget(bundle: Path) -> None:
    result = calibration_set(open_bundle(bundle), max_tokens=2000)
    assert 2000 <= result.num_tokens < 2000 + 2048
    assert len(result.held_out) >= 1
    assert all(np.isfinite(s.embeddings).all() for s in (*result.calibration, *result.held_out))


def test_large_media_are_made_small(bundle: Path, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nasa_13013.mp4", "cat.jpg"):
        item = CalibrationItem(media / name, None, PAIRS[1])
        whole = CalibrationEmbedder(open_bundle(bundle))(item).embeddings
        with monkeypatch.context() as patch:
            patch.setattr(calibration, "_VISUAL_TOKENS", 20)
            small = CalibrationEmbedder(open_bundle(bundle))(item).embeddings
        assert len(small) <= len(whole) - 12
        assert np.array_equal(small[-20:], whole[-20:])


def test_a_folder_without_readable_media_is_one_clear_line(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "broken.mp4").write_bytes(b"no video either")
    with pytest.raises(QuantError, match="none of the calibration media can be used") as raised:
        calibration_set(open_bundle(bundle), [str(tmp_path)])
    assert "broken.mp4" in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(MediaError, match="there is no such file, folder, pattern or address"):
        calibration_set(open_bundle(bundle), [str(tmp_path / "absent")])


def test_the_user_s_media_are_all_used(bundle: Path, media: Path) -> None:
    result = calibration_set(open_bundle(bundle), [str(media / "nasa_13013.mp4"), str(media / "cat.jpg")])
    assert len(result.calibration) + len(result.held_out) == 4
    assert len(list(calibration_items([media / "cat.jpg"]))) == 2
