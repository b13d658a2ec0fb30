"""Profiles: what memory buys, and that every size the model can ask for is held by one or made smaller."""

from __future__ import annotations

import numpy as np
import pytest

from vl3edge.runtime.bundle.manifest import Manifest
from vl3edge.runtime.bundle.profiles import (
    Profile,
    ShapeRange,
    activation_bytes,
    frames_per_call,
    max_patches,
    profile_for,
    projector_profiles,
    vision_profiles,
)
from vl3edge.runtime.bundle.specs import MediaSpec, ProcessorSpec, TextSpec, TokenSpec, VisionSpec
from vl3edge.runtime.errors import ConfigError

VISION = {
    "tiny": VisionSpec(hidden_size=80, num_layers=2, num_heads=4, intermediate_size=120, patch_size=14),
    "2b": VisionSpec(hidden_size=1152, num_layers=27, num_heads=16, intermediate_size=4304, patch_size=14),
}


def manifest(name: str = "2b", merge_sizes: tuple[int, int] = (1, 2), budget: int = 28 * 28 * 16384) -> Manifest:
    image, video = (MediaSpec(merge_size, 56 * 56, budget) for merge_size in merge_sizes)
    half = (0.5, 0.5, 0.5)
    return Manifest(
        name="x",
        layout="transformers",
        source="x",
        precision="fp16",
        targets=("rtx",),
        vision=VISION[name],
        text=TextSpec(1536, 28, 12, 2, 128, 8960, 151936, 32768),
        processor=ProcessorSpec("transformers", image, video, half, half, 1.0, 180, True),
        tokens=TokenSpec(1, 1, (2,)),
        quantization={},
        measured={},
        versions={},
    )


@pytest.mark.parametrize("name", ["tiny", "2b"])
@pytest.mark.parametrize("mebibytes", [16, 64, 512, 1024, 4096])
def test_no_box_is_larger_than_memory_allows(name: str, mebibytes: int) -> None:
    model = manifest(name)
    profiles = vision_profiles(model, mebibytes << 20)
    affordable = (mebibytes << 20) // activation_bytes(model.vision)
    frame_limits = [profile.inputs["patches"].max[1] for profile in profiles]
    assert frame_limits == sorted(set(frame_limits))
    assert profiles[-1].name == "image"
    for profile in profiles:
        patches, positions = profile.inputs["patches"], profile.inputs["positions"]
        assert patches.max[0] * patches.max[1] <= affordable
        assert patches.max[0] <= model.processor.max_frames
        assert positions.max == (patches.max[1], 2)
        for sizes in (patches, positions):
            assert all(np.less_equal(sizes.min, sizes.opt))
            assert all(np.less_equal(sizes.opt, sizes.max))


def test_profiles_of_the_released_model() -> None:
    """180 frames share 65,536 patches: 364 each. A GiB holds 28,292 at once, so the largest image is made smaller."""
    profiles = vision_profiles(manifest())
    assert [(p.name, p.inputs["patches"].max[:2]) for p in profiles] == [
        ("video", (38, 728)),
        ("clip", (4, 5824)),
        ("image", (1, 28292)),
    ]
    assert profiles[0].inputs["patches"].opt == (38, 364, 588)
    assert [frames_per_call(profiles, n) for n in (1, 728, 729, 5825, 28292, 28293)] == [38, 38, 4, 1, 1, 0]
    assert max_patches(profiles) == 28292


@pytest.mark.parametrize("name", ["tiny", "2b"])
def test_every_number_of_frames_and_patches_fits(name: str) -> None:
    profiles = vision_profiles(manifest(name), 256 << 20)
    for patches in np.unique(np.geomspace(1, max_patches(profiles), 60).astype(int)):
        at_once = frames_per_call(profiles, int(patches))
        for frames in {1, max(1, at_once // 2), at_once}:
            shapes = {"patches": (frames, int(patches), 588), "positions": (int(patches), 2)}
            index = profile_for(profiles, shapes)
            assert index is not None
            assert profiles[index].holds(shapes)
            assert index == 0 or not profiles[index - 1].holds(shapes)


@pytest.mark.parametrize("merge_sizes", [(1, 2), (2, 2), (3, 4)])
def test_the_projector_takes_all_that_one_call_gives(merge_sizes: tuple[int, int]) -> None:
    model = manifest(merge_sizes=merge_sizes)
    vision = vision_profiles(model)
    profiles = projector_profiles(model, vision)
    patches = max(p.inputs["patches"].max[0] * p.inputs["patches"].max[1] for p in vision)
    for merge_size in merge_sizes:
        tokens, averaged = patches // merge_size**2, {1: 1, 2: 4, 3: 1, 4: 4}[merge_size]
        for kept in (1, tokens):
            assert profile_for(profiles, {"features": (patches, 1152), "blocks": (kept, averaged)}) is not None


def test_too_little_memory_is_an_error_that_says_how_much_it_takes() -> None:
    with pytest.raises(ConfigError, match="give at least 14 MiB"):
        vision_profiles(manifest(), 4 << 20)
    assert vision_profiles(manifest(), 14 << 20)[-1].inputs["patches"].max[0] == 1


def test_shapes_must_be_inside_on_every_axis() -> None:
    profile = Profile("p", {"x": ShapeRange((1, 4), (2, 4), (3, 4)), "y": ShapeRange((1,), (1,), (2,))})
    assert profile.holds({"x": (3, 4), "y": (2,)})
    for shapes in ({"x": (4, 4), "y": (1,)}, {"x": (3, 5), "y": (1,)}, {"x": (3, 4), "y": (0,)}, {"x": (3, 4)}):
        assert not profile.holds(shapes)
    assert not profile.holds({"x": (3, 4, 1), "y": (1,)})
