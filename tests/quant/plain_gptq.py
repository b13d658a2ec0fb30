"""GPTQ as its paper tells it, one column at a time in float64 numpy: slow, and no code of quant/.

Optimal Brain Quantization's step, with the explicit inverse Hessian of the columns that are still free: round
column q, move its error into the free ones by -(w_q - value)/Hinv_qq * Hinv_q,:, then strike q out of the
inverse.
"""

from __future__ import annotations

import numpy as np


def plain_gptq(weight, hessian, scales, zeros, max_code, *, act_order, damp):
    """Codes [out, in] for weight [out, in] on the grid given by scales and zeros [out, groups]."""
    w = np.array(weight, dtype=np.float64)
    h = np.array(hessian, dtype=np.float64)
    columns = w.shape[1]
    group_size = columns // scales.shape[1]
    active = np.sort(np.diag(h)[np.diag(h) > 0])
    inverse = np.linalg.inv(h + damp * active[(len(active) - 1) // 2] * np.eye(columns))
    order = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(columns)
    codes = np.zeros(w.shape, dtype=np.uint8)
    for q in order:
        scale = np.array(scales[:, q // group_size], dtype=np.float64)
        zero = np.array(zeros[:, q // group_size], dtype=np.float64)
        code = np.clip(np.rint(w[:, q] / scale) + zero, 0, max_code)
        codes[:, q] = code
        error = (w[:, q] - scale * (code - zero)) / inverse[q, q]
        w -= np.outer(error, inverse[q])
        inverse = inverse - np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
    return codes
