"""Charts of an inspection, each on axes that are given to it (needs matplotlib: the extra `inspect`).

Colours mean the same everywhere: what was seen and kept, what the decoder's weights and its reading of the prompt take,
what the answer takes, and what there is in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..vision.difffp import RELEASED_THRESHOLD
from .inspection import LEVELS, Cost, Inspection
from .text import clock, duration, size

_BARS = 60
_SEEN_SHARE = 0.04  # of all memory; of less one would see nothing
_LOWEST, _HIGHEST = 0.01, 510.0  # a block that turns from black to white differs by 510


@dataclass(frozen=True)
class Theme:
    """Colours: of the page and what is written on it, and by meaning."""

    page: str
    ink: str
    muted: str
    grid: str
    seen: str
    dropped: str
    decoder: str
    answer: str
    base: str
    accent: str


LIGHT = Theme(
    "#ffffff", "#1b2330", "#647084", "#e7eaf0", "#0c8599", "#d5dbe4", "#5c6fd6", "#f2b134", "#9aa6b8", "#d9480f"
)
DARK = Theme(
    "#12161d", "#e8ecf2", "#97a3b6", "#2a323e", "#22b8cf", "#39434f", "#8291f0", "#f2b134", "#6d7a8d", "#ff8a3d"
)


def style(theme: Theme) -> dict[str, object]:
    """matplotlib's settings for a theme."""
    return {
        "font.size": 10,
        "text.color": theme.ink,
        "text.parse_math": False,  # a file may be called $…$
        "axes.facecolor": "none",
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": theme.grid,
        "xtick.color": theme.grid,
        "ytick.color": theme.grid,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "svg.hashsalt": "vl3edge",
        "svg.fonttype": "none",
    }


def timeline(axes: Axes, seen: Inspection, theme: Theme, shown: Sequence[int] = ()) -> None:
    """Every sampled frame from its time on: how many tokens it has, and how many are kept. shown: marked below."""
    times, total = np.array(seen.timestamps_s), seen.keep.shape[1]
    step = float(np.median(np.diff(times))) or 1.0
    if seen.num_frames <= _BARS:
        axes.bar(times, total, 0.85 * step, align="edge", color=theme.dropped, label="dropped")
        axes.bar(times, seen.tokens_per_frame, 0.85 * step, align="edge", color=theme.seen, label="kept")
    else:  # gaps would be narrower than a pixel
        edges = np.append(times, times[-1] + step)
        axes.stairs(np.full(len(times), total), edges, fill=True, color=theme.dropped, label="dropped")
        axes.stairs(seen.tokens_per_frame, edges, fill=True, color=theme.seen, label="kept")
    if len(shown) and len(shown) < seen.num_frames:
        marks = [times[i] + step / 2 for i in shown]
        axes.plot(marks, [-0.05 * total] * len(marks), "^", color=theme.accent, markersize=4, clip_on=False)
    axes.set_xlim(times[0], times[-1] + step)
    axes.set_ylim(0, total * 1.03)
    axes.set_title("Tokens of every sampled frame")
    axes.set_xlabel("seconds" if ":" not in clock(0, times[-1]) else "minutes : seconds")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    nice = [1, 2, 3, 5, 6, 10] if times[-1] >= 60 else [1, 2, 5, 10]  # of minutes, or of seconds
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=times[-1] - times[0] >= 5, steps=nice))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value, times[-1])))
    axes.legend(*_reversed(axes), loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.3)
    axes.tick_params(axis="x", pad=8 if len(shown) else 4)


def curve(axes: Axes, seen: Inspection, theme: Theme) -> None:
    """How many tokens each threshold keeps, with both ways of counting a threshold."""
    thresholds = np.geomspace(_LOWEST, _HIGHEST, 500)
    total = seen.keep.size
    axes.plot(thresholds, seen.kept_with(thresholds), color=theme.seen, linewidth=2)
    axes.fill_between(thresholds, seen.kept_with(thresholds), color=theme.seen, alpha=0.12, linewidth=0)
    for name, threshold, kept, mark in _marks(seen):
        chosen = mark == "o"
        colour = theme.accent if chosen else theme.muted
        at = max(threshold, _LOWEST)
        axes.axvline(at, color=colour, linewidth=1, linestyle="-" if chosen else ":")
        label = f"{name}: {kept:,} tokens ({kept / total:.0%})"
        axes.plot(at, kept, mark, color=colour, markersize=6, label=label, linestyle="none")
    room = seen.context_tokens - seen.pruned.text_tokens - 1
    if room < total:
        axes.axhline(room, color=theme.answer, linewidth=1.5, label=f"room in the context: {room:,} tokens")
    axes.set_xscale("log")
    axes.set_xlim(_LOWEST, _HIGHEST)
    axes.set_ylim(0, total * 1.04)
    axes.set_title("Tokens kept by threshold", pad=10)
    axes.set_xlabel("threshold of this runtime and the released model (× 255)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y")
    paper = axes.secondary_xaxis("top", functions=(_to_paper, _from_paper))
    paper.set_xlabel("threshold in the paper's convention")
    paper.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    legend = axes.legend(loc="best", frameon=True, facecolor=theme.page, edgecolor="none", framealpha=0.85)
    legend.set_zorder(5)


