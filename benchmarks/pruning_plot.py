"""Draws benchmarks/results/pruning.json as the README's picture.

python benchmarks/pruning_plot.py [--json benchmarks/results/pruning.json] [-o benchmarks/results/pruning.svg]
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
    "fixed": {"color": "#8a8a8a", "marker": "o", "markersize": 4, "label": "--threshold 0.1 to 25.5"},
    "random": {"color": "#c9a227", "marker": "x", "linestyle": ":", "label": "as many, at random"},
    "budget": {"color": "#1f6fb4", "marker": "s", "markersize": 5, "label": "largest changes, 75, 50, 35, 25 %"},
    "auto": {"color": "#c2410c", "marker": "*", "markersize": 14, "linestyle": "", "label": "--threshold auto"},
}
QUANTITIES = {
    "exact": "answers exactly right",
    "nll": "NLL of the right answers,\n0.001 nats a token",
    "changed": "changed tokens kept",
}


def draw(result: dict[str, Any], path: Path) -> None:
    """One column for each strength of noise, one row for each quantity, over the share of tokens kept."""
    noises = sorted({row["noise"] for row in result["rows"]})
    mpl.rcParams.update({"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "vl3edge", "axes.axisbelow": True})
    figure, grid = plt.subplots(
        len(QUANTITIES),
        len(noises),
        figsize=(9.2, 7.2),
        sharex=True,
        sharey="row",
        layout="constrained",
        height_ratios=(4, 4, 5),
    )
    for column, noise in zip(grid.T, noises, strict=True):
        rows = [row for row in result["rows"] if row["noise"] == noise]
        for axes, quantity in zip(column, QUANTITIES, strict=True):
            _curves(axes, rows, quantity)
        column[0].set_title(f"sensor noise σ = {noise:g} levels" if noise else "no sensor noise", fontsize=10)
        column[-1].set_xlabel("visual tokens kept")
    for axes, label in zip(grid[:, 0], QUANTITIES.values(), strict=True):
        axes.set_ylabel(label)
    for axes in grid.flat:
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    _scale(grid, result)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def _curves(axes: Axes, rows: list[dict[str, Any]], quantity: str) -> None:
    for rule, style in STYLES.items():
        points = sorted((row["tokens"], row[quantity]) for row in rows if row["rule"] == rule)
        axes.plot(*zip(*points, strict=True), **style, zorder=3 if rule == "auto" else 2)
    released = next(row for row in rows if row["rule"] == "fixed" and row["setting"] == 0.1)
    axes.plot(
        released["tokens"],
        released[quantity],
        "o",
        color="#333333",
        markersize=6,
        label="--threshold 0.1, as released",
        zorder=3,
    )
    if quantity == "exact":
        whole = next(row for row in rows if row["rule"] == "all")
        axes.axhline(whole["exact"] - 0.01, color="#333333", linewidth=0.8, linestyle="--", label="1 point lost")


def _scale(grid: Any, result: dict[str, Any]) -> None:
    percent = PercentFormatter(1.0, decimals=0)
    exact, nll, changed = grid[:, 0]
    exact.set_ylim(min(0.98, min(row["exact"] for row in result["rows"]) - 0.002), 1.0005)
    exact.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    nll.yaxis.set_major_formatter(lambda value, _: f"{1000 * value:g}")
    nll.set_ylim(0, 1.15 * max(row["nll"] for row in result["rows"]))
    changed.set_ylim(0, 1.04)
    changed.yaxis.set_major_formatter(percent)
    changed.xaxis.set_major_formatter(percent)
    changed.set_xlim(0.15, 1.03)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / "pruning.json")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "pruning.svg")
    options = parser.parse_args()
    draw(json.loads(options.json.read_text(encoding="utf-8")), options.output)


if __name__ == "__main__":
    main()
