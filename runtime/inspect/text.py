"""An inspection in words: for the picture, the page and the terminal."""

from __future__ import annotations

from ..decode.sequence import too_long
from .inspection import Inspection

_LONG = 120.0  # seconds, from which on minutes are told


def facts(seen: Inspection) -> list[str]:
    """What was done to the clip, in the order in which it was done."""
    (source_height, source_width), (height, width) = seen.source_size, seen.size
    found = [f"{source_width}×{source_height}"]
    if seen.kind == "video":
        found[0] += f", {duration(seen.duration_s)}"
        found.append(f"{seen.num_frames} frame{'s' if seen.moves else ''} sampled")
    found.append(f"resized to {width}×{height}")
    rows, columns = seen.grid
    found.append(f"{columns}×{rows} tokens {'each' if seen.moves else ''}".rstrip())
    if seen.threshold is not None and seen.moves:
        left = int(seen.keep.sum())
        kept = f"{left:,} of {seen.keep.size:,} kept ({left / seen.keep.size:.0%})"
        found.append(f"{kept} at threshold {seen.threshold:.3g}")
    elif seen.moves and not seen.drops:
        found.append("not pruned")
    if seen.drops:
        found.append(f"the {seen.pruned.visual_tokens:,} most unique for the decoder ({seen.share_kept:.0%})")
    return found


def footnote(seen: Inspection) -> str:
    """What the figures are worth."""
    return (
        f"Model {seen.model}, asked “{seen.shown_question}”: only reading was run ({seen.read_s:.2f} s). "
        "Minimum times divide float32 operations and bytes by this CPU's measured peaks; 8-bit products can be faster."
    )


def verdict(seen: Inspection) -> str | None:
    """What would go wrong; None if nothing."""
    if seen.pruned.answer_tokens:
        return None
    return too_long(seen.pruned.prompt_tokens, seen.pruned.media_tokens, seen.context_tokens)


def moment(seen: Inspection, number: int) -> str:
    """When a frame is shown, with a unit."""
    last = seen.timestamps_s[-1]
    return clock(seen.timestamps_s[number], last) + (" s" if last < _LONG else "")


def clock(seconds: float, longest: float) -> str:
    """A time: in seconds, or as minutes and seconds where a clip is long."""
    if longest < _LONG:
        return f"{round(seconds, 2):g}"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < _LONG else f"{seconds / 60:.1f} min"
