"""Draws benchmarks/results/fine_pruning.json: exact answers over the share of tokens kept, by kind of clip.

python benchmarks/fine_pruning_plot.py [--json benchmarks/results/fine_pruning.json] [-o FILE.svg]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

RESULTS = Path(__file__).parent / "results"
STYLES: dict[str, dict[str, Any]] = {
    "shipped": {"color": "#1f6fb4", "marker": "s", "label": "--max-visual-tokens: DiffFP, then the most unique"},
    "unique": {"color": "#7fb0dc", "marker": "^", "label": "the most unique"},
    "both": {"color": "#5b8c3a", "marker": "D", "label": "DiffFP half of the way, then the most unique"},
    "budget": {"color": "#c2410c", "marker": "o", "label": "largest changes (DiffFP)"},
    "shifted": {"color": "#8e5bb0", "marker": "v", "label": "largest changes, camera's motion compensated"},
    "random": {"color": "#c9a227", "marker": "x", "linestyle": ":", "label": "at random"},
}
POINTS = {"difffp": ("P", "#333333", "--threshold 0.1"), "auto": ("*", "#333333", "--threshold auto")}
CLIPS = ("all", "still", "panning", "zooming", "noisy", "cut")


def draw(result: dict[str, Any], path: Path) -> None:
    mpl.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "vl3edge", "axes.axisbelow": True})
    figure, grid = plt.subplots(2, 3, figsize=(9.2, 5.8), sharex=True, sharey=True, layout="constrained")
    for axes, clips in zip(grid.flat, CLIPS, strict=True):
        _curves(axes, [row for row in result["rows"] if row["clips"] == clips])
        axes.set_title("all clips" if clips == "all" else clips, fontsize=9)
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in grid[-1]:
        axes.set_xlabel("visual tokens kept")
    for axes in grid[:, 0]:
        axes.set_ylabel("exactly right")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def _curves(axes: Axes, rows: list[dict[str, Any]]) -> None:
    (whole,) = (row for row in rows if row["rule"] == "all")
    for rule, style in STYLES.items():
        points = sorted((row["tokens"], row["exact"]) for row in [*(r for r in rows if r["rule"] == rule), whole])
        axes.plot(*zip(*points, strict=True), markersize=4, **style)
    for rule, (marker, color, label) in POINTS.items():
        (row,) = (row for row in rows if row["rule"] == rule)
        axes.plot(row["tokens"], row["exact"], marker, color=color, markersize=7, label=label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / "fine_pruning.json")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "fine_pruning.svg")
    options = parser.parse_args()
    draw(json.loads(options.json.read_text(encoding="utf-8")), options.output)


if __name__ == "__main__":
    main()
