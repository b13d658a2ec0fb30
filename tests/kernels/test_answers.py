"""Whole answers with `--decoder kernels`, in Triton's interpreter, against those with ONNX Runtime: token for token."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from kernel_decoders import written
from random_decoders import Quantized

from vl3edge.models.demo.clips import write_clip
from vl3edge.models.demo.render import HELD_OUT_SEED
from vl3edge.runtime import GenerationConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, hash_file, open_bundle
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.decode.generate import join
from vl3edge.runtime.errors import BackendError, ConfigError
from vl3edge.runtime.jobs import CaptionJob

CLIP = Path(__file__).parents[1] / "fixtures" / "demo_clip.mp4"
QUESTIONS = ("Describe this video.", "What colour is the shape?", "When does it stop?")
DECODERS = ("onnxruntime", "kernels")
FEW = ["--max-frames", "2", "--max-new-tokens", "4"]


def both(bundle: Bundle) -> list[VideoLlama3]:
    return [VideoLlama3(bundle, select_backend("cpu", 1), decoder=decoder) for decoder in DECODERS]


def frames(count: int, seed: int = 0) -> np.ndarray:
    """Uint8 [count, 56, 56, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 56, 56, 3), np.uint8)


def test_the_command_captions_with_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for decoder in DECODERS:
        assert main(["caption", str(CLIP), "--backend", "cpu", "--decoder", decoder, *FEW]) == 0
        said.append(capsys.readouterr())
    assert said[0].out == said[1].out != "\n"
    assert "decoder: kernels in Triton's interpreter on the CPU" in said[1].err
    assert "decoder:" not in said[0].err


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[VideoLlama3]:
    """The demo bundle with a decoder of one layer of random codes, for which the interpreter takes a fraction."""
    demo = open_bundle(DEMO_BUNDLE)
    graphs, text = written(tmp_path_factory.mktemp("one"), Quantized(), {"num_layers": 1, "vocab_size": 448})
    for path in DEMO_BUNDLE.iterdir():
        if not (graphs / path.name).exists():
            shutil.copy(path, graphs)
    files = {path.name: hash_file(path) for path in graphs.iterdir()}
    return both(Bundle(graphs, replace(demo.manifest, text=text, files=files)))


def test_questions_share_a_beginning_and_draw_the_same(models: list[VideoLlama3]) -> None:
    configs = [
        GenerationConfig(max_new_tokens=3),
        GenerationConfig(max_new_tokens=3, repetition_penalty=1.5),
        GenerationConfig(max_new_tokens=3, temperature=1.0, top_k=5, top_p=0.9, seed=3),
    ]
    answers = []
    for model in models:
        clip = model.encode(frames(2), kind="video")
        answers.append(
            [model.ask(clip, question, config) for config in configs for question in ("What?", "Who is it?")]
        )
    expected, found = ([(answer.token_ids, answer.stats.reused_tokens) for answer in each] for each in answers)
    assert found == expected
    assert found[1][1] > 0


def test_a_prompt_that_grows_while_it_is_encoded(models: list[VideoLlama3]) -> None:
    config = GenerationConfig(max_new_tokens=2)
    answers = [model.ask(model.begin(frames(3, 1), kind="video"), "What?", config).token_ids for model in models]
    assert answers[1] == answers[0]


@pytest.mark.parametrize("batch", [2, 5])
def test_batches(models: list[VideoLlama3], batch: int) -> None:
    """More captions than rows, of several lengths, so that rows are refilled and moved."""
    texts, config = [], GenerationConfig(max_new_tokens=3)
    for model in models:
        clips = [model.encode(frames(1 + number % 2, number), kind="video") for number in range(batch + 1)]
        results = list(model.caption_all([CaptionJob(clip, "What?") for clip in clips], config, batch))
        assert [result.error for result in results] == [None] * len(clips)
        texts.append({result.index: result.answer.token_ids for result in results if result.answer is not None})
    assert texts[1] == texts[0]


def test_a_session_whose_oldest_frames_leave(models: list[VideoLlama3]) -> None:
    said = []
    for model in models:
        session = model.open_session(max_tokens=90)
        reports = [session.push(frame, float(second)) for second, frame in enumerate(frames(8, 4))]
        answer = join(session.ask("What?", GenerationConfig(max_new_tokens=3)))
        said.append(([report.dropped_s for report in reports], answer.token_ids, session.num_tokens))
    assert said[1] == said[0]
    assert any(said[0][0])


def test_what_cannot_decode_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="decoder must be one of auto, onnxruntime, kernels, not 'triton'"):
        VideoLlama3.load(None, "cpu", decoder="triton")
    import triton

    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = False
        with pytest.raises(BackendError, match=r"set TRITON_INTERPRET=1, or use --decoder onnxruntime$"):
            VideoLlama3.load(None, "cpu", decoder="kernels")
    monkeypatch.setattr("vl3edge.runtime.kernels.launcher._INTERPRETER", "triton.that.is.missing")
    assert main(["caption", str(CLIP), "--backend", "cpu", "--decoder", "kernels"]) == 1
    assert capsys.readouterr().err.endswith("set TRITON_INTERPRET=1, or use --decoder onnxruntime\n")


@pytest.fixture
def held_out(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.mp4" for seed in range(3)]
    for seed, path in enumerate(paths):
        write_clip(path, HELD_OUT_SEED + seed)
    return paths


@pytest.mark.parametrize(
    ("clips", "frames", "tokens"), [(2, 2, 3), pytest.param(3, 4, 16, marks=pytest.mark.long)], ids=["few", "more"]
)
def test_questions_on_held_out_clips(held_out: list[Path], clips: int, frames: int, tokens: int) -> None:
    config, plan = GenerationConfig(max_new_tokens=tokens), SamplingPlan(max_frames=frames)
    answers = []
    for model in both(open_bundle(DEMO_BUNDLE)):
        encoded = [model.encode(path, plan) for path in held_out[:clips]]
        answers.append(
            [model.ask(clip, question, config).token_ids for clip in encoded for question in QUESTIONS[:clips]]
        )
    assert answers[1] == answers[0]
    assert all(answers[0])
