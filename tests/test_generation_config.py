"""What generation_config.json asks for is what is done where a call says nothing: transformers' tokens, everywhere."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import (
    VisualInput,
    generate_from_visuals,
    load_processor,
    load_reference,
    reference_generate,
    reference_inputs,
)

from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import Layout
from vl3edge.models.errors import CheckpointError
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.runtime import GenerationConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.bundle.specs import GREEDY, GenerationSpec
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.errors import ContextLengthError
from vl3edge.runtime.jobs import CaptionJob
from vl3edge.runtime.ray import Captioner
from vl3edge.runtime.terminal import printable
from vl3edge.runtime.vision.difffp import keep_mask

NEW_TOKENS = 24
QUESTION = "What happens?"
SHORT = GenerationConfig(max_new_tokens=NEW_TOKENS)


def checkpoint_with(folder: Path, layout: Layout = "transformers", seed: int = 0, **asked: Any) -> Path:
    """A random checkpoint whose generation_config.json asks for something more."""
    write_random_checkpoint(folder, preset("tiny", layout), seed=seed, dtype="float32")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | asked))
    return folder


def media(seed: int) -> dict[str, np.ndarray]:
    """A video in which half of the frame stands still, and a picture; sides that are encoded as they are."""
    random = np.random.default_rng(seed)
    video = np.repeat(random.integers(0, 256, (1, 112, 112, 3), np.uint8), 4, axis=0)
    video[:, :, 56:] = random.integers(0, 256, (4, 112, 56, 3), np.uint8)
    return {"video": video, "image": random.integers(0, 256, (112, 112, 3), np.uint8)}


@dataclass
class Case:
    model: VideoLlama3
    checkpoint: Checkpoint
    reference: Any
    penalty: float

    def theirs(self, kind: str, source: np.ndarray) -> list[int]:
        """transformers' greedy tokens, by the checkpoint's generation_config.json."""
        item: dict[str, Any] = {"type": kind, kind: source}
        if kind == "video":
            item["timestamps"] = [float(t) for t in range(len(source))]
        messages = [{"role": "user", "content": [item, {"type": "text", "text": QUESTION}]}]
        if self.checkpoint.layout == "transformers":
            ids = reference_generate(
                self.checkpoint.folder, messages, NEW_TOKENS, resize=False, model=self.reference
            ).new_ids
        else:  # as the authors' release: transformers gets embeddings
            merge = 2 if kind == "video" else 1
            frames = source if kind == "video" else source[None]
            keep = keep_mask(frames, 14, merge) if kind == "video" else None
            clip = self.model.encode(source, kind=kind)  # type: ignore[arg-type]
            prompt = self.model.prompt(messages, [clip]).ids.tolist()
            visual = VisualInput(frames, merge, keep)
            ids = generate_from_visuals(self.reference, self.checkpoint.config, prompt, [visual], NEW_TOKENS)
        ends = set(self.checkpoint.config.eos_token_ids)
        return [token for token in ids if token not in ends]


@pytest.fixture(
    scope="module", params=[("transformers", 1.05), ("transformers", 1.3), ("authors", 1.05), ("authors", 1.3)]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    layout, penalty = request.param
    folder = tmp_path_factory.mktemp("penalty")
    checkpoint = Checkpoint.open(checkpoint_with(folder / "checkpoint", layout, seed=11, repetition_penalty=penalty))
    export_bundle(checkpoint, folder / "bundle")
    reference = load_reference(checkpoint.folder)
    reference.generation_config.repetition_penalty = penalty  # the authors' layout is put together in memory
    return Case(VideoLlama3.load(folder / "bundle", "cpu", 1), checkpoint, reference, penalty)


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
def test_greedy_tokens_with_a_penalty_equal_transformers(case: Case) -> None:
    """One at a time, in a batch, and with other kinds of media beside."""
    jobs, expected, plain = [], [], []
    for seed in range(3):
        for kind, source in media(seed).items():
            clip = case.model.encode(source, SamplingPlan(fps=1.0), kind=kind)  # type: ignore[arg-type]
            theirs = case.theirs(kind, source)
            assert list(case.model.ask(clip, QUESTION, SHORT).token_ids) == theirs
            given = GenerationConfig(max_new_tokens=NEW_TOKENS, repetition_penalty=case.penalty)
            assert list(case.model.ask(clip, QUESTION, given).token_ids) == theirs
            off = GenerationConfig(max_new_tokens=NEW_TOKENS, repetition_penalty=1.0)
            plain.append(list(case.model.ask(clip, QUESTION, off).token_ids))
            jobs.append(CaptionJob(clip, QUESTION))
            expected.append(theirs)
    assert plain != expected  # the penalty decides something
    for batch in (1, 3):
        found = {result.index: result.answer for result in case.model.caption_all(jobs, SHORT, batch=batch)}
        assert [list(found[index].token_ids) for index in range(len(jobs))] == expected  # type: ignore[union-attr]


def test_sessions_and_chats_have_the_models_own_settings(case: Case) -> None:
    video = media(0)["video"]
    session, other = case.model.open_session(frames_expected=4), case.model.open_session(frames_expected=4)
    for time_s, frame in enumerate(video):
        session.push(frame, float(time_s))
        other.push(frame, float(time_s))
    given = GenerationConfig(max_new_tokens=NEW_TOKENS, repetition_penalty=case.penalty)
    default = [chunk.token_ids for chunk in session.ask(QUESTION, SHORT)]
    assert default == [chunk.token_ids for chunk in other.ask(QUESTION, given)]
    clip = case.model.encode(video, SamplingPlan(fps=1.0))
    asked = case.model.chat().ask(QUESTION, clip, config=SHORT).token_ids
    assert asked == case.model.chat().ask(QUESTION, clip, config=given).token_ids


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> VideoLlama3:
    folder = tmp_path_factory.mktemp("drawing")
    asked = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 7}
    export_bundle(Checkpoint.open(checkpoint_with(folder / "checkpoint", seed=5, **asked)), folder / "bundle")
    return VideoLlama3.load(folder / "bundle", "cpu", 1)


def test_a_checkpoint_that_draws_draws_and_explicit_values_win(drawing: VideoLlama3) -> None:
    clip = drawing.encode(media(1)["image"])

    def answer(**settings: Any) -> tuple[int, ...]:
        return drawing.ask(clip, QUESTION, GenerationConfig(max_new_tokens=NEW_TOKENS, **settings)).token_ids

    greedy = answer(temperature=0.0)
    assert answer(temperature=0.0, seed=1) == greedy
    assert answer(seed=1) == answer(temperature=0.8, top_p=0.9, top_k=7, seed=1) != greedy
    assert answer(seed=1, top_k=1) == greedy
    assert len({answer(seed=seed) for seed in range(4)}) > 1
    assert drawing.info["generation"]["temperature"] == 0.8


def test_info_says_how_tokens_are_chosen(
    drawing: VideoLlama3, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(drawing.bundle.folder)]) == 0
    assert "drawn at temperature 0.8, top-p 0.9, top-k 7, repetition penalty 1" in capsys.readouterr().out
    assert main(["info", str(bundle)]) == 0
    assert "greedy, repetition penalty 1; at most 256 tokens new; end tokens" in capsys.readouterr().out


def test_the_command_line_and_ray_take_the_models_own(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    clip = str(Path(__file__).parent / "fixtures" / "demo_clip.mp4")
    folder = str(case.model.bundle.folder)
    texts = []
    for options in ([], ["--repetition-penalty", str(case.penalty)], ["--repetition-penalty", "1"]):
        assert main(["ask", clip, "-q", QUESTION, "-m", folder, "--max-new-tokens", "24", *options]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    short = GenerationConfig(max_new_tokens=24)
    captions = Captioner(folder, "cpu", 1, prompt=QUESTION, generation=short)({"media": [clip]})
    assert printable(captions.to_pylist()[0]["caption"]).strip() == texts[0].strip()


READ: list[tuple[dict[str, Any], GenerationSpec]] = [
    ({}, GREEDY),
    ({"do_sample": False, "temperature": 0.7}, GenerationSpec(temperature=0.7)),
    ({"do_sample": True}, GenerationSpec(do_sample=True, top_k=50)),  # transformers' own default
    ({"do_sample": True, "top_k": 0, "top_p": 0.5}, GenerationSpec(do_sample=True, top_p=0.5)),
    ({"do_sample": True, "top_k": None, "temperature": None}, GenerationSpec(do_sample=True, top_k=50)),
    ({"repetition_penalty": 1.1, "top_p": 0.8, "top_k": 20}, GenerationSpec(False, 1.0, 0.8, 20, 1.1)),
    ({"max_new_tokens": 2048}, GenerationSpec(max_new_tokens=2048)),
    ({"max_length": 77, "max_new_tokens": None}, GenerationSpec(max_length=77)),
]


@pytest.mark.parametrize(("asked", "expected"), READ)
def test_generation_config_is_read(tmp_path: Path, asked: dict[str, Any], expected: GenerationSpec) -> None:
    assert Checkpoint.open(checkpoint_with(tmp_path / "c", **asked)).config.generation == expected


def test_older_checkpoints_keep_it_in_config(tmp_path: Path) -> None:
    folder = checkpoint_with(tmp_path / "c")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"eos_token_id": 3, "repetition_penalty": 1.2}
    (folder / "config.json").write_text(json.dumps(config))
    assert Checkpoint.open(folder).config.generation == GenerationSpec(repetition_penalty=1.2)


@pytest.mark.parametrize(
    "asked",
    [{"top_p": 1.5}, {"top_p": 0}, {"temperature": -1}, {"repetition_penalty": 0}, {"top_k": -1}, {"do_sample": "yes"},
     {"repetition_penalty": float("nan")}, {"temperature": float("inf")}, {"max_new_tokens": -5}, {"max_length": "x"}],
)  # fmt: skip
def test_what_cannot_be_done_is_named(tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {next(iter(asked))} "):
        Checkpoint.open(checkpoint_with(tmp_path / "c", **asked))


def test_what_is_not_done_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="asks for num_beams 4, no_repeat_ngram_size 3, which is not supported"):
        Checkpoint.open(checkpoint_with(tmp_path / "a", num_beams=4, no_repeat_ngram_size=3, min_p=0.1))
    with pytest.warns(UserWarning, match=r"asks for min_p 0\.1"):
        Checkpoint.open(checkpoint_with(tmp_path / "b", do_sample=True, min_p=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Checkpoint.open(checkpoint_with(tmp_path / "c", num_beams=1, no_repeat_ngram_size=0, min_length=0))


LENGTHS: dict[str, dict[str, int]] = {
    "new": {"max_new_tokens": 7},
    "in all": {"max_length": 110},
    "new goes first": {"max_new_tokens": 9, "max_length": 90},
    "longer than the usual": {"max_new_tokens": 270},
}


@pytest.mark.parametrize("layout", ["transformers", "authors"])
@pytest.mark.parametrize("name", LENGTHS)
def test_answers_are_as_long_as_the_model_says(tmp_path: Path, layout: Layout, name: str) -> None:
    """As many tokens as transformers gives by the same generation_config.json; a call's own limit goes first."""
    if layout == "authors" and name != "new":
        pytest.skip("once is enough")
    checkpoint = Checkpoint.open(checkpoint_with(tmp_path / "checkpoint", layout, seed=11, **LENGTHS[name]))
    export_bundle(checkpoint, tmp_path / "bundle")
    model = VideoLlama3.load(tmp_path / "bundle", "cpu", 1)
    clip = model.encode(media(0)["image"])
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = len(model.prompt(messages, [clip]))
    answer = model.ask(clip, QUESTION)
    assert answer.finish_reason == "length"
    expected = LENGTHS[name].get("max_new_tokens") or LENGTHS[name]["max_length"] - prompt
    assert len(answer.token_ids) == answer.stats.generated_tokens == expected
    assert model.ask(clip, QUESTION, GenerationConfig(max_new_tokens=3)).stats.generated_tokens == 3
    jobs = [CaptionJob(clip, QUESTION), CaptionJob(clip, QUESTION)]
    for result in model.caption_all(jobs, batch=2):
        assert result.answer is not None
        assert result.answer.stats.generated_tokens == expected
    if layout == "transformers":
        messages[0]["content"][0]["image"] = media(0)["image"]  # type: ignore[index]
        _, inputs = reference_inputs(load_processor(checkpoint.folder), messages, resize=False)
        theirs = load_reference(checkpoint.folder).generate(**inputs)
        assert theirs[0, prompt:].tolist() == list(answer.token_ids)


