"""Input that nobody means to give: each is one clear line, or works; and a failure leaves the model usable."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl3edge.runtime import GenerationConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE
from vl3edge.runtime.bundle.manifest import sealed
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.sampler import filtered_probabilities
from vl3edge.runtime.errors import BundleError, ConfigError, MediaError
from vl3edge.runtime.media.discovery import expand
from vl3edge.runtime.prompt.tokenizer import Tokenizer

SHORT = GenerationConfig(max_new_tokens=8)


@pytest.fixture(scope="module")
def model() -> VideoLlama3:
    return VideoLlama3.load(backend="cpu", num_threads=1)


def picture(path: Path, size: tuple[int, int] = (112, 112)) -> Path:
    Image.new("RGB", size, (200, 30, 30)).save(path)
    return path


def test_a_name_that_is_not_utf8_gets_its_record_and_is_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(picture(tmp_path / "plain.png"), name)
    records = tmp_path / "captions.jsonl"
    command = ["caption", str(name), "--threads", "1", "--format", "jsonl", "-o", str(records)]
    assert main([*command]) == 0
    assert json.loads(records.read_bytes())["media"] == str(name)
    assert main([*command, "--resume"]) == 0
    assert len(records.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("extra", [["-p", "caf\udce9"], ["--seed", "-1"], ["--fps", "1e30"], ["--threads", "-1"]])
def test_option_values_that_cannot_work_are_one_line(
    extra: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(picture(tmp_path / "a.png")), *extra]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("vl3edge: error: ")


def test_no_name_is_not_the_current_folder() -> None:
    with pytest.raises(MediaError, match="'': there is no such file"):
        expand([""])


def test_line_breaks_and_escapes_of_a_name_stay_out_of_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = picture(tmp_path / "a\n\x1b[2Jb.png"), picture(tmp_path / "c.png")
    assert main(["caption", str(first), str(second), "--threads", "1", "--max-new-tokens", "4"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "\x1b" not in captured.out + captured.err
    assert all(line.startswith("vl3edge: ") for line in captured.err.splitlines())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(picture(tmp_path / "a.png")), "--threads", "1", "-o", "/dev/full"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("vl3edge: error: /dev/full: ")


def test_a_shape_the_model_refuses_is_named(tmp_path: Path, model: VideoLlama3) -> None:
    path = picture(tmp_path / "strip.png", (3000, 10))
    with pytest.raises(MediaError, match=r"strip\.png: a frame of 3000×10"):
        model.encode(path)


def test_a_manifest_that_describes_another_decoder_is_refused(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(DEMO_BUNDLE, bundle)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["text"]["num_layers"] += 1
    (bundle / "bundle.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(BundleError, match="other inputs, outputs or sizes"):
        VideoLlama3.load(bundle, backend="cpu", num_threads=1)


def test_wrong_arguments_of_the_api(model: VideoLlama3) -> None:
    frame = np.zeros((56, 56, 3), np.uint8)
    with pytest.raises(ConfigError, match="kind must be"):
        model.encode(frame, kind="sound")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="media must be"):
        model.encode(b"clip.mp4")
    with pytest.raises(ConfigError, match="encode"):
        model.ask("clip.mp4", "What?")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="fps"):
        SamplingPlan(fps=1e30)


def test_a_text_of_every_private_character_is_asked(model: VideoLlama3) -> None:
    text = "".join(map(chr, range(0xE000, 0xF900)))
    ids = model.prompt([{"role": "user", "content": text}], []).ids
    assert Tokenizer.of(model.bundle).decode(ids.tolist()).count(text) == 1


def test_a_temperature_close_to_zero_is_greedy() -> None:
    scores = np.array([1.0, 3.0, 2.0], np.float32)
    probabilities = filtered_probabilities(scores, GenerationConfig(temperature=1e-320))
    assert probabilities.tolist() == [0.0, 1.0, 0.0]


def test_running_out_of_memory_while_the_cache_grows_leaves_a_usable_model(
    model: VideoLlama3, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = model.encode(np.zeros((56, 56, 3), np.uint8))
    before = model.ask(clip, "What?", SHORT)
    real, made = np.zeros, []

    def scarce(shape: object, dtype: object = float) -> np.ndarray:
        if isinstance(shape, tuple) and len(shape) == 4:
            made.append(shape)
            if len(made) == 2:
                raise MemoryError
        return real(shape, dtype)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr("vl3edge.runtime.decode.decoder.np.zeros", scarce)
    with pytest.raises(MemoryError):
        model.ask(clip, "What? " * 60, GenerationConfig(max_new_tokens=600))
    monkeypatch.undo()
    decoder = model.decoder
    assert isinstance(decoder, Decoder)
    assert (decoder.length, decoder.capacity) == (0, 0)
    after = model.ask(clip, "What?", SHORT)
    assert (after.text, after.stats.reused_tokens) == (before.text, 0)
