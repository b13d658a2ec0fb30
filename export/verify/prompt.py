"""The parts of `verify` for text before the decoder: the prompt's ids and the embedding table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.tensor_names import EMBEDDINGS
from vl3edge.runtime.bundle.bundle import Bundle
from vl3edge.runtime.errors import Vl3EdgeError
from vl3edge.runtime.prompt.chat_template import MediaItem, PromptTemplate
from vl3edge.runtime.prompt.splice import EmbeddingTable, VisualTokens, splice
from vl3edge.runtime.prompt.tokenizer import Tokenizer

from .clips import VerifyClip
from .report import LARGEST_STEPS, StageResult

_ROWS_AT_ONCE = 8192


def verify_prompts(bundle: Bundle, clips: Sequence[VerifyClip]) -> StageResult:
    """Ids of the prompt about each clip, by the bundle's template and tokenizer."""
    manifest = bundle.manifest
    compared = f"{sum(len(clip.prompt) for clip in clips)} ids of {len(clips)} prompts"
    try:
        tokenizer = Tokenizer.of(bundle)
        template = PromptTemplate.of(bundle, tokenizer)
        for clip in clips:
            kept = tuple(clip.prepared.keep.sum(axis=1).tolist())
            part = {"type": clip.kind, clip.kind: clip.source}
            messages = [{"role": "user", "content": [part, {"type": "text", "text": clip.question}]}]
            pieces = template.pieces(messages, [MediaItem(clip.kind, clip.times_s)])
            visual = VisualTokens(np.zeros((sum(kept), manifest.text.hidden_size), np.float32), kept, 0)
            placeholder = manifest.tokens.image_id if clip.kind == "image" else manifest.tokens.video_id
            ids = splice(pieces, [visual], [placeholder], tokenizer).ids.tolist()
            if ids != clip.prompt:
                at = next(
                    (k for k, (a, b) in enumerate(zip(ids, clip.prompt, strict=False)) if a != b), len(clip.prompt)
                )
                detail = (
                    f"{clip.name}: {len(ids)} ids, the reference has {len(clip.prompt)}; position {at} is the first"
                )
                return StageResult("prompt", compared, None, None, "equal", False, f"{detail} to differ")
    except Vl3EdgeError as e:
        return StageResult("prompt", compared, None, None, "equal", False, str(e))
    return StageResult("prompt", compared, 0.0, 0.0, "equal", True)


def verify_embeddings(bundle: Bundle, checkpoint: Checkpoint) -> StageResult:
    """Every row of the table against the checkpoint's."""
    table = EmbeddingTable.of(bundle)
    theirs = checkpoint.tensor(EMBEDDINGS)
    largest = total = worst = 0.0
    worst_row = 0
    allowed, bound = _row_allowance(table, bundle.manifest.precision)
    for start in range(0, len(theirs), _ROWS_AT_ONCE):
        reference = theirs[start : start + _ROWS_AT_ONCE].float().numpy()
        ids = np.arange(start, start + len(reference))
        difference = np.abs(table.rows(ids) - reference)
        share = np.sqrt((difference**2).mean(axis=1)) / (allowed(ids, reference) + np.finfo(np.float32).tiny)
        if not share.max() <= worst:
            worst, worst_row = float(share.max()), start + int(share.argmax())
        largest, total = max(largest, float(difference.max())), total + float(difference.sum(dtype=np.float64))
    passed = worst <= 1
    detail = "" if passed else f"row {worst_row} is {worst:.3g} times as far from the checkpoint's as allowed"
    mean = total / (theirs.shape[0] * theirs.shape[1])
    return StageResult("embeddings", f"{len(theirs)} rows", largest, mean, bound, passed, detail)


def _row_allowance(table: EmbeddingTable, precision: str) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], str]:
    """Allowed root mean square distance of rows, float [n], for ids [n] and rows [n, hidden]; and its description."""
    if table.is_quantized:
        words = f"{LARGEST_STEPS} steps of the row's grid, root mean square"
        return lambda ids, rows: LARGEST_STEPS * table.steps(ids), words
    if precision == "fp16":
        # At most half a unit in the last of 11 bits of the largest value.
        return lambda ids, rows: np.abs(rows).max(axis=1) * 2.0**-11, "within float16 rounding, row by row"
    return lambda ids, rows: np.zeros(len(rows)), "equal"
