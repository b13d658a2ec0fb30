"""The fine model's sizes, and the read-outs that teach its video tokens what is on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import make_config
from ..render import COLOURS
from ..stock import VideoLlama3Config
from .glyphs import GLYPHS
from .labels import EDGES, SIDE, UNKNOWN, TokenLabels
from .world import GROUNDS, SHAPES


def fine_config(special: dict[str, int] | None = None) -> VideoLlama3Config:
    """The configuration. special: ids of the special tokens by their text."""
    return make_config(special, vision_width=128, decoder_layers=4)


_CLASSES = {
    "kind": len(SHAPES) + 2,
    "colour": len(COLOURS),
    "glyph": len(GLYPHS),
    "left": EDGES,
    "top": EDGES,
    "right": EDGES,
    "bottom": EDGES,
    "owner": 2,
    "row": SIDE,
    "column": SIDE,
    "ground": len(GROUNDS),
}


_NOTHING = 0.1  # weight of tokens that show nothing: they are most, and easily told


class TokenHeads(nn.Module):
    """Linear read-outs of every merged token, used in the vision stage and then dropped.

    They ask each token for its own position and what is on it, and nothing about other places: the encoder is frozen
    afterwards, so what a token knows stays local.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(_CLASSES.values()))

    def forward(self, tokens: Tensor, labels: TokenLabels) -> dict[str, tuple[Tensor, Tensor]]:
        """(loss, share of right answers) of each head, of merged tokens [F, 5, 5, C]."""
        result = {}
        parts = self.linear(tokens).split(list(_CLASSES.values()), dim=-1)
        for name, logits in zip(_CLASSES, parts, strict=True):
            target = getattr(labels, name)
            known = target != UNKNOWN
            weights = torch.ones(logits.shape[-1])
            if name == "kind":
                weights[0] = _NOTHING
            result[name] = (
                F.cross_entropy(logits[known], target[known], weights),
                (logits[known].argmax(-1) == target[known]).float().mean(),
            )
        return result
