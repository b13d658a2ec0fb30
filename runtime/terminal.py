"""Text that can be shown: without what steers a terminal, on one line where a message needs that."""

from __future__ import annotations

import unicodedata

# Embeddings, overrides and isolates of text direction, their deprecated kin, and interlinear annotation.
_OVERRIDES = frozenset(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x2070), *range(0xFFF9, 0xFFFC)]))


def printable(text: str) -> str:
    """Text without what steers a terminal, or the order in which its characters are shown; newline and tab remain.

    Joiners and direction marks (U+200C to U+200F) are letters of a kind: emoji and scripts need them.
    """
    return "".join(c for c in text if c in "\n\t" or not steers(c))


def steers(character: str) -> bool:
    """Control characters (C0, DEL, C1), lone surrogates, line and paragraph separators, and bidirectional overrides."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _OVERRIDES


def one_line(text: str) -> str:
    """Printable text without line breaks, for messages with file names in them."""
    return printable(text.replace("\n", " ").replace("\t", " "))
