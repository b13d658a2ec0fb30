"""What a model and a clip take is known before; what does not fit is refused, and what fits comes out unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, read_manifest
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.decode.kv_cache import bytes_per_row
from vl3edge.runtime.errors import ConfigError, ContextLengthError, MediaError, MemoryLimitError
from vl3edge.runtime.memory_budget import parse_bytes
from vl3edge.runtime.memory_estimate import BASE_BYTES, CODE_BYTES, estimate, prefill_bytes, vision_bytes, weights_bytes

DEMO = read_manifest(DEMO_BUNDLE)
SHORT = GenerationConfig(max_new_tokens=8)
LOADED = BASE_BYTES + weights_bytes(DEMO)

MEASURE = """
import json, re, sys
from pathlib import Path
import numpy as np
from vl3edge.runtime import GenerationConfig, PruningConfig, VideoLlama3
from vl3edge.runtime.host import peak_bytes
model = VideoLlama3.load(backend="cpu", num_threads=1)
frames = np.random.default_rng(0).integers(0, 256, (int(sys.argv[1]), 112, 112, 3), dtype=np.uint8)
clip = model.encode(frames, pruning=PruningConfig(enabled=False))
answer = model.ask(clip, "What?", GenerationConfig(max_new_tokens=8))
mapped = 1024 * int(re.search(r"RssFile:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
size = clip.height_px, clip.width_px
print(json.dumps([peak_bytes() - mapped, *size, clip.num_tokens, answer.stats.prompt_tokens + 8]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("frames", [2, 60])
def test_the_estimate_is_within_15_percent_of_a_real_process(frames: int) -> None:
    """How much of the libraries' files is mapped differs by 20 MB with the page cache; `CODE_BYTES` stands for it."""
    output = subprocess.run([sys.executable, "-c", MEASURE, str(frames)], capture_output=True, text=True, check=True)
    allocated, height, width, tokens, context = json.loads(output.stdout)
    measured = allocated + CODE_BYTES
    found = estimate(DEMO, frames=frames, size=(height, width), visual_tokens=tokens, context_tokens=context)
    assert found.total_bytes == pytest.approx(measured, rel=0.15), f"{found}, measured {measured}"


def test_the_terms_of_the_estimate_by_hand() -> None:
    found = estimate(DEMO, frames=4, size=(112, 112), visual_tokens=10, context_tokens=100, batch=3)
    layer = 128 * 32 * (2 * 4 + 2 * 2) + 3 * 128 * 384
    linears = 6 * layer // 2 + 6 * layer // 32 * 12
    head = 448 * 128 + 448 * 128 // 32 * 12
    encoder = 3 * (4 * 96 * 96 + 2 * 96 * 384) + 3 * 14 * 14 * 96
    assert found.weights_bytes == linears + head + 4 * (encoder + 96 * 128 + 128 * 128 + 4096 * 32)
    assert found.loading_bytes == 0  # the encoder, loaded later, is larger than the head
    large = replace(DEMO, text=replace(DEMO.text, vocab_size=100 * 448))
    more = estimate(large, frames=4, size=(112, 112))
    assert more.loading_bytes == 100 * head - 4 * (encoder + 96 * 128 + 128 * 128)
    assert more.loaded_bytes == more.base_bytes + more.weights_bytes + more.loading_bytes
    assert found.kv_bytes == 3 * 2 * 6 * 2 * 32 * 256 * 4
    assert found.tokens_bytes == 4 * 128 * (2 * 10 + 3 * 100)
    assert found.total_bytes == found.base_bytes + found.weights_bytes + found.clip_bytes


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded() -> None:
    with pytest.raises(MemoryLimitError, match=r"the model needs 0\.11 GB .* more than 0\.05 GB, the limit given"):
        VideoLlama3.load(backend="cpu", num_threads=1, memory_limit=50_000_000)


def test_frames_go_in_smaller_calls_and_come_out_the_same() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 112, 112, 3), dtype=np.uint8)
    free = VideoLlama3.load(backend="cpu", num_threads=1)
    whole = free.encode(frames)
    patches = whole.height_px * whole.width_px // 14**2
    context = DEMO.text.hidden_size * 4 * 3 * 1024 + bytes_per_row(DEMO.text, 1024)
    room = prefill_bytes(DEMO, 512) + vision_bytes(DEMO, 4 * patches, 2) + context
    tight = VideoLlama3.load(backend="cpu", num_threads=1, memory_limit=LOADED + room)
    clip = tight.encode(frames)
    assert vision_bytes(DEMO, patches, 2) < tight._memory._vision < vision_bytes(DEMO, 12 * patches, 2)
    np.testing.assert_array_equal(clip.visual.tokens, whole.visual.tokens)
    assert tight.ask(clip, "What?", SHORT).text == free.ask(whole, "What?", SHORT).text


def test_a_frame_or_a_prompt_too_many_is_refused_and_leaves_the_model_usable() -> None:
    model = VideoLlama3.load(backend="cpu", num_threads=1, memory_limit=LOADED + 18_000_000)
    clip = model.encode(np.zeros((2, 112, 112, 3), np.uint8))
    before = model.ask(clip, "What?", SHORT).text
    with pytest.raises(MediaError, match=r"4000×3000 pixels .* beside the .* the limit given: make it smaller"):
        model.encode(np.zeros((2, 3000, 4000, 3), np.uint8))
    with pytest.raises(
        ContextLengthError, match=r"a context of 3,072 tokens takes .* the limit given: use fewer frames"
    ):
        model.ask(clip, "What?", GenerationConfig(max_new_tokens=3000))
    assert bytes_per_row(DEMO.text, 3072) < 18_000_000
    assert model.ask(clip, "What?", SHORT).text == before


def test_the_limit_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("RGB", (112, 112)).save(tmp_path / "a.png")
    command = ["caption", str(tmp_path / "a.png"), "--threads", "1", "--max-new-tokens", "4", "--memory-limit"]
    assert main([*command, "2GB"]) == 0
    assert main([*command, "40MB"]) == 1
    assert "the model needs" in capsys.readouterr().err.splitlines()[-1]
    assert main([*command, "4 parsecs"]) == 2
    assert "such as 4GB" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("3.5g", 3_500_000_000), (" 800 mb ", 800_000_000), ("2GiB", 2 << 30), ("7", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "4TB", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 4GB"):
        parse_bytes(text)
