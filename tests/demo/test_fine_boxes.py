"""The fine model, exported, says where things are: its boxes in pixels are those of the scene it was shown."""

from __future__ import annotations

from pathlib import Path

from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.demo.fine.clips import write_clip
from vl3edge.models.demo.fine.evaluate import CHECKPOINT
from vl3edge.models.demo.fine.questions import choices
from vl3edge.runtime import Box, PruningConfig, VideoLlama3
from vl3edge.runtime.prompt.boxes import read_boxes


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    both = max(0, width) * max(0, height)
    areas = sum((box.x1 - box.x0) * (box.y1 - box.y0) for box in (a, b))
    return both / (areas - both)


def test_boxes_are_where_things_are(tmp_path: Path) -> None:
    export_bundle(Checkpoint.open(CHECKPOINT), tmp_path / "fine")
    model = VideoLlama3.load(tmp_path / "fine", "cpu", num_threads=1)
    overlaps: list[float] = []
    for number in range(5000, 5002):
        clip_file = tmp_path / f"{number}.mp4"
        world = write_clip(clip_file, number)
        clip = model.encode(clip_file, pruning=PruningConfig(enabled=False))
        for question in choices(world)["where"]:
            (truth,) = read_boxes(question.answer, [clip.source_size]).boxes
            answer = model.ask(clip, question.text)
            assert (len(answer.boxes), answer.boxes_note) == (1, None), answer.text
            assert answer.boxes[0].label == truth.label
            overlaps.append(overlap(answer.boxes[0], truth))
    assert len(overlaps) > 15
    assert sum(value > 0.5 for value in overlaps) > 0.9 * len(overlaps)
