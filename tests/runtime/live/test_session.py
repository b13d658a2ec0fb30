"""Streaming sessions: equal to the clip encoded at once, alive whatever the source does, right with a full context."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from resealing import reseal

from vl3edge.runtime import Box, GenerationConfig, GenerationStats, PruningConfig, VideoLlama3
from vl3edge.runtime.decode.generate import Chunk, join
from vl3edge.runtime.errors import ConfigError, ContextLengthError, MediaError, Vl3EdgeError
from vl3edge.runtime.live.session import Session
from vl3edge.runtime.media.video import Video, open_video
from vl3edge.runtime.prompt.tokenizer import Tokenizer
from vl3edge.runtime.vision.clip import Clip
from vl3edge.runtime.vision.engines import VisionEngines

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
QUESTIONS = {
    "Describe this video.": "A red square on a checkered ground. It waits, moves right, turns down and stops.",
    "When does it stop?": "At 7.0s.",
    "Which way does it move?": "It moves right, then down.",
}
WHOLE = PruningConfig(enabled=False)


@pytest.fixture(scope="module")
def demo() -> VideoLlama3:
    return VideoLlama3.load(num_threads=1)


@pytest.fixture(scope="module")
def video() -> Video:
    return open_video(CLIP).read()


@pytest.fixture(scope="module")
def model(any_bundle: Path) -> VideoLlama3:
    return VideoLlama3.load(any_bundle, num_threads=1)


def pushed(session: Session, video: Video) -> Session:
    for frame, time_s in zip(video.frames, video.timestamps_s, strict=True):
        session.push(frame, time_s)
    return session


def cached(session: Session) -> np.ndarray:
    """Keys and values of the session's context: float32 [2 · layers, heads, tokens, head_dim]."""
    buffers = session._generator._decoder.cache.buffers
    return np.stack([buffer.read_positions(0, 0, session.num_tokens) for buffer in buffers])