def _marks(seen: Inspection) -> list[tuple[str, float, int, str]]:
    """(name, threshold, tokens kept, marker) of the threshold in use and of those that are usual."""
    usual = {"as released, 0.1": (RELEASED_THRESHOLD, "s"), "the paper's 0.1, here 25.5": (0.1 * LEVELS, "D")}
    marks = [] if seen.threshold is None else [("in use, " + _number(seen.threshold), seen.threshold, "o")]
    marks += [(name, value, mark) for name, (value, mark) in usual.items() if value != seen.threshold]
    kept = seen.kept_with([value for _, value, _ in marks])
    return [(name, value, int(count), mark) for (name, value, mark), count in zip(marks, kept, strict=True)]


def context(axes: Axes, seen: Inspection, theme: Theme) -> None:
    """The prompt and the longest answer against what the context holds."""

    def parts(cost: Cost) -> dict[str, float]:
        return {"text": cost.text_tokens, "visual tokens": cost.visual_tokens, "answer, at most": cost.answer_tokens}

    limit = seen.context_tokens
    _stacked(axes, seen, theme, parts, (theme.base, theme.seen, theme.answer), lambda n: f"{n:,.0f}", limit)
    axes.set_title(f"Tokens, of a context of {limit:,}")


def memory(axes: Axes, seen: Inspection, theme: Theme, available: int | None) -> None:
    """The estimate of memory; available: bytes that can be taken now."""

    def parts(cost: Cost) -> dict[str, float]:
        m = cost.memory
        seeing = m.frames_bytes + m.vision_bytes + m.tokens_bytes
        rest = m.total_bytes - m.base_bytes - m.weights_bytes - seeing - m.prefill_bytes - m.kv_bytes
        return {
            "program": m.base_bytes,
            "weights": m.weights_bytes + max(0, rest),
            "encoder": seeing,
            "decoder": m.kv_bytes + m.prefill_bytes,
        }

    colours = (theme.base, theme.decoder, theme.seen, theme.answer)
    largest = max(seen.whole.memory.total_bytes, seen.pruned.memory.total_bytes)
    track = available if available is not None and largest > _SEEN_SHARE * available else None
    _stacked(axes, seen, theme, parts, colours, size, track)
    free = "" if available is None else f", of {size(available)} free"
    axes.set_title(f"Memory, estimated{free}")


def least_time(axes: Axes, seen: Inspection, theme: Theme) -> None:
    """The floors of all stages."""

    def parts(cost: Cost) -> dict[str, float]:
        times = cost.floors_s
        return {
            "encoding": times["vision encoder"] + times["projector"],
            "prompt": times["prefill"],
            "answer, at most": times["decoding"],
        }

    _stacked(axes, seen, theme, parts, (theme.seen, theme.decoder, theme.answer), duration, None)
    axes.set_title("Minimum time here, in float32")


def _stacked(
    axes: Axes,
    seen: Inspection,
    theme: Theme,
    parts: Callable[[Cost], dict[str, float]],
    colours: Sequence[str],
    words: Callable[[float], str],
    limit: float | None,
) -> None:
    """A bar for the clip as pruned, and one with every token, made of parts; a track behind them up to the limit."""
    rows = seen.costs
    totals = [sum(parts(cost).values()) for cost in rows.values()]
    longest = max([*totals, limit or 0.0])
    for y, (cost, total) in enumerate(zip(rows.values(), totals, strict=True)):
        if limit is not None:
            axes.barh(y, limit, 0.62, color=theme.grid)
        left = 0.0
        for (name, value), colour in zip(parts(cost).items(), colours, strict=True):
            axes.barh(y, value, 0.62, left, color=colour, label=name if y == 0 else None)
            left += value
        over = limit is not None and total > limit
        axes.text(
            total + 0.012 * longest, y, words(total), va="center", color=theme.accent if over else theme.ink, size=10
        )
    if limit is not None and max(totals) > limit:
        axes.axvline(limit, color=theme.accent, linewidth=1.5)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, longest * (1.16 if max(totals) > 0.85 * longest else 1.0))
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0.0, 0.0),
        ncols=4,
        borderaxespad=0.1,
        handlelength=0.9,
        handletextpad=0.4,
        columnspacing=1.2,
        labelcolor=theme.muted,
    )


def _to_paper(threshold: Any) -> Any:
    return threshold / LEVELS


def _from_paper(threshold: Any) -> Any:
    return threshold * LEVELS


def _reversed(axes: Axes) -> tuple[list[Artist], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    return handles[::-1], labels[::-1]


def _number(value: float) -> str:
    return f"{value:.3g}"