def test_a_prompt_longer_than_the_model_allows_is_told(tmp_path: Path) -> None:
    export_bundle(Checkpoint.open(checkpoint_with(tmp_path / "c", max_length=20)), tmp_path / "bundle")
    model = VideoLlama3.load(tmp_path / "bundle", "cpu", 1)
    clip = model.encode(media(0)["image"])
    with pytest.raises(ContextLengthError, match=r"allows 20 with the answer \(max_length\): set max_new_tokens"):
        model.ask(clip, QUESTION)
    assert model.ask(clip, QUESTION, SHORT).stats.generated_tokens == NEW_TOKENS
    session = model.open_session(frames_expected=4)
    session.push(media(0)["image"], 0.0)
    assert 1 <= sum(len(chunk.token_ids) for chunk in session.ask(QUESTION)) <= 20


def test_the_command_line_takes_the_models_own_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_bundle(Checkpoint.open(checkpoint_with(tmp_path / "c", seed=11, max_new_tokens=5)), tmp_path / "bundle")
    clip = str(Path(__file__).parent / "fixtures" / "demo_clip.mp4")
    model = ["-m", str(tmp_path / "bundle")]
    for options, expected in (([], 5), (["--max-new-tokens", "8"], 8)):
        assert main(["caption", clip, *model, *options]) == 0
        assert f"for {expected} tokens" in capsys.readouterr().err
    assert main(["info", *model[1:]]) == 0
    assert "at most 5 tokens new" in capsys.readouterr().out


SETTINGS = ({}, {"temperature": 0.0}, {"temperature": 0.5}, {"top_k": 3, "repetition_penalty": 1.4})


@pytest.mark.parametrize("given", SETTINGS)
@pytest.mark.parametrize("model", [GREEDY, GenerationSpec(True, 0.7, 0.8, 20, 1.1), GenerationSpec(False, 0.7, 0.8)])
def test_explicit_values_win(given: dict[str, Any], model: GenerationSpec) -> None:
    found = GenerationConfig(**given).filled(model)
    own = {"temperature": model.temperature if model.do_sample else 0.0, "top_p": model.top_p, "top_k": model.top_k}
    assert vars(found) == {**vars(GenerationConfig()), **own, "repetition_penalty": model.repetition_penalty, **given}