def test_an_answer_has_boxes_in_pixels_of_the_frames_that_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of frames that have left the context count no more. What the model says is made up."""
    session = VideoLlama3.load(num_threads=1).open_session(max_tokens=300)
    says = [Chunk("[[100, 200, 500, 1000]] "), Chunk("[[1]]", "stop", GenerationStats(1, 0, 1, 0.0, 0.0))]
    monkeypatch.setattr(session._generator, "stream", lambda *_: iter(says))
    assert session.answer("Where?", keep=False).boxes_note == "the answer does not say of what picture its boxes are"
    session.push(np.zeros((90, 120, 3), np.uint8), 0.0)
    answer = session.answer("Where?", keep=False)
    assert answer.boxes == (Box(None, 12, 18, 60, 90),)
    assert answer.boxes_note == "1 of 2 boxes cannot be used: [1] is not four whole numbers"
    session.push(np.zeros((120, 90, 3), np.uint8), 1.0)
    assert session.source_sizes == ((90, 120), (120, 90))
    answer = session.answer("Where?", keep=False)
    assert answer.boxes == ()
    assert "sizes differ" in str(answer.boxes_note)
    for second in range(2, 40):
        session.push(np.full((120, 90, 3), 5 * second, np.uint8), float(second))
    assert session.dropped_frames
    assert set(session.source_sizes) == {(120, 90)}
    assert len(session.source_sizes) == session.num_frames
    assert session.answer("Where?", keep=False).boxes == (Box(None, 9, 24, 45, 120),)


def moving(count: int, height: int = 56, width: int = 84) -> np.ndarray:
    """Frames of which every second changes in part: uint8 [count, height, width, 3]."""
    frames = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    frames[1:, :28] = frames[0, :28]
    frames[1::2] = frames[::2][: count // 2]
    return frames


def messages(clip: Clip, question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "video", "video": clip}, {"type": "text", "text": question}]}]


@pytest.mark.parametrize("pruning", [None, WHOLE], ids=["pruned", "whole"])
def test_frames_one_by_one_equal_the_clip_at_once(model: VideoLlama3, pruning: PruningConfig | None) -> None:
    frames, question = moving(7), "What <|im_end|> is it?"
    clip = model.encode(frames, pruning=pruning)
    session = model.open_session(pruning=pruning, frames_expected=len(frames))
    kept = [session.push(frame, time_s).kept_tokens for frame, time_s in zip(frames, clip.timestamps_s, strict=True)]
    assert tuple(kept) == clip.tokens_per_frame
    assert len(set(kept)) == (1 if pruning else 3)
    offline = model.prompt(messages(clip, question), [clip])
    assert session.prompt(question).ids.tolist() == offline.ids.tolist()
    config = GenerationConfig(max_new_tokens=24)
    answer = join(session.ask(question, config))
    assert answer.token_ids == model.ask(clip, question, config).token_ids
    # …and what stands in the cache is what the clip's prompt makes, token by token.
    other = model.open_session()
    other._generator.prefill(offline)
    other._context = offline
    count = len(offline)
    difference = np.abs(cached(session)[:, :, :count] - cached(other))
    assert difference.max() < 1e-4, (difference.max(), difference.mean())


@pytest.mark.parametrize("pruning", [None, WHOLE], ids=["pruned", "whole"])
@pytest.mark.parametrize("style", ["video", "stream"])
def test_the_demo_model_answers_about_a_stream(
    demo: VideoLlama3, video: Video, pruning: PruningConfig | None, style: Any
) -> None:
    session = pushed(demo.open_session(pruning=pruning, format=style), video)
    assert {question: join(session.ask(question, keep=False)).text for question in QUESTIONS} == QUESTIONS
    assert {question: join(session.ask(question)).text for question in QUESTIONS} == QUESTIONS


def test_questions_while_it_streams(demo: VideoLlama3, video: Video) -> None:
    session = demo.open_session()
    answers = []
    for frame, time_s in zip(video.frames, video.timestamps_s, strict=True):
        session.push(frame, time_s)
        answers.append(join(session.ask("Does it stop?", keep=False)).text)
    assert answers[2:7] == ["No."] * 5
    assert answers[-1] == "Yes."


def test_frames_and_answers_interleave_as_in_a_conversation(model: VideoLlama3) -> None:
    frames = moving(5)
    session = model.open_session("Watch.", pruning=WHOLE, frames_expected=5)
    for number in range(3):
        session.push(frames[number], float(number))
    config = GenerationConfig(max_new_tokens=8)
    first = join(session.ask("one?", config)).token_ids
    second = join(session.ask("two?", config)).token_ids
    for number in (3, 4):
        session.push(frames[number], float(number))
    clip = model.encode(frames, pruning=WHOLE)
    early, late = part_of(clip, 0, 3), part_of(clip, 3, 5)
    conversation = [
        {"role": "system", "content": "Watch."},
        *messages(early, "one?"),
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": second},
        *messages(late, "three?"),
    ]
    assert session.prompt("three?").ids.tolist() == model.prompt(conversation, [early, late]).ids.tolist()


def part_of(clip: Clip, start: int, end: int) -> Clip:
    first, last = (sum(clip.tokens_per_frame[:n]) for n in (start, end))
    visual = replace(
        clip.visual, tokens=clip.visual.tokens[first:last], tokens_per_frame=clip.tokens_per_frame[start:end]
    )
    return replace(
        clip, timestamps_s=clip.timestamps_s[start:end], tokens_per_frame=visual.tokens_per_frame, visual=visual
    )


@pytest.mark.parametrize("folder", ["bundle", pytest.param("authors_bundle", marks=pytest.mark.torch)])
def test_the_stream_role_is_written_as_the_paper_has_it(request: pytest.FixtureRequest, folder: str) -> None:
    frames = moving(3)
    model = VideoLlama3.load(request.getfixturevalue(folder), num_threads=1)
    session = model.open_session(format="stream", frames_expected=16)
    for number in (0, 1):
        session.push(frames[number], number + 0.26)
    ids = join(session.ask("q?", GenerationConfig(max_new_tokens=4))).token_ids
    session.push(frames[2], 2.0)
    context = session.prompt("r?").ids
    placeholder = model.bundle.manifest.tokens.video_id
    runs = [n for n, token in enumerate(context) if token != placeholder or context[n - 1] != placeholder]
    library = tokenizers.Tokenizer.from_file(str(model.bundle.path("tokenizer.json")))
    text = library.decode([int(context[n]) for n in runs], skip_special_tokens=False)
    tokenizer = Tokenizer.of(model.bundle)
    frame, answer = tokenizer.token(placeholder), tokenizer.decode(list(ids))
    assert text == (
        f"<|stream_start|>stream\nTime 0.3s: {frame}\nTime 1.3s: {frame}\n<|stream_end|>\n"
        f"<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        f"<|stream_start|>stream\nTime 2.0s: {frame}\n<|stream_end|>\n"
        "<|im_start|>user\nr?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_without_the_stream_role_says_so(bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    template = (folder / "chat_template.jinja").read_text().replace("message['role'] == 'stream'", "false")
    (folder / "chat_template.jinja").write_text(template)
    reseal(folder)
    model = VideoLlama3.load(folder, num_threads=1)
    with pytest.raises(ConfigError, match="format='video'"):
        model.open_session(format="stream")
    with pytest.raises(ConfigError, match="video, stream"):
        model.open_session(format="film")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("folder", "style"),
    [("bundle", "video"), ("bundle", "stream"), pytest.param("one_layer_bundle", "video", marks=pytest.mark.torch)],
)
def test_a_full_context_is_that_of_the_frames_that_stayed(
    request: pytest.FixtureRequest, folder: str, style: Any
) -> None:
    """As if the session had begun with them: tokens, and the first layer's keys and values at their positions."""
    model = VideoLlama3.load(request.getfixturevalue(folder), num_threads=1)
    frames = moving(60)
    session = model.open_session("Watch it.", WHOLE, max_tokens=300, frames_expected=16, format=style)
    gone: list[float] = []
    for number, frame in enumerate(frames):
        report = session.push(frame, float(number))
        gone += report.dropped_s
        assert report.dropped_frames == len(report.dropped_s)
        assert session.num_tokens <= 300 - 300 // 8
    assert gone == [float(n) for n in range(len(gone))]
    assert session.dropped_frames == len(gone) > 30
    assert session.num_frames == 60 - len(gone) > 3
    fresh = model.open_session("Watch it.", WHOLE, frames_expected=16, format=style)
    for number in range(len(gone), 60):
        fresh.push(frames[number], float(number))
    assert session.prompt("q?").ids.tolist() == fresh.prompt("q?").ids.tolist()
    difference = np.abs(cached(session)[:2] - cached(fresh)[:2])  # deeper layers saw what has left
    assert difference.max() < 1e-4, (difference.max(), difference.mean())


