"""The fine model that ships: near its reported figures on a few held-out clips, and it misses tokens that are gone."""

from __future__ import annotations

from tokenizers import Tokenizer

from vl3edge.models.demo.fine.evaluate import ALL, CHECKPOINT, answer, summarize
from vl3edge.models.demo.fine.ways import make_way


def test_a_few_clips() -> None:
    ways = [make_way(way, CHECKPOINT) for way in ("torch", "torch:random")]
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    whole, half = (lines[ALL] for lines in summarize(answer(ways, tokenizer, range(5000, 5012))))
    assert whole.count > 100
    assert whole.exact > 0.85
    assert half.exact < whole.exact - 0.15
