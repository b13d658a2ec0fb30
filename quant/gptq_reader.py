"""Reads GPTQ checkpoints, whichever tool wrote them.

Each layer is read as stored: the bit width follows from the shapes (GPTQModel's `dynamic` rules may vary it), layers
that were not quantized stay unquantized, and a missing g_idx means groups in order.

Zero points are stored minus one (format v1) or unchanged (v2), and some writers have mislabelled them. On a symmetric
grid the stored number itself settles it. Otherwise the label is trusted, with a warning when the average zero point is
not where a weight distribution around zero puts it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.tensor_names import DECODER

from .errors import QuantError
from .linear import LayerError, QuantizedLinear
from .packing import GptqTensors, ZeroFormat, from_gptq, unpack_words
from .plan import LINEARS

_FORMATS: Mapping[str, ZeroFormat] = {"gptq": "v1", "gptq_v2": "v2"}
_SAMPLED_LAYERS = 8


class GptqLinears:
    """The quantized linear layers of a GPTQ checkpoint, unpacked one at a time.

    checkpoint: its `config.quantization` says how it was quantized.
    zero_format: how zero points are actually stored, regardless of the label.

    Raises QuantError for a method or format that is not GPTQ's, or when nothing of the decoder is quantized.
    """

    errors: Mapping[str, LayerError] = {}  # a file does not say

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        where = checkpoint.folder / "config.json"
        facts: Mapping[str, Any] = checkpoint.config.quantization or {}
        method = facts.get("quant_method", "gptq")
        if method != "gptq":
            raise QuantError(f"{where}: the decoder is quantized by {method!r}; only 'gptq' can be read")
        label = facts.get("checkpoint_format") or facts.get("format") or "gptq"
        if label not in _FORMATS:
            known = " and ".join(map(repr, _FORMATS))
            raise QuantError(f"{where}: the GPTQ format {label!r} is unknown; {known} can be read")
        text = checkpoint.config.text
        stems = [f"{DECODER}layers.{index}.{name}" for index in range(text.num_layers) for name in LINEARS]
        self._names = tuple(stem for stem in stems if f"{stem}.qweight" in checkpoint)
        if not self._names:
            raise QuantError(f"{where} has a quantization_config, but no layer of the decoder is quantized")
        self.zero_format: ZeroFormat = self._stored_zero_format(_FORMATS[label], bool(facts.get("sym", True)))

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def linear(self, name: str) -> QuantizedLinear:
        """The layer of this canonical name without ".weight".

        Raises QuantError when its tensors do not fit each other.
        """
        scales = self._array(name, "scales")
        if not np.isfinite(scales).all():
            raise QuantError(f"{name}.scales holds NaN or infinity; the checkpoint is damaged")
        tensors = GptqTensors(self._array(name, "qweight"), self._array(name, "qzeros"), scales, self._g_idx(name))
        try:
            linear = from_gptq(tensors, self._bits(name), self.zero_format)
        except QuantError as e:
            raise QuantError(f"{name}: {e}") from e
        bias = self._array(name, "bias").astype(np.float32) if f"{name}.bias" in self._checkpoint else None
        return QuantizedLinear(linear.codes, linear.scales, linear.zeros, linear.bits, linear.order, bias)

    def _array(self, name: str, part: str) -> np.ndarray:
        tensor = self._checkpoint.tensor(f"{name}.{part}")
        if part in ("scales", "bias"):
            tensor = tensor.float()
        array: np.ndarray = tensor.numpy()
        return array

    def _bits(self, name: str) -> int:
        return self._array(name, "qzeros").shape[1] * 32 // self._array(name, "scales").shape[1]

    def _g_idx(self, name: str) -> np.ndarray:
        if f"{name}.g_idx" in self._checkpoint:
            stored: np.ndarray = self._array(name, "g_idx").astype(np.int32)
            return stored
        inputs = self._array(name, "qweight").shape[0] * 32 // self._bits(name)
        groups = self._array(name, "scales").shape[0]
        return np.arange(inputs, dtype=np.int32) // max(1, -(-inputs // groups))

    def _stored_zero_format(self, label: ZeroFormat, symmetric: bool) -> ZeroFormat:
        """The format that the zero points of some layers indicate."""
        step = max(1, len(self._names) // _SAMPLED_LAYERS)
        sampled = []  # stored number less the middle code
        for name in self._names[::step]:
            zeros = unpack_words(self._array(name, "qzeros").T, self._bits(name))
            sampled.append(zeros.ravel().astype(np.float64) - 2 ** (self._bits(name) - 1))
        excess = np.concatenate(sampled)
        if symmetric:
            if (excess == -1).all() or (excess == 0).all():
                return "v1" if excess[0] else "v2"
            raise QuantError(
                f"{self._checkpoint.folder}: config.json says the grid is symmetric, but zero points from "
                f"{excess.min():+.0f} to {excess.max():+.0f} around the middle are stored; sym should be false, or the "
                "checkpoint is damaged"
            )
        # The middle of all codes is half a step below the middle code; v1 stores one less.
        expected = -1.5 if label == "v1" else -0.5
        if abs(excess.mean() - expected) > 0.5 + 4 * excess.std() / np.sqrt(len(excess)):
            warnings.warn(
                f"{self._checkpoint.folder} says its zero points are of format {label}, but they average "
                f"{excess.mean():+.2f} around the middle code instead of about {expected:+.1f}; if the output is "
                "nonsense, change checkpoint_format in config.json",
                stacklevel=4,
            )
        return label
