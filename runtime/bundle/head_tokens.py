"""Which tokens the output head can say, where `export --vocabulary` left rows of it out.

`head-tokens.npy` holds int32 [head_rows], the ids in ascending order: so of equal logits the lowest id still wins. It
has id 0, which argmax says of nothing but NaN, and an end token. Decoders work in rows of the head; whoever sees their
results sees ids of the whole vocabulary. What is left out may be read, but is not said.
"""

from __future__ import annotations

import numpy as np

from ..errors import BundleError
from .bundle import Bundle
from .file_names import HEAD_TOKENS


class HeadTokens:
    """The tokens of an output head, row by row. ids: int64 [rows], ascending."""

    def __init__(self, ids: np.ndarray, vocab_size: int) -> None:
        self.ids = ids.astype(np.int64)
        self._vocab_size = vocab_size

    @classmethod
    def of(cls, bundle: Bundle) -> HeadTokens | None:
        """A bundle's; None where its head has the whole vocabulary. BundleError for a file that does not fit it."""
        text, tokens = bundle.manifest.text, bundle.manifest.tokens
        if not text.head_rows:
            return None
        path = bundle.path(HEAD_TOKENS)
        try:
            ids = np.array(np.load(path, mmap_mode="r", allow_pickle=False))  # mapped: no more is read than there is
        except (OSError, ValueError, EOFError) as e:
            raise BundleError(f"{path} cannot be read ({e}). Export the bundle again.") from e
        fits = ids.dtype == np.int32 and ids.shape == (text.head_rows,) and bool((np.diff(ids) > 0).all())
        if not fits or ids[0] != 0 or ids[-1] >= text.vocab_size or not np.isin(tokens.eos_ids, ids).all():
            raise BundleError(
                f"{path} does not fit bundle.json: it needs {text.head_rows} ascending ids from 0 on, below "
                f"{text.vocab_size}, with the end tokens. Export the bundle again."
            )
        return cls(ids, text.vocab_size)

    def rows(self, tokens: np.ndarray) -> np.ndarray | None:
        """The rows int64 [n] of tokens int64 [n]; None where the head has not all of them."""
        rows = np.searchsorted(self.ids, tokens).clip(max=len(self.ids) - 1)
        return rows if np.array_equal(self.ids[rows], tokens) else None

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        """The tokens int64 [n] of rows int64 [n]."""
        found: np.ndarray = self.ids[rows]
        return found

    def logits(self, of_rows: np.ndarray) -> np.ndarray:
        """Logits float32 [n, vocab_size] from those of the rows; of what the head does not have, minus infinity."""
        whole = np.full((*of_rows.shape[:-1], self._vocab_size), -np.inf, of_rows.dtype)
        whole[..., self.ids] = of_rows
        return whole
