"""Quantizes a checkpoint's whole decoder, layer by layer, in the memory of one layer and the calibration's activations.

The work folder keeps every finished layer. Run again with the same checkpoint, data and plan, it resumes where it
stopped and gives the same result.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.decoder import DecoderLayer
from vl3edge.models.tensor_names import DECODER, EMBEDDINGS, LM_HEAD

from . import solver
from .comparison import final_norm
from .errors import QuantError
from .layerwise import LayerQuantizer, quantize_group
from .linear import LayerError, QuantizedLinear
from .plan import LINEARS, QuantizationPlan
from .sensitivity import choose_bits, measure
from .sequences import CalibrationSequence, check_sequences, fingerprint
from .workfolder import StoredLinears, WorkFolder

HEAD = LM_HEAD.removesuffix(".weight")
_ALGORITHM = 2  # incremented by every change that alters the codes, so that no run resumes across it


@dataclass(frozen=True)
class LayerProgress:
    """The step that has just finished.

    name: "layers.3" or "lm_head". done, total: steps. seconds_left: for the rest, at the pace so far.
    errors: of the step's linear layers by name.
    """

    name: str
    done: int
    total: int
    seconds_left: float
    errors: Mapping[str, LayerError]


def quantize_decoder(
    checkpoint: Checkpoint,
    sequences: Sequence[CalibrationSequence],
    plan: QuantizationPlan,
    work: Path,
    *,
    device: str = "cpu",
    progress: Callable[[LayerProgress], None] = lambda step: None,
) -> StoredLinears:
    """All linear layers of the decoder, quantized by `plan`, under their canonical names without ".weight".

    sequences: what to calibrate on; with plan.method "rtn" they only measure errors and may be empty.
    work: a folder of its own for finished layers; the result reads from it.

    Raises QuantError, where possible before any work is done: weights or data that are not finite, group sizes that do
    not divide the rows, a checkpoint that is already quantized.
    """
    if checkpoint.config.quantization is not None:
        raise QuantError(f"{checkpoint.folder} is already quantized; export it unchanged")
    if sequences or plan.method == "gptq" or plan.bits == "auto":
        check_sequences(sequences, checkpoint.config.text.hidden_size)
    _check_weights(checkpoint, plan)
    folder = WorkFolder(work, _identity(checkpoint, sequences, plan))
    run = _Run(checkpoint, sequences, plan, folder, torch.device(device), progress)
    if sequences:
        run.calibrated()
    else:
        run.rounded()
    return StoredLinears(work)


class _Run:
    """One call of quantize_decoder."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        sequences: Sequence[CalibrationSequence],
        plan: QuantizationPlan,
        folder: WorkFolder,
        device: torch.device,
        progress: Callable[[LayerProgress], None],
    ) -> None:
        self.checkpoint, self.sequences, self.plan = checkpoint, sequences, plan
        self.folder, self.device, self.report = folder, device, progress
        self.layers = checkpoint.config.text.num_layers
        self.total = self.layers + (plan.head_bits is not None)
        self.first = folder.finished_layers()
        self.started = time.monotonic()

    def calibrated(self) -> None:
        hidden = [torch.from_numpy(sequence.embeddings.copy()) for sequence in self.sequences]
        if self.first:
            hidden = self.folder.load_hidden(self.first)
        weights = [None if s.weights is None else torch.from_numpy(s.weights) for s in self.sequences]
        quantizer = LayerQuantizer(self.checkpoint.config.text, self.plan, hidden, weights, self.device)
        bits = self._bits_of_layers()
        for index in range(self.first, self.layers):
            layer = DecoderLayer.from_checkpoint(self.checkpoint, index).to(self.device)
            grids = {name: self.plan.grid(number) for name, number in bits[index].items()}
            linears = quantizer.layer(layer, grids, f"layers.{index}.")
            self._finish_layer(index, linears)
            self.folder.save_hidden(index + 1, quantizer.hidden)
        if self.plan.head_bits is not None and not self.folder.has("head"):
            self._finish_head(self._head(quantizer))

    def rounded(self) -> None:
        bits = self._bits_of_layers()
        for index in range(self.layers):
            if not self.folder.has(_part(index)):
                linears = {
                    name: solver.round_to_nearest(
                        self._tensor(f"{DECODER}layers.{index}.{name}.weight"),
                        self.plan.grid(bits[index][name]),
                        name=f"layers.{index}.{name}",
                    )
                    for name in LINEARS
                }
                self._finish_layer(index, linears)
        if self.plan.head_bits is not None and not self.folder.has("head"):
            grid = self.plan.grid(self.plan.head_bits)
            self._finish_head(solver.round_to_nearest(self._tensor(LM_HEAD), grid, name=HEAD))

    def _tensor(self, name: str) -> torch.Tensor:
        return self.checkpoint.tensor(name)

    def _bits_of_layers(self) -> list[dict[str, int]]:
        if self.plan.bits != "auto":
            return [dict.fromkeys(LINEARS, self.plan.bits)] * self.layers
        chosen = self.folder.load_note("bits")
        if chosen is None:
            found = measure(self.checkpoint, self.sequences, self.plan, self.device)
            chosen = choose_bits(found, self.plan.average_bits)
            self.folder.save_note("bits", chosen)
        return chosen

    def _head(self, quantizer: LayerQuantizer) -> QuantizedLinear:
        norm = final_norm(self.checkpoint).to(self.device)
        with torch.inference_mode():
            hessian = quantizer.moments(norm(states.to(self.device)) for states in quantizer.hidden)
            weight = self._tensor(LM_HEAD).to(self.device)
            grids = {HEAD: self.plan.grid(self.plan.head_bits or 8)}
            return quantize_group({HEAD: weight}, hessian, grids, self.plan)[HEAD]

    def _finish_layer(self, index: int, linears: dict[str, QuantizedLinear]) -> None:
        stem = f"{DECODER}layers.{index}."
        self.folder.save_part(_part(index), {stem + name: linear for name, linear in linears.items()})
        self._report(f"layers.{index}", index + 1, linears)

    def _finish_head(self, head: QuantizedLinear) -> None:
        self.folder.save_part("head", {HEAD: head})
        self._report(HEAD, self.total, {HEAD: head})

    def _report(self, name: str, done: int, linears: Mapping[str, QuantizedLinear]) -> None:
        pace = (time.monotonic() - self.started) / (done - self.first)
        errors = {name: linear.error for name, linear in linears.items() if linear.error is not None}
        self.report(LayerProgress(name, done, self.total, pace * (self.total - done), errors))


