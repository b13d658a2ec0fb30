"""The settings of a quantization: the method, and how many bits for which layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vl3edge.models.config import TextConfig

from .errors import QuantError
from .grid import BITS, WHOLE_ROW, Grid

Method = Literal["gptq", "rtn"]

# Linear layers of a decoder layer that read the same input, in execution order. They share a Hessian and a bit width,
# so that a graph can compute them as one product.
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUT = ("self_attn.o_proj",)
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN = ("mlp.down_proj",)
GROUPS = (QKV, OUT, GATE_UP, DOWN)
LINEARS = (*QKV, *OUT, *GATE_UP, *DOWN)

_USUAL_GROUPS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class QuantizationPlan:
    """How to quantize a decoder.

    method: "gptq", or "rtn" for round-to-nearest, the baseline, which needs no calibration.
    bits: of the decoder layers' weights: 8, 4, 3 or 2; or "auto": 4, but 8 where it pays most, within average_bits.
    average_bits: only for "auto": how many bits per decoder layer weight there may be on average, from 4 to 8.
    head_bits: of the output head, or None to keep it as it is.
    group_size: inputs that share a scale, or -1 for all of a row.
    symmetric: zero points fixed to the middle code.
    act_order: round the columns with the largest inputs first.
    damp: share of the Hessian's median diagonal that is added to it.
    """

    method: Method = "gptq"
    bits: int | Literal["auto"] = 4
    average_bits: float = 4.5
    head_bits: int | None = 8
    group_size: int = 128
    symmetric: bool = True
    act_order: bool = True
    damp: float = 0.01

    def __post_init__(self) -> None:
        if self.method not in ("gptq", "rtn"):
            raise QuantError(f"method must be 'gptq' or 'rtn', not {self.method!r}")
        if self.bits not in (*BITS, "auto"):
            raise QuantError(f"bits must be one of {', '.join(map(str, BITS))} or 'auto', not {self.bits!r}")
        if self.head_bits is not None and self.head_bits not in BITS:
            raise QuantError(f"head_bits must be one of {', '.join(map(str, BITS))} or None, not {self.head_bits!r}")
        if not (math.isfinite(self.damp) and self.damp > 0):
            raise QuantError(f"damp must be above 0, not {self.damp}")
        if not 4 <= self.average_bits <= 8:
            raise QuantError(f"average_bits must be from 4 to 8, not {self.average_bits}")
        self.grid(4)

    def grid(self, bits: int) -> Grid:
        """The plan's grid at this bit width. Raises QuantError for an invalid group size."""
        return Grid(bits, self.group_size, self.symmetric)

    def check(self, text: TextConfig) -> None:
        """Raises QuantError for a group size that does not fit a decoder of these sizes, before any work is done.

        Groups divide every row, and are multiples of 16, the smallest block of MatMulNBits.
        """
        widths = sorted({text.hidden_size, text.num_heads * text.head_dim, text.intermediate_size})
        sizes = widths if self.group_size == WHOLE_ROW else [self.group_size]
        divided = self.group_size == WHOLE_ROW or not any(width % self.group_size for width in widths)
        if divided and not any(size % _USUAL_GROUPS[0] for size in sizes):
            return
        fitting = [str(size) for size in _USUAL_GROUPS if not any(width % size for width in widths)]
        hint = f"take {', '.join(fitting)}" if fitting else "do not quantize it (--quant none)"
        raise QuantError(
            f"groups of {'whole rows' if self.group_size == WHOLE_ROW else self.group_size} do not fit this decoder, "
            f"whose rows have {', '.join(map(str, widths))} weights: {hint}"
        )
