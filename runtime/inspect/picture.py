"""An inspection as one picture, and its charts for the page (needs matplotlib: the extra `inspect`).

Nothing of matplotlib's global state is used or changed: no window system, no settings of the user's.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.style import context as style_context

from . import charts as charts
from .charts import LIGHT, Theme
from .frames import choose_shown, dimmed, with_palette
from .inspection import Inspection
from .text import facts, footnote, moment

DPI = 120
_WIDTH, _MARGIN, _GAP = 13.0, 0.35, 0.1  # inches, as all lengths here
_HEADER, _CAPTION, _CHARTS = 0.95, 0.22, 3.75
_MOST_ROWS, _MOST_COLUMNS = 2, 12
_TALLEST = 2.6  # a thumbnail, unless so many columns of upright frames do not make it less
_PLOT, _GAUGE = (5.4, 3.6), (4.5, 1.6)  # on the page


def picture(seen: Inspection, available: int | None = None) -> bytes:
    """The whole inspection as a PNG. available: bytes of memory that can be taken now, None if unknown."""
    columns, rows, shown = _film(seen)
    cell = (_WIDTH - 2 * _MARGIN + _GAP) / columns
    height, width = seen.size
    thumb = (cell - _GAP) * height / width
    strip = rows * (thumb + _CAPTION + _GAP) if seen.moves else 0.0
    bars = 2.3 if seen.moves else 0.0
    total = _HEADER + strip + bars + _CHARTS + 0.3
    with _settings(LIGHT):
        sheet = _Sheet(total)
        _header(sheet, seen)
        if seen.moves:
            for place, number in enumerate(shown):
                row, column = divmod(place, columns)
                top = _HEADER + row * (thumb + _CAPTION + _GAP)
                axes = sheet.axes(_MARGIN + column * cell, top, cell - _GAP, thumb)
                _frame(axes, seen, number)
            charts.timeline(sheet.axes(0.85, _HEADER + strip + 0.5, _WIDTH - 1.2, 1.15), seen, LIGHT, shown)
        _charts(sheet, seen, _HEADER + strip + bars, available)
        sheet.figure.text(_MARGIN / _WIDTH, 0.12 / total, footnote(seen), color=LIGHT.muted, size=8.5, va="bottom")
        return with_palette(_saved(sheet.figure, "png"))


def page_charts(seen: Inspection, theme: Theme, available: int | None = None) -> dict[str, bytes]:
    """The charts of the page as SVG without a background, by name."""
    drawn: dict[str, tuple[tuple[float, float], Callable[[Axes], None]]] = {
        "context": (_GAUGE, lambda axes: charts.context(axes, seen, theme)),
        "memory": (_GAUGE, lambda axes: charts.memory(axes, seen, theme, available)),
        "time": (_GAUGE, lambda axes: charts.least_time(axes, seen, theme)),
    }
    if seen.moves:
        drawn["timeline"] = (_PLOT, lambda axes: charts.timeline(axes, seen, theme))
        drawn["curve"] = (_PLOT, lambda axes: charts.curve(axes, seen, theme))
    pictures = {}
    for name, (figsize, draw) in drawn.items():
        with _settings(theme):
            figure = Figure(figsize=figsize, layout="constrained")
            draw(figure.add_subplot())
            pictures[name] = _saved(figure, "svg")
    return pictures


class _Sheet:
    """A figure on which places are given in inches from the upper left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(_WIDTH, height), dpi=DPI)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes((left / _WIDTH, bottom / self.height, width / _WIDTH, height / self.height))

    def text(self, left: float, top: float, text: str, **options: object) -> None:
        self.figure.text(left / _WIDTH, 1 - top / self.height, text, va="top", **options)  # type: ignore[arg-type]


def _film(seen: Inspection) -> tuple[int, int, list[int]]:
    """Columns and rows of the frames shown, and their numbers."""
    height, width = seen.size
    strip = (_WIDTH - 2 * _MARGIN) * height / width  # as high as one frame in all the width would be
    most = min(_MOST_COLUMNS, max(4, math.floor(strip)))  # thumbnails at least an inch high
    fewest = min(_MOST_COLUMNS, max(5, math.ceil(strip / _TALLEST)))
    rows = min(_MOST_ROWS, -(-seen.num_frames // most))
    shown = choose_shown(seen.num_frames, rows * most)
    return max(-(-len(shown) // rows), min(most, fewest)), rows, shown


def _header(sheet: _Sheet, seen: Inspection) -> None:
    sheet.text(_MARGIN, 0.2, seen.title, size=15, weight="bold")
    sheet.text(_MARGIN, 0.54, " · ".join(facts(seen)), size=10.5, color=LIGHT.muted)


def _frame(axes: Axes, seen: Inspection, number: int) -> None:
    red, green, blue = (round(255 * part) for part in to_rgb(LIGHT.page))
    axes.imshow(dimmed(seen.frames[number], seen.keep[number], seen.block, (red, green, blue)), interpolation="lanczos")
    axes.set_anchor("NW")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    if seen.moves:
        axes.set_xlabel(
            f"{moment(seen, number)}: {seen.tokens_per_frame[number]} of {seen.keep.shape[1]}", size=9, labelpad=2
        )


def _charts(sheet: _Sheet, seen: Inspection, top: float, available: int | None) -> None:
    """On the left the curve of thresholds, or the one picture there is; on the right what it all costs."""
    if seen.moves:
        charts.curve(sheet.axes(0.85, top + 0.6, 5.6, _CHARTS - 1.2), seen, LIGHT)
    else:
        _frame(sheet.axes(_MARGIN, top, 6.0, _CHARTS - 0.2), seen, 0)
    left, width, step = 7.95, 4.75, _CHARTS / 3
    for place, draw in enumerate(
        (
            lambda axes: charts.context(axes, seen, LIGHT),
            lambda axes: charts.memory(axes, seen, LIGHT, available),
            lambda axes: charts.least_time(axes, seen, LIGHT),
        )
    ):
        draw(sheet.axes(left, top + 0.15 + place * step, width, 0.55))


@contextmanager
def _settings(theme: Theme) -> Iterator[None]:
    with style_context("default"), rc_context(charts.style(theme)), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", r"Glyph \d+")  # of a file's name, which no font at hand may have
        yield


def _saved(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, transparent=kind == "svg", metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
