"""GPTQ: codes for a weight matrix that keep the layer's outputs, not its weights, close to the original.

The loss is tr(E H Eᵀ) with E = W − Q and H = Σ x·xᵀ over calibration inputs. Columns are rounded one after the other,
each after the errors of those before it have been moved into it. GPTQ (arXiv 2210.17323) says this with the Cholesky
factor of H⁻¹. The same codes follow without an inverse (QuIP, arXiv 2307.13304, theorem 6): factor H = R Rᵀ with R
*upper* triangular; then ‖E R‖² is the loss, column j of E R is R_jj·(E_j + Σ_{i<j} E_i·R_ij/R_jj), and rounding W_j +
Σ_{i<j} E_i·R_ij/R_jj makes each column's part of the loss as small as one rounding can. That saves the inverse's time
and its loss of accuracy, and yields the loss on the way.

Activation order takes the columns with the largest inputs first, while all others can still absorb their errors. Groups
are static: their scales are chosen from the original weights beforehand and a column keeps its own group, so that g_idx
stays `column // group_size` and nothing has to be gathered at run time.

Everything is plain torch and runs on the device of its inputs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from . import grid as grids
from .errors import QuantError
from .grid import Grid, Scaling
from .linear import LayerError, QuantizedLinear, concatenated

_LEAF_COLUMNS = 16  # columns rounded one by one; wider ranges are halved, so that the rest is matrix products
_PART_ELEMENTS = 1 << 26  # of a weight quantized at once: 256 MB in float32, several copies of it
_MAX_DAMP = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Factor:
    """One Hessian, factored once for all weights that read the same input (q, k and v; gate and up).

    order: int64 [in], the columns in the order they are rounded.
    feedback: [in, in], strictly upper triangular in that order: feedback[i, j] = R_ij / R_jj.
    importance: [in] in the *original* order, R_jj²: what a unit of squared rounding error in this column costs once the
        columns after it have made up for what they can. Choosing scales by it instead of by H's diagonal lowered the
        loss by 15 to 45 % on correlated inputs.
    damp: the share of H's median diagonal that was added to it; added: how much that is.
    """

    order: torch.Tensor
    feedback: torch.Tensor
    importance: torch.Tensor
    damp: float
    added: float


def factorize(hessian: torch.Tensor, *, act_order: bool = True, damp: float = 0.01) -> Factor:
    """hessian [in, in], float32 or float64, symmetric. damp: the share of its median diagonal to add to it.

    The median of the columns that are ever active, where GPTQ takes the mean of all: a few outlier channels raise the
    mean until the damping drowns what the small ones have in common. With 6 % of channels 8 to 64 times larger, the
    median left a fifth of the mean's divergence (ARCHITECTURE.md).

    A column that is never active has only the damping on its diagonal and no feedback, so it is rounded to nearest. If
    the Cholesky factorization fails, it is retried in float64, then with ten times the damping, and so on.

    Raises QuantError for a Hessian that is not finite, is all zero, or stays indefinite.
    """
    if damp <= 0:
        raise QuantError(f"damp must be above 0, not {damp}")
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
        raise QuantError(f"a Hessian is a square matrix, not of shape {tuple(hessian.shape)}")
    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(hessian).all()):
        raise QuantError("the Hessian holds NaN or infinity: a calibration input or an earlier layer overflowed")
    active = diagonal[diagonal > 0]
    if len(active) == 0:
        raise QuantError("the Hessian is zero: no calibration input reached this layer")

    order = torch.arange(len(diagonal), device=hessian.device)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    ordered = hessian[order][:, order] if act_order else hessian
    while damp <= _MAX_DAMP:
        for dtype in dict.fromkeys((hessian.dtype, torch.float64)):
            added = damp * float(active.median())
            upper = _upper_factor(ordered, added, dtype)
            if upper is not None:
                return _factor(upper.to(hessian.dtype), order, damp, added)
        _log.warning("the Hessian is indefinite with damping %g; trying %g", damp, damp * 10)
        damp *= 10
    raise QuantError(f"the Hessian stays indefinite with {_MAX_DAMP:g} times its median diagonal added")


def quantize(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    factor: Factor | None = None,
    *,
    name: str = "weight",
) -> QuantizedLinear:
    """GPTQ codes for weight [out, in] under hessian [in, in], with their error and that of round-to-nearest.

    factor: of this Hessian, if already computed; by default made with activation order and 1 % damping.
    name: of the weight, for messages.
    Raises QuantError for a weight that is not finite or whose columns do not fit the Hessian or the group size.
    """
    _check(weight, grid, name)
    if weight.shape[1] != hessian.shape[0]:
        raise QuantError(f"{name} has {weight.shape[1]} input columns, its Hessian {hessian.shape[0]}")
    factor = factorize(hessian) if factor is None else factor
    # Rows do not depend on each other, and an output head has too many for several float32 copies at once.
    parts = weight.split(max(1, _PART_ELEMENTS // weight.shape[1]))
    return concatenated([_quantize_rows(part.to(hessian.dtype), hessian, grid, factor) for part in parts])


def _quantize_rows(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, factor: Factor) -> QuantizedLinear:
    scaling = grids.search(weight, grid, factor.importance)
    codes, loss = _sweep(weight, scaling, grid, factor)
    # The sweep's loss includes the damping's share, which affects no output.
    loss -= factor.added * float((weight - grids.values(codes, scaling)).square().sum(dtype=torch.float64))
    plain = grids.min_max(weight, grid)
    rounded = grids.values(grids.nearest(weight, plain, grid), plain)
    error = LayerError(
        gptq=max(loss, 0.0),
        rtn=output_error(weight - rounded, hessian),
        signal=output_error(weight, hessian),
        damp=factor.damp,
    )
    return _finish(codes, scaling, grid, error)


def round_to_nearest(
    weight: torch.Tensor, grid: Grid, hessian: torch.Tensor | None = None, *, name: str = "weight"
) -> QuantizedLinear:
    """The baseline: nearest codes on a min-max grid. hessian, if given, only measures the error."""
    _check(weight, grid, name)
    dtype = torch.float32 if hessian is None else hessian.dtype
    parts = weight.split(max(1, _PART_ELEMENTS // weight.shape[1]))
    return concatenated([_round_rows(part.to(dtype), grid, hessian) for part in parts])


def _round_rows(weight: torch.Tensor, grid: Grid, hessian: torch.Tensor | None) -> QuantizedLinear:
    scaling = grids.min_max(weight, grid)
    codes = grids.nearest(weight, scaling, grid)
    if hessian is None:
        return _finish(codes, scaling, grid, None)
    loss = output_error(weight - grids.values(codes, scaling), hessian)
    return _finish(codes, scaling, grid, LayerError(loss, loss, output_error(weight, hessian)))


def output_error(difference: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(E H Eᵀ) for E = difference [out, in]: the outputs' squared error over the calibration inputs."""
    return float(((difference @ hessian) * difference).sum(dtype=torch.float64))