def _part(index: int) -> str:
    return f"layer-{index:03d}"


def _check_weights(checkpoint: Checkpoint, plan: QuantizationPlan) -> None:
    """Reads every decoder weight once: better a minute now than an error after an hour."""
    grid = plan.grid(4)
    for name in checkpoint.names:
        if not name.startswith(DECODER) and name != LM_HEAD:
            continue
        tensor = checkpoint.tensor(name)
        if not bool(torch.isfinite(tensor).all()):
            raise QuantError(f"{checkpoint.folder}: {name} holds NaN or infinity; the checkpoint is damaged")
        in_layer = ".layers." in name and tensor.ndim == 2
        is_head = name in (LM_HEAD, EMBEDDINGS) and plan.head_bits is not None
        if in_layer or is_head:
            try:
                grid.columns_per_group(tensor.shape[1])
            except QuantError as e:
                raise QuantError(f"{name}: {e}") from e


def _identity(
    checkpoint: Checkpoint, sequences: Sequence[CalibrationSequence], plan: QuantizationPlan
) -> dict[str, object]:
    """A checkpoint is identified by its configuration and small tensors: hashing all would take as long as a layer.

    What was merged into it is identified by its own hashes, as it may leave the small tensors as they are.
    """
    digest = hashlib.sha256(repr((checkpoint.config, checkpoint.adapters)).encode())
    for name in sorted(checkpoint.names):
        if name.startswith(DECODER) and len(checkpoint.shape(name)) == 1:
            digest.update(checkpoint.tensor(name, torch.float32).contiguous().numpy().data)
    return {
        "algorithm": _ALGORITHM,
        "plan": asdict(plan),
        "checkpoint": digest.hexdigest(),
        "sequences": fingerprint(sequences),
    }