def test_answers_leave_with_the_frames_of_their_time(demo: VideoLlama3, video: Video) -> None:
    session = pushed(demo.open_session(max_tokens=400, pruning=WHOLE), video)
    join(session.ask("What colour is it?"))
    join(session.ask("What shape is it?"))
    number = len(video.frames)
    while session.dropped_frames < len(video.frames):
        session.push(video.frames[-1], float(number))
        number += 1
    fresh = demo.open_session(pruning=WHOLE)
    for late in range(session.dropped_frames, number):
        fresh.push(video.frames[-1], float(late))
    assert session.prompt("q?").ids.tolist() == fresh.prompt("q?").ids.tolist()


def test_the_frame_after_a_drop_is_whole(demo: VideoLlama3, video: Video) -> None:
    """The scene never changes: without a whole frame now and then, the model would be left with nothing to see."""
    session = demo.open_session(max_tokens=400)
    for number in range(200):
        report = session.push(video.frames[0], float(number))
        assert report.kept_tokens == (16 if number == 0 or report.dropped_frames else 1)
    assert session.dropped_frames > 100
    assert join(session.ask("What colour is it?", keep=False)).text == "Red."


def test_right_answers_after_many_drops(demo: VideoLlama3, video: Video) -> None:
    session = demo.open_session(max_tokens=700)
    for number in range(300):
        session.push(video.frames[number % 3], float(number))
    assert session.dropped_frames > 100
    for question, answer in (("What colour is it?", "Red."), ("What shape is it?", "A square.")):
        assert join(session.ask(question)).text == answer


def test_a_question_without_a_trace(demo: VideoLlama3, video: Video) -> None:
    session, silent = demo.open_session(), demo.open_session()
    for frame, time_s in zip(video.frames, video.timestamps_s, strict=True):
        session.push(frame, time_s)
        silent.push(frame, time_s)
        if time_s % 2:
            join(session.ask("What colour is it?", keep=False))
    assert session.num_tokens == silent.num_tokens
    difference = np.abs(cached(session) - cached(silent))
    assert difference.max() == 0, (difference.max(), difference.mean())