def _check(weight: torch.Tensor, grid: Grid, name: str) -> None:
    if weight.ndim != 2:
        raise QuantError(f"{name} must be a matrix, not of shape {tuple(weight.shape)}")
    if not bool(torch.isfinite(weight).all()):
        raise QuantError(f"{name} holds NaN or infinity; the checkpoint is damaged")
    try:
        grid.columns_per_group(weight.shape[1])
    except QuantError as e:
        raise QuantError(f"{name}: {e}") from e


def _finish(codes: torch.Tensor, scaling: Scaling, grid: Grid, error: LayerError | None) -> QuantizedLinear:
    return QuantizedLinear(
        codes=codes.cpu().numpy(),
        scales=scaling.scales.half().cpu().numpy(),
        zeros=scaling.zeros.byte().cpu().numpy(),
        bits=grid.bits,
        error=error,
    )


def _upper_factor(hessian: torch.Tensor, added: float, dtype: torch.dtype) -> torch.Tensor | None:
    """Upper triangular R with R Rᵀ = H + added·I, or None where the factorization breaks down in this dtype.

    H is scaled to a unit diagonal first: real activations have channels a thousand times larger than others, which
    would use up float32's precision.
    """
    work = hessian.to(dtype).flip(0, 1)
    work.diagonal().add_(added)
    loudness = work.diagonal().clamp_min(torch.finfo(dtype).tiny).sqrt()
    work /= loudness
    work /= loudness[:, None]
    lower, failed = torch.linalg.cholesky_ex(work)
    del work
    if int(failed) != 0 or not bool(torch.isfinite(lower.diagonal()).all()):
        return None
    lower *= loudness[:, None]
    return lower.flip(0, 1)


def _factor(upper: torch.Tensor, order: torch.Tensor, damp: float, added: float) -> Factor:
    diagonal = upper.diagonal().clone()
    upper /= diagonal
    upper.diagonal().zero_()
    importance = torch.empty_like(diagonal)
    importance[order] = diagonal.square()
    return Factor(order, upper, importance, damp, added)


def _sweep(weight: torch.Tensor, scaling: Scaling, grid: Grid, factor: Factor) -> tuple[torch.Tensor, float]:
    """Codes uint8 [out, in] in the weight's own column order, and their loss under the damped Hessian.

    All arrays are transposed, so that a column of the weight is contiguous in memory.
    """
    order, feedback, costs = factor.order, factor.feedback, factor.importance[factor.order]
    original = weight.t()[order].contiguous()
    target = original.clone()  # each column plus the errors moved into it so far
    errors = torch.zeros_like(original)
    codes = torch.empty(original.shape, dtype=torch.uint8, device=weight.device)
    group = torch.div(order, grid.columns_per_group(weight.shape[1]), rounding_mode="floor").tolist()
    scales, zeros = scaling.scales.t().contiguous(), scaling.zeros.t().contiguous()
    loss = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)

    def sweep(start: int, stop: int) -> None:
        if stop - start > _LEAF_COLUMNS:
            middle = (start + stop) // 2
            sweep(start, middle)
            target[middle:stop].addmm_(feedback[start:middle, middle:stop].t(), errors[start:middle])
            sweep(middle, stop)
            return
        for column in range(start, stop):
            wanted = target[column]
            if column > start:
                wanted.addmv_(errors[start:column].t(), feedback[start:column, column])
            scale, zero = scales[group[column]], zeros[group[column]]
            code = torch.round(wanted / scale).add_(zero).clamp_(0, grid.max_code)
            codes[column] = code
            value = (code - zero).mul_(scale)
            errors[column] = original[column] - value
            loss.add_((wanted - value).square_().mul_(costs[column]))

    sweep(0, len(order))
    restored = torch.empty_like(codes)
    restored[order] = codes
    return restored.t().contiguous(), float(loss.sum())
