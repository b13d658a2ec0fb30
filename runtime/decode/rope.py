"""Moving cached keys to earlier positions: rotary embeddings are rotations, so a key can be moved.

The decoder graph stores keys after it has rotated them. When tokens leave the middle of the cache, the later ones move
up, and their keys are rotated by the difference between the angles of the two positions. The angles are float32, as in
the graph's tables, and their difference is taken in float64: up to float32 rounding, the result is the key that the
graph would have computed at the new position.

Source: RoFormer (arXiv 2104.09864), in the convention of Qwen2: channel i is rotated with channel i + half.
"""

from __future__ import annotations

import numpy as np

from ..bundle.specs import TextSpec
from ..errors import BundleError


def rotary_frequencies(theta: float, dim: int) -> np.ndarray:
    """Radians per position, float32 [dim / 2], in float32 throughout, as in transformers.

    The inverse comes first, as in every implementation: at large positions the last bit of the frequencies matters.
    """
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (1.0 / np.power(np.float32(theta), exponents)).astype(np.float32)


class Rotary:
    """Turns keys of one model.

    theta: base of the frequencies. dim: channels of a head that the model has. head_dim: channels of a head in the
    cache, dim or more; those added stand at the end of either half and are not rotated.
    """

    def __init__(self, theta: float, dim: int, head_dim: int) -> None:
        self._frequencies = np.pad(rotary_frequencies(theta, dim), (0, (head_dim - dim) // 2))

    @classmethod
    def of(cls, spec: TextSpec) -> Rotary:
        """For one decoder; BundleError if its bundle is too old to state the base of its frequencies."""
        if not spec.rotary_dim:
            raise BundleError("the bundle does not say how its keys are rotated. Export the bundle again.")
        return cls(spec.rope_theta, spec.rotary_dim, spec.head_dim)

    def rotated(self, keys: np.ndarray, source: int, target: int) -> np.ndarray:
        """Keys of the positions from `source` on, as they are at those from `target` on.

        keys: float32 or float16 [..., positions, head_dim]; the result is float32, of the same shape.
        """
        cos, sin = self._cos_sin(source, target, keys.shape[-2])
        first, second = np.split(keys, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def _cos_sin(self, old: int, new: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine float32 [count, head_dim / 2] of the angles between two runs of positions."""
        steps = np.arange(count, dtype=np.float32)[:, None]
        before = (steps + np.float32(old)) * self._frequencies
        after = (steps + np.float32(new)) * self._frequencies
        angles = after.astype(np.float64) - before.astype(np.float64)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