def test_only_what_was_taken_of_an_answer_stays(demo: VideoLlama3, video: Video) -> None:
    session = pushed(demo.open_session(), video)
    chunks = session.ask("Describe this video.")
    taken: list[Chunk] = [next(chunks), next(chunks)]
    chunks.close()
    tail = [token for chunk in taken for token in chunk.token_ids]
    assert session.prompt("q?").ids.tolist()[: session.num_tokens][-len(tail) :] == tail
    before = session.num_tokens
    chunks = session.ask("What colour is it?", keep=False)
    next(chunks)
    chunks.close()
    assert session.num_tokens == before


def test_a_frame_ends_an_unfinished_answer(demo: VideoLlama3, video: Video) -> None:
    session = pushed(demo.open_session(), video)
    before = session.num_tokens
    begun, unread = session.ask("Describe this video."), None
    next(begun)
    session.push(video.frames[-1], 9.0)
    with pytest.raises(Vl3EdgeError, match="interrupted this answer"):
        join(begun)
    unread = session.ask("Describe this video.")
    session.push(video.frames[-1], 10.0)
    with pytest.raises(Vl3EdgeError, match="ask again"):
        join(unread)
    assert session.num_tokens > before
    assert session.num_seen == session.num_frames == 11
    assert join(session.ask("What colour is it?")).text == "Red."


def test_sessions_and_other_questions_do_not_disturb_each_other(demo: VideoLlama3, video: Video) -> None:
    one, other = demo.open_session(), demo.open_session()
    clip = demo.encode(CLIP)
    for number, frame in enumerate(video.frames):
        one.push(frame, float(number))
        other.push(frame[::-1], float(number))
        demo.ask(clip, "What shape is it?")
    assert join(one.ask("Describe this video.")).text == QUESTIONS["Describe this video."]
    flipped = demo.encode(video.frames[:, ::-1])
    assert join(other.ask("Describe this video.")).text == demo.ask(flipped, "Describe this video.").text


def test_other_resolutions_and_times_that_jump_back(demo: VideoLlama3, video: Video) -> None:
    session = demo.open_session()
    session.push(video.frames[0], 100.0)
    session.push(video.frames[1], 101.0)
    small = session.push(video.frames[2][::2, ::2], 102.0)
    assert "112×112 to 56×56" in small.notes[0]
    back = session.push(video.frames[3], 3.0)
    assert (back.timestamp_s, len(back.notes)) == (103.0, 2)
    assert "jumped back to 3.0 s" in back.notes[1]
    onward = session.push(video.frames[4], 4.0)
    assert (onward.timestamp_s, onward.notes) == (104.0, ())
    forward = session.push(video.frames[5], 64.0)
    assert (forward.timestamp_s, forward.notes) == (164.0, ())
    assert session.num_frames == session.num_seen == 6
    assert join(session.ask("What colour is it?")).text == "Red."


BAD_FRAMES: list[Any] = [
    np.zeros((0, 10, 3), np.uint8),
    np.zeros((10, 10), np.uint8),
    np.zeros((10, 10, 3), np.float32),
    np.zeros((28, 28 * 300, 3), np.uint8),
    None,
]


def test_what_is_no_frame_leaves_the_session_as_it_was(demo: VideoLlama3, video: Video) -> None:
    session, fine = demo.open_session(), demo.open_session()
    for frame in BAD_FRAMES:
        with pytest.raises(MediaError):
            session.push(frame, 0.0)
    for number, frame in enumerate(video.frames):
        assert session.push(frame, float(number)).kept_tokens == fine.push(frame, float(number)).kept_tokens
        for bad in BAD_FRAMES[1:3]:
            with pytest.raises(MediaError):
                session.push(bad, float(number))
        with pytest.raises(ConfigError):
            session.push(frame, float("nan"))
    difference = np.abs(cached(session) - cached(fine))
    assert difference.max() == 0, (difference.max(), difference.mean())


def test_an_engine_that_fails_costs_one_frame(demo: VideoLlama3, video: Video, monkeypatch: pytest.MonkeyPatch) -> None:
    session = demo.open_session()
    session.push(video.frames[0], 0.0)
    session.push(video.frames[1], 1.0)
    before = session.num_tokens

    def fail(*_: object) -> None:
        raise Vl3EdgeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(VisionEngines, "features", fail)
        with pytest.raises(Vl3EdgeError, match="out of memory"):
            session.push(video.frames[2], 2.0)
    assert session.num_tokens == before
    assert session.push(video.frames[2], 2.0).kept_tokens == 16  # not pruned against what the model never saw
    assert session.num_seen == 3


