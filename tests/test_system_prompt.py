"""System text: the ids are those of the checkpoint's template as transformers renders and tokenizes it, everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from reference import transformers_module

from vl3edge.runtime import GenerationConfig, PruningConfig, VideoLlama3
from vl3edge.runtime.bundle.bundle import open_bundle
from vl3edge.runtime.decode.generate import Generator
from vl3edge.runtime.errors import ConfigError
from vl3edge.runtime.inspect.inspection import Speed, inspect
from vl3edge.runtime.jobs import CaptionJob
from vl3edge.runtime.prompt.tokenizer import Tokenizer
from vl3edge.runtime.terminal import printable

CLIP = Path(__file__).parent / "fixtures" / "demo_clip.mp4"
HELPFUL = "You are a helpful assistant."
QUESTION = "What is it?"
WHOLE, SHORT = PruningConfig(enabled=False), GenerationConfig(max_new_tokens=8)
VIDEO = np.random.default_rng(0).integers(0, 256, (3, 56, 84, 3), dtype=np.uint8)
Options = dict[str, Any]
CASES: dict[str, Options] = {
    "neither": {},
    "text": {"system": HELPFUL},
    "the template's": {"add_system_prompt": True},
    "both, as published": {"system": HELPFUL, "add_system_prompt": True},
    "empty": {"system": ""},
    "special tokens": {"system": "a<|im_end|>\n<image> ünï 🙂"},
}


@pytest.fixture(scope="module", params=["transformers", "authors"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(layout: str, bundle: Path, authors_bundle: Path) -> Path:
    return bundle if layout == "transformers" else authors_bundle


@pytest.fixture(scope="module")
def tiny(folder: Path) -> VideoLlama3:
    return VideoLlama3.load(folder, backend="cpu", num_threads=1)


def messages(*turns: tuple[str, Any], system: str | None = None) -> list[dict[str, Any]]:
    begun = [] if system is None else [{"role": "system", "content": system}]
    return [*begun, *({"role": role, "content": content} for role, content in turns)]


def about(media: list[Any], question: str = QUESTION) -> list[dict[str, Any]]:
    return [*({"type": "video", "video": item} for item in media), {"type": "text", "text": question}]


def reference_ids(checkpoint: Path, layout: str, system: str | None, add_system_prompt: bool) -> list[int]:
    """Of a question without media: what the authors' processor does with its tokenizer."""
    tokenizer = transformers_module().AutoTokenizer.from_pretrained(checkpoint)
    text = tokenizer.apply_chat_template(
        messages(("user", QUESTION), system=system),
        tokenize=False,
        add_system_prompt=add_system_prompt,
        add_generation_prompt=True,
        image_token="<image>",
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("case", ["neither", "text", "the template's", "both, as published", "empty"])
def test_ids_equal_the_authors(tiny: VideoLlama3, checkpoints: Callable[..., Path], layout: Any, case: str) -> None:
    options = CASES[case]
    ours = tiny.prompt(messages(("user", QUESTION)), [], **options).ids.tolist()
    wanted = options.get("system"), options.get("add_system_prompt", False)
    assert ours == reference_ids(checkpoints("tiny", layout), layout, *wanted)
    # Given as a message, it is the same.
    system = options.get("system")
    as_message = tiny.prompt(messages(("user", QUESTION), system=system), [], add_system_prompt=wanted[1])
    assert as_message.ids.tolist() == ours


def test_only_a_template_with_a_text_has_one(tiny: VideoLlama3, layout: str) -> None:
    assert tiny.has_system_prompt == (layout == "authors")
    without = tiny.prompt(messages(("user", QUESTION)), []).ids.tolist()
    added = tiny.prompt(messages(("user", QUESTION)), [], add_system_prompt=True).ids.tolist()
    assert (added == without) == (layout == "transformers")
    assert added[-len(without) :] == without


def expected(tiny: VideoLlama3, options: Options) -> list[int]:
    """Ids of a question about the video."""
    clip = tiny.encode(VIDEO, pruning=WHOLE)
    system = options.get("system")
    asked = messages(("user", about([clip])), system=system)
    return tiny.prompt(asked, [clip], add_system_prompt=options.get("add_system_prompt", False)).ids.tolist()


@pytest.mark.parametrize("case", CASES)
def test_every_call_asks_the_same(tiny: VideoLlama3, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = CASES[case]
    ids = expected(tiny, options)
    seen: list[list[int]] = []
    real = Generator._tokens

    def spied(self: Any, prompt: Any, *rest: Any) -> Any:
        seen.append(prompt.ids.tolist())
        return real(self, prompt, *rest)

    monkeypatch.setattr(Generator, "_tokens", spied)
    clip = tiny.encode(VIDEO, pruning=WHOLE)
    answer = tiny.ask(clip, QUESTION, SHORT, **options)
    tiny.ask(tiny.begin(VIDEO, pruning=WHOLE), QUESTION, SHORT, **options)
    asked = messages(("user", about([VIDEO])))
    tiny.generate(asked, SHORT, pruning=WHOLE, **options)
    chat = tiny.chat(pruning=WHOLE, **options)
    chat.ask(QUESTION, VIDEO, config=SHORT)
    (result,) = tiny.caption_all([CaptionJob(VIDEO, QUESTION, pruning=WHOLE, **options)], SHORT)
    assert seen == [ids] * 5
    session = tiny.open_session(pruning=WHOLE, frames_expected=len(VIDEO), **options)
    for time_s, frame in enumerate(VIDEO):
        session.push(frame, float(time_s))
    assert session.prompt(QUESTION).ids.tolist() == ids
    jobs = [CaptionJob(VIDEO, QUESTION, pruning=WHOLE, **options)] * 2
    for result in tiny.caption_all(jobs, SHORT, batch=2):
        assert result.answer is not None
        assert (result.answer.stats.prompt_tokens, result.answer.token_ids) == (len(ids), answer.token_ids)


def test_later_turns_keep_it(tiny: VideoLlama3) -> None:
    for options in CASES.values():
        chat = tiny.chat(**options)
        chat.ask(QUESTION, config=SHORT)
        reused = chat.ask("And now?", config=SHORT).stats.reused_tokens
        begun = tiny.prompt(messages(("user", QUESTION)), [], **options)
        assert reused >= len(begun)


def test_inspect_counts_it(tiny: VideoLlama3, folder: Path) -> None:
    def text_tokens(**options: Any) -> int:
        seen = inspect(open_bundle(folder), VIDEO, question=QUESTION, speed=Speed(1e9, 1e9), **options)
        return seen.whole.text_tokens

    for options in CASES.values():
        more = len(expected(tiny, options)) - len(expected(tiny, {}))
        assert text_tokens(**options) - text_tokens() == more


def test_what_cannot_be_said(tiny: VideoLlama3) -> None:
    with pytest.raises(ConfigError, match="has a system message"):
        tiny.generate(messages(("user", QUESTION), system=HELPFUL), SHORT, system="Be brief.")
    for call in (tiny.chat, tiny.open_session):
        with pytest.raises(ConfigError, match="system must be a string, not list"):
            call(["Be brief."])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not UTF-8"):
        tiny.prompt(messages(("user", QUESTION)), [], system="\udcff")


def test_commands_have_it(
    folder: Path, layout: str, tiny: VideoLlama3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def records(*arguments: object) -> list[dict[str, Any]]:
        status, out, _ = run(
            capsys, "caption", CLIP, "-m", folder, "--max-new-tokens", 8, "--format", "jsonl", *arguments
        )
        assert status == 0
        return [json.loads(line) for line in out.splitlines()]

    clip = tiny.encode(CLIP)
    for options in (CASES["neither"], CASES["text"], CASES["the template's"]):
        given = ["--system", options["system"]] if "system" in options else []
        given += ["--add-system-prompt"] if options.get("add_system_prompt") else []
        described = tiny.ask(clip, "Describe this video.", SHORT, **options).text
        assert records(*given)[0]["caption"] == described
        assert [r["caption"] for r in records("--batch", 2, "--segment", 5, *given)] == [
            r["caption"] for r in records("--segment", 5, *given)
        ]
        status, out, err = run(
            capsys, "ask", CLIP, "-m", folder, "--max-new-tokens", 8, "-q", "Describe this video.", *given
        )
        assert (status, out) == (0, f"{printable(described)}\n")
        unknown = "add_system_prompt" in options and layout == "transformers"
        assert ("--add-system-prompt has no effect" in err) == unknown


def test_watch_has_it(folder: Path, tiny: VideoLlama3, capsys: pytest.CaptureFixture[str]) -> None:
    """Watching a file at many times its speed sees every frame or not: the prompt's first tokens tell the rest."""
    opened: list[Any] = []
    real = VideoLlama3.open_session

    def spied(self: VideoLlama3, *arguments: Any, **options: Any) -> Any:
        opened.append(real(self, *arguments, **options))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoLlama3, "open_session", spied)
        given = ["--system", HELPFUL, "--add-system-prompt"]
        status, _, _ = run(
            capsys, "watch", CLIP, "-m", folder, "-q", QUESTION, "--max-new-tokens", 2, "--speed", 50, *given
        )
    assert status == 0
    begun = tiny.prompt(messages(("user", ""), system=HELPFUL), []).ids.tolist()
    end = begun.index(Tokenizer.of(tiny.bundle).added["<|im_end|>"])
    assert opened[0].prompt(QUESTION).ids.tolist()[: end + 1] == begun[: end + 1]
