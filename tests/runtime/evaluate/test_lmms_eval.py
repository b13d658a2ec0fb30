"""The plugin for lmms-eval against a stub of its interface: `lmms`, `register_model` and requests as it makes them."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vl3edge.runtime.config import GenerationConfig
from vl3edge.runtime.model import VideoLlama3

ROOT = Path(__file__).resolve().parents[3]
CLIP = str(ROOT / "tests" / "fixtures" / "demo_clip.mp4")
SETTINGS = {"max_new_tokens": 24, "do_sample": False, "until": ["\n\n"]}


class StubHook:
    def __init__(self) -> None:
        self.kept: list[tuple[str, Any, str]] = []

    def add_partial(self, name: str, request: Any, answer: str) -> None:
        self.kept.append((name, request, answer))


class StubLmms:
    """What lmms-eval's base class sets, and the three methods that it wants."""

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = StubHook()
        self.task_dict: dict[str, Any] = {}


@dataclass
class Request:
    args: tuple[Any, ...]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The plugin, found as lmms-eval finds it: PACKAGE.models says which module and class a model's name is."""
    registered: dict[str, type] = {}

    def register_model(name: str) -> Any:
        return lambda kind: registered.setdefault(name, kind)

    for name, content in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": StubLmms},
        "lmms_eval.api.registry": {"register_model": register_model},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    models = importlib.import_module("lmms_eval_vl3edge.models")
    (name, kind), *_ = models.AVAILABLE_MODELS.items()
    found = getattr(importlib.import_module(f"lmms_eval_vl3edge.models.{name}"), kind)
    assert registered == {name: found}
    yield found
    for loaded in [name for name in sys.modules if name.startswith("lmms_eval_vl3edge")]:
        del sys.modules[loaded]


def request(text: str, number: int, settings: dict[str, Any] = SETTINGS) -> Request:
    return Request((text, settings, lambda document: document["visuals"], number, "task", "test"))


def test_answers_are_the_models_in_the_requests_order(plugin: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8)
    picture = Image.fromarray(pixels)
    documents = [
        {"visuals": [CLIP]},
        {"visuals": [picture]},
        {"visuals": [picture, picture]},
        {"visuals": ["missing.mp4"]},
    ]
    model = plugin(batch_size="2", device="cpu", max_batch_size=None)
    model.task_dict = {"task": {"test": documents}}
    asked = [
        request("What colour is it?", 0),
        request("<image>\nDescribe this image.", 1),
        request("Is <image> like <image>?", 2),
        request("What?", 3),
        request("Does it stop?", 0, {"max_new_tokens": 2}),
    ]
    answers = model.generate_until(asked)
    ours = VideoLlama3.load()
    greedy = GenerationConfig(max_new_tokens=24, temperature=0.0)
    clip = ours.encode(CLIP)
    assert answers[0] == ours.ask(clip, "What colour is it?", greedy).text
    assert answers[1] == ours.ask(ours.encode(picture), "Describe this image.", greedy).text
    parts: list[dict[str, Any]] = [{"type": "text", "text": "Is "}, {"type": "image", "image": picture}]
    parts += [{"type": "text", "text": " like "}, {"type": "image", "image": picture}, {"type": "text", "text": "?"}]
    assert answers[2] == ours.generate([{"role": "user", "content": parts}], greedy).text.strip()
    assert answers[3] == ""
    assert answers[4] == ours.ask(clip, "Does it stop?", GenerationConfig(max_new_tokens=2, temperature=0.0)).text
    assert [kept[2] for kept in model.cache_hook.kept] == answers


def test_answers_end_at_the_tasks_stops(plugin: Any) -> None:
    model = plugin()
    model.task_dict = {"task": {"test": [{"visuals": [CLIP]}]}}
    (whole,) = model.generate_until([request("Describe this video.", 0, {})])
    (cut,) = model.generate_until([request("Describe this video.", 0, {"until": [" on ", "zzz"]})])
    assert " on " in whole
    assert cut == whole.split(" on ")[0]


def test_what_it_does_not_do_is_said(plugin: Any) -> None:
    model = plugin()
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="one round"):
        model.generate_until_multi_round([])
