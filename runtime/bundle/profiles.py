"""Which sizes a TensorRT plan takes: its profiles, how they follow from the model, and which one fits a call.

A plan is compiled for boxes of sizes, called profiles, and its memory is that of its largest box. The encoder's box is
frames × patches, so one number of patches bounds all of them: many small frames of a video, few larger ones, or one
large image. Nothing outside a profile may reach the plan: frames are sent in chunks that fit, and a frame that fits in
none has to be made smaller before (`max_patches`). No GPU library is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from .manifest import Manifest
from .specs import VisionSpec

DEFAULT_MEMORY_BYTES = 1 << 30
"""Of the encoder's activations: 24 thousand patches of the released models at once."""

_TYPICAL_SPREAD = 2  # a frame of a long video may have so many times the typical number of patches
_STEP = 8  # between the profiles for small, larger and largest frames


@dataclass(frozen=True)
class ShapeRange:
    """Smallest, tuned-for and largest shape of one input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def holds(self, shape: Sequence[int]) -> bool:
        if len(shape) != len(self.max):
            return False
        return all(low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True))


@dataclass(frozen=True)
class Profile:
    """One box of sizes of a plan, by input."""

    name: str
    inputs: dict[str, ShapeRange]

    def holds(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        return all(name in shapes and sizes.holds(shapes[name]) for name, sizes in self.inputs.items())


def profile_for(profiles: Sequence[Profile], shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Index of the first profile that holds these shapes; profiles are in order of preference."""
    return next((index for index, profile in enumerate(profiles) if profile.holds(shapes)), None)


def activation_bytes(vision: VisionSpec) -> int:
    """An upper estimate of the encoder's activations per patch, in bytes: attention is fused and needs no matrix.

    The residual stream and one update in float32, queries, keys, values, their source and their result in float16, the
    MLP's inside in float16 twice.
    """
    return 2 * 4 * vision.hidden_size + 5 * 2 * vision.hidden_size + 2 * 2 * vision.intermediate_size


def vision_profiles(manifest: Manifest, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> tuple[Profile, ...]:
    """Profiles of the vision plan, small frames first: "video", "clip" and "image" (fewer when the model is small).

    memory_bytes: bound of the encoder's activations. Every profile's frames × patches stays within what it buys.
    Raises ConfigError when it buys less than one typical video frame.
    """
    vision, processor = manifest.vision, manifest.processor
    patch_pixels = vision.patch_size**2
    budget = max(processor.image.max_pixels, processor.video.max_pixels) // patch_pixels
    typical = max(1, processor.video.max_pixels // processor.max_frames // patch_pixels)
    typical = max(typical, processor.video.min_pixels // patch_pixels)
    affordable = memory_bytes // activation_bytes(vision)
    if affordable < typical:
        needed = -(-typical * activation_bytes(vision) // (1 << 20))
        raise ConfigError(
            f"{memory_bytes >> 20} MiB hold {affordable} patches, but a frame of a long video has {typical}: "
            f"give at least {needed} MiB."
        )
    affordable = min(affordable, max(budget, processor.max_frames * typical))  # no clip has more
    largest = min(budget, affordable)
    profiles = []
    patches = min(largest, _TYPICAL_SPREAD * typical)
    for name in ("video", "clip"):
        if patches < largest:
            profiles.append(
                _vision_profile(name, manifest, affordable, typical if name == "video" else patches, patches)
            )
            patches = min(largest, _STEP * patches)
    profiles.append(_vision_profile("image", manifest, affordable, largest, largest))
    return tuple(profiles)


def projector_profiles(manifest: Manifest, vision: Sequence[Profile]) -> tuple[Profile, ...]:
    """Profiles of the projector plan, one per kind of media, for what one call of the vision plan gives at most."""
    patches = max(sizes.max[0] * sizes.max[1] for sizes in (profile.inputs["patches"] for profile in vision))
    width = manifest.vision.hidden_size
    profiles = []
    for kind in ("video", "image"):
        merge_size: int = getattr(manifest.processor, kind).merge_size
        block = patches_averaged(merge_size)
        tokens = max(1, patches // merge_size**2)
        profiles.append(
            Profile(
                kind,
                {
                    "features": ShapeRange((1, width), (max(1, patches // 2), width), (patches, width)),
                    "blocks": ShapeRange((1, block), (max(1, tokens // 2), block), (tokens, block)),
                },
            )
        )
    return tuple(profiles)


def patches_averaged(merge_size: int) -> int:
    """How many patches make a token: the middle one of an odd block, the middle four of an even one."""
    return 1 if merge_size % 2 else 4


def max_patches(profiles: Sequence[Profile]) -> int:
    """The largest frame the vision plan takes."""
    return max(profile.inputs["patches"].max[1] for profile in profiles)


def frames_per_call(profiles: Sequence[Profile], patches: int) -> int:
    """How many frames of so many patches fit in one call; 0 when not even one does."""
    fitting = (profile.inputs["patches"].max for profile in profiles)
    return max((frames for frames, limit, _ in fitting if patches <= limit), default=0)


def _vision_profile(name: str, manifest: Manifest, affordable: int, typical: int, patches: int) -> Profile:
    """As many frames as can be afforded, each with up to so many patches."""
    frames = max(1, min(manifest.processor.max_frames, affordable // patches))
    values = manifest.vision.patch_size**2 * 3
    return Profile(
        name,
        {
            "patches": ShapeRange((1, 1, values), (frames, typical, values), (frames, patches, values)),
            "positions": ShapeRange((1, 2), (typical, 2), (patches, 2)),
        },
    )
