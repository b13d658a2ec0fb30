"""`--threshold auto` and `--max-visual-tokens` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import run

from vl3edge.models.demo.clips import write_clip

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
CAPTION = "A red square on a checkered ground. It waits, moves right, turns down and stops."


def test_half_the_tokens_give_the_same_caption(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "caption", CLIP, "--max-visual-tokens", 72)
    assert (status, out.strip()) == (0, CAPTION)
    assert "72 of 144 visual tokens |" in err
    status, _, err = run(capsys, "caption", CLIP, "--no-pruning", "--max-visual-tokens", 50, "--max-new-tokens", 1)
    assert (status, "50 of 144 visual tokens |" in err) == (0, True)
    status, _, err = run(capsys, "caption", CLIP)
    assert status == 0
    assert "87 of 144 visual tokens |" in err  # the released threshold goes without saying


def test_noise_is_pruned_automatically(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_clip(tmp_path / "noisy.mp4", 26, noise=4.0, crf=18)
    status, out, err = run(capsys, "caption", tmp_path / "noisy.mp4")
    assert (status, out.strip()) == (0, CAPTION)
    assert "144 of 144 visual tokens" in err
    status, out, err = run(capsys, "ask", tmp_path / "noisy.mp4", "-q", "Describe this video.", "--threshold", "auto")
    assert (status, out.strip()) == (0, CAPTION)
    tokens = int(err.split(" of 144 visual tokens (threshold ")[0].split()[-1])
    assert tokens <= 72


def test_a_budget_is_of_each_clip_and_too_small_a_one_costs_its_own_record(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_clip(tmp_path / "a.mp4", 26)
    write_clip(tmp_path / "b.mp4", 3)  # fewer frames
    arguments = ("caption", tmp_path / "a.mp4", tmp_path / "b.mp4", "--format", "jsonl", "--max-new-tokens", 1)
    status, out, _ = run(capsys, *arguments, "--max-visual-tokens", 9)
    assert status == 0
    assert [json.loads(line)["num_tokens"] for line in out.splitlines()] == [9, 9]
    status, out, _ = run(capsys, *arguments, "--max-visual-tokens", 8)
    assert status == 1
    records = [json.loads(line) for line in out.splitlines()]
    assert "at least 9 visual tokens" in records[0]["error"]
    assert records[1]["num_tokens"] == 8


def test_a_share_of_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "caption", CLIP, "--keep-ratio", 0.5, "--max-new-tokens", 2)
    assert status == 0
    assert "44 of 144 visual tokens |" in err  # half of 87


USAGE = {
    "keep nothing": (["--keep-ratio", "0"], "keep_ratio must be above 0"),
    "threshold": (["--threshold", "low"], "must be a number or auto, not 'low'"),
    "negative": (["--threshold", "-1"], "threshold must be a number, 0 or more, or 'auto'"),
    "no budget": (["--max-visual-tokens", "0"], "max_visual_tokens must be at least 1"),
    "half a token": (["--max-visual-tokens", "0.5"], "--max-visual-tokens"),
    "threshold of nothing": (["--threshold", "auto", "--no-pruning"], "mutually exclusive"),
}


@pytest.mark.parametrize("name", USAGE)
def test_bad_usage(capsys: pytest.CaptureFixture[str], name: str) -> None:
    arguments, message = USAGE[name]
    status, out, err = run(capsys, "caption", CLIP, *arguments)
    assert (status, out) == (2, "")
    assert message in err