def test_what_does_not_fit_is_refused(demo: VideoLlama3, video: Video) -> None:
    session = demo.open_session(max_tokens=40)
    session.push(video.frames[0], 0.0)
    for number in range(1, 20):  # a context of one whole frame at a time
        session.push(video.frames[number % 9], float(number))
    assert session.num_frames == 1
    with pytest.raises(ContextLengthError, match="shorter question"):
        session.ask("word " * 30)
    assert session.num_frames == 1
    tight = demo.open_session("Be very brief, and never say anything that nobody asked for.", max_tokens=40)
    with pytest.raises(ContextLengthError, match="larger max_tokens"):
        tight.push(video.frames[0], 0.0)
    for options in ({"max_tokens": 0}, {"max_tokens": 1 << 20}, {"frames_expected": 0}):
        with pytest.raises(ConfigError):
            demo.open_session(**options)  # type: ignore[arg-type]


def test_a_long_answer_makes_the_oldest_leave(demo: VideoLlama3, video: Video) -> None:
    session = demo.open_session(max_tokens=300, pruning=WHOLE)
    for number in range(11):
        session.push(video.frames[number % 9], float(number))
    assert session.dropped_frames == 0
    answer = join(session.ask("word " * 12, GenerationConfig(max_new_tokens=200)))
    assert session.num_tokens <= 300
    assert session.dropped_frames > 0
    assert answer.stats.prompt_tokens + answer.stats.generated_tokens <= 300
    report = session.push(video.frames[0], 11.0)
    assert report.dropped_s[:2] == (0.0, 1.0)  # what left for the answer is reported, too
    assert report.kept_tokens == 16


def test_a_session_of_questions_alone_keeps_the_latest(demo: VideoLlama3, video: Video) -> None:
    session, config = demo.open_session("Be kind.", max_tokens=200), GenerationConfig(max_new_tokens=5)
    answers = [join(session.ask(f"word {number}?", config)).token_ids for number in range(30)]
    fits = next(n for n in range(30) if conversation(demo, n, answers) == session.prompt("q?").ids.tolist())
    assert 20 < fits < 28
    assert session.num_tokens <= 200
    session.push(video.frames[0], 0.0)
    assert session.num_frames == 1


def conversation(model: VideoLlama3, start: int, answers: list[tuple[int, ...]]) -> list[int]:
    said: list[dict[str, Any]] = [{"role": "system", "content": "Be kind."}]
    for number in range(start, len(answers)):
        said += [{"role": "user", "content": f"word {number}?"}, {"role": "assistant", "content": answers[number]}]
    return model.prompt([*said, {"role": "user", "content": "q?"}], []).ids.tolist()


def test_the_size_is_that_of_a_clip_of_as_many_frames(model: VideoLlama3, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(2).integers(0, 256, (6, 600, 900, 3), dtype=np.uint8)
    clip = model.encode(frames)
    encoded: list[tuple[int, ...]] = []
    real = VisionEngines.features

    def spied(self: VisionEngines, pixels: np.ndarray) -> Any:
        encoded.append(pixels.shape)
        return real(self, pixels)

    monkeypatch.setattr(VisionEngines, "features", spied)
    model.open_session(frames_expected=6).push(frames[0], 0.0)
    assert encoded == [(1, clip.height_px, clip.width_px, 3)]


def test_a_source_is_pulled_frame_by_frame(demo: VideoLlama3) -> None:
    session = demo.open_session()
    reports = session.pull(CLIP)
    assert session.num_seen == 0
    assert [report.timestamp_s for report in reports] == [float(n) for n in range(9)]
    assert join(session.ask("When does it stop?")).text == "At 7.0s."
    with pytest.raises(MediaError):
        session.pull(CLIP.parent / "missing.mp4")


def test_a_caller_may_reuse_its_memory(demo: VideoLlama3, video: Video) -> None:
    session, fine = demo.open_session(), demo.open_session()
    memory = np.empty_like(video.frames[0])
    for number, frame in enumerate(video.frames):
        memory[:] = frame
        assert session.push(memory, float(number)).kept_tokens == fine.push(frame, float(number)).kept_tokens
