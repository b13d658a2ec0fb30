"""An inspection as one HTML page that needs nothing else: no network, no scripts, light or dark as its reader has it.

Every frame is there, with what was pruned of it under a veil that lifts when the frame is pointed at or tapped. The
template (`page.html`) escapes whatever it is given; the page forbids itself to load anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ..memory_estimate import MemoryEstimate
from .frames import data_uri, jpeg, veil
from .inspection import LEVELS, Cost, Inspection
from .text import duration, facts, footnote, moment, size, verdict

_TEMPLATE = Path(__file__).with_name("page.html")
_THUMBNAIL = 360  # pixels of a frame's longer side; one alone has more
_ALONE = 1000
_WORDS = {
    "context": "Tokens of prompt and answer against the context",
    "memory": "Memory by use",
    "time": "Minimum time by stage",
    "timeline": "Tokens kept and dropped of every frame over time",
    "curve": "Tokens kept as a function of the threshold, in both conventions",
}
_LARGE = ("timeline", "curve")
Charts = Mapping[str, bytes]


@dataclass(frozen=True)
class _Figure:
    """A frame on the page: its picture and veil as data URIs, and its caption."""

    picture: str
    veil: str
    time: str
    kept: int
    of: int


def page(seen: Inspection, light: Charts, dark: Charts) -> str:
    """The page; light, dark: the same charts as SVG for both looks (`inspection_picture.page_charts`)."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    charts = {
        name: (words, data_uri(light[name], "image/svg+xml"), data_uri(dark[name], "image/svg+xml"))
        for name, words in _WORDS.items()
        if name in light
    }
    return template.render(
        title=seen.title,
        facts=facts(seen),
        verdict=verdict(seen),
        tiles=_tiles(seen),
        frames=[_figure(seen, i) for i in range(seen.num_frames)],
        shape=seen.size,
        pruned=seen.threshold is not None and seen.moves,
        large=[charts[name] for name in charts if name in _LARGE],
        small=[charts[name] for name in charts if name not in _LARGE],
        tables=_tables(seen),
        footnote=footnote(seen),
    )


def _figure(seen: Inspection, number: int) -> _Figure:
    longest = _THUMBNAIL if seen.moves else _ALONE
    return _Figure(
        data_uri(jpeg(seen.frames[number], longest), "image/jpeg"),
        data_uri(veil(seen.keep[number], seen.grid), "image/png"),
        moment(seen, number) if seen.moves else "",
        seen.tokens_per_frame[number],
        seen.keep.shape[1],
    )


def _tiles(seen: Inspection) -> list[tuple[str, str, str]]:
    """(figure, unit, what it is) of what one would ask first."""
    cost = seen.pruned
    context = f"of {seen.context_tokens:,} in the prompt ({cost.prompt_tokens / seen.context_tokens:.1%})"
    tiles = [
        (f"{cost.visual_tokens:,}", "visual tokens", f"{seen.share_kept:.0%} of {seen.keep.size:,}"),
        (f"{cost.prompt_tokens:,}", "tokens", context),
        (size(cost.memory.total_bytes), "", "memory, estimated"),
        (duration(cost.floor_s), "", "minimum time here, in float32"),
    ]
    if seen.threshold is not None and seen.moves:
        paper = f"× 255; {seen.threshold / LEVELS:.2g} in the paper’s convention"
        tiles.insert(1, (f"{seen.threshold:.3g}", "threshold", paper))
    return tiles


def _tables(seen: Inspection) -> list[dict[str, Any]]:
    """The charts' figures, for the clip as pruned and with every token."""
    costs = seen.costs

    def rows(parts: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
        return [(name, [words(cost) for cost in costs.values()]) for name, words in parts.items()]

    times = {name: _time_of(name) for name in seen.whole.floors_s}
    tokens = {
        "text of the prompt": lambda c: f"{c.text_tokens:,}",
        "visual tokens": lambda c: f"{c.visual_tokens:,}",
        "answer, at most": lambda c: f"{c.answer_tokens:,}",
        "together": lambda c: f"{c.prompt_tokens + c.answer_tokens:,}",
    }
    memory = {name: _memory_of(name) for name in _MEMORY} | {"peak": lambda c: size(c.memory.total_bytes)}
    times["together"] = lambda c: duration(c.floor_s)
    return [
        {"name": name, "heads": list(costs), "rows": rows(parts)}
        for name, parts in (("Tokens", tokens), ("Memory, estimated", memory), ("Minimum time, in float32", times))
    ]


_MEMORY = {
    "program and libraries": "base_bytes",
    "weights": "weights_bytes",
    "loading (temporary)": "loading_bytes",
    "frames": "frames_bytes",
    "encoder activations": "vision_bytes",
    "visual tokens": "tokens_bytes",
    "decoder’s cache": "kv_bytes",
    "prefill activations": "prefill_bytes",
}
assert set(_MEMORY.values()) == set(MemoryEstimate.__dataclass_fields__)


def _memory_of(name: str) -> Any:
    return lambda cost: size(getattr(cost.memory, _MEMORY[name]))


def _time_of(stage: str) -> Any:
    def words(cost: Cost) -> str:
        return duration(cost.floors_s[stage])

    return words
