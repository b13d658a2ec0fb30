"""Steps that run before their token has been read: the answers of a decoder that waits, token for token.

The stand-in for the device is as late as a device may be: what comes down is there when it has been waited for and not
before, and what goes up must not change until then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from fake_driver import CapturingDevice, FakeDriver
from gpu_bundles import gpu_bundle
from kernel_decoders import ids_of, table_of

from vl3edge.runtime import GenerationConfig
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, open_bundle
from vl3edge.runtime.bundle.kernel_set import read_kernel_set
from vl3edge.runtime.decode.batch import BatchGenerator, BatchRequest
from vl3edge.runtime.decode.generate import Generator, join
from vl3edge.runtime.kernels import cuda_launcher
from vl3edge.runtime.kernels.decoder import KernelDecoder
from vl3edge.runtime.kernels.select import KernelDecoders
from vl3edge.runtime.prompt.splice import EmbeddingTable, SplicedPrompt
from vl3edge.runtime.prompt.tokenizer import Tokenizer

NO_END = (10**6,)
JUNK = 0x77


class LateDevice(CapturingDevice):
    """waits: how often the host waited for everything."""

    def __init__(self) -> None:
        super().__init__()
        self._coming: list[tuple[int, np.ndarray, np.ndarray]] = []  # place in the stream, target, content
        self._going: list[tuple[int, np.ndarray, np.ndarray]] = []  # place in the stream, source, content
        self._place = 0
        self._marks: dict[int, int] = {}
        self.waits = 0

    def upload(self, address: int, source: np.ndarray) -> None:
        super().upload(address, source)
        if any(begin <= source.ctypes.data < begin + pin.nbytes for begin, pin in self.pins.items()):
            self._place += 1
            self._going.append((self._place, source, source.copy()))

    def download(self, target: np.ndarray, address: int) -> None:
        self._check_sent([each for each in self._going if np.shares_memory(each[1], target)])  # the stream's order
        self._going = [each for each in self._going if not np.shares_memory(each[1], target)]
        super().download(target, address)
        self._place += 1
        self._coming.append((self._place, target, target.copy()))
        target.view(np.uint8)[...] = JUNK

    def synchronize(self) -> None:
        super().synchronize()
        self.waits += 1
        self._settle(self._place)

    def record(self, event: int) -> None:
        super().record(event)
        self._marks[event] = self._place

    def wait(self, event: int) -> None:
        super().wait(event)
        self._settle(self._marks[event])

    def _settle(self, place: int) -> None:
        for _, target, content in self._done(self._coming, place):
            target[...] = content
        self._check_sent(self._done(self._going, place))

    @staticmethod
    def _check_sent(sent: list[tuple[int, np.ndarray, np.ndarray]]) -> None:
        for _, source, content in sent:
            assert np.array_equal(source, content), "what goes up changed before it had arrived"

    @staticmethod
    def _done(
        waiting: list[tuple[int, np.ndarray, np.ndarray]], place: int
    ) -> list[tuple[int, np.ndarray, np.ndarray]]:
        done = [each for each in waiting if each[0] <= place]
        waiting[:] = [each for each in waiting if each[0] > place]
        return done


class Rig:
    """A decoder on the late device; ahead: whether steps run ahead."""

    def __init__(self, exported: tuple[Bundle, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
        bundle, functions = exported
        self.text = bundle.manifest.text
        kernels = {spec.name: spec for spec in read_kernel_set(bundle).manifest.kernels}
        self.device = LateDevice()
        self.driver = FakeDriver(self.device, kernels, functions, "cubin-8.9")
        monkeypatch.setattr(cuda_launcher, "_import_driver", lambda: self.driver)
        decoders = KernelDecoders(Backend("rtx", (), "", device=self.device), bundle)
        decoders._network.launcher.captures = ahead  # type: ignore[misc]
        decoder = decoders.make()
        assert isinstance(decoder, KernelDecoder)
        self.decoder = decoder
        self.table: EmbeddingTable = table_of(bundle.folder, self.text)

    @property
    def steps(self) -> int:
        return Counter(self.driver.launches)["embed"]

    def generator(self, eos: tuple[int, ...] = NO_END) -> Generator:
        return Generator(self.decoder, self.table, TOKENIZER, eos)

    def prompt(self, count: int, seed: int = 0) -> SplicedPrompt:
        ids = ids_of(self.text, count, seed)
        return SplicedPrompt(ids, ids, ())

    def say(self, new_tokens: int, eos: tuple[int, ...] = NO_END, count: int = 5, **settings: Any) -> tuple[int, ...]:
        config = GenerationConfig(max_new_tokens=new_tokens, **settings)
        return join(self.generator(eos).stream(self.prompt(count), config)).token_ids


TOKENIZER = Tokenizer.of(open_bundle(DEMO_BUNDLE))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Any]]:
    return gpu_bundle(tmp_path_factory.mktemp("ahead"))


@pytest.fixture
def rigs(exported: tuple[Bundle, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> tuple[Rig, Rig]:
    """One that waits and one that runs ahead."""
    return Rig(exported, monkeypatch, False), Rig(exported, monkeypatch, True)


def test_answers_of_any_length_end_anywhere(rigs: tuple[Rig, Rig]) -> None:
    waiting, ahead = rigs
    whole = waiting.say(4)
    assert ahead.say(4) == whole
    assert len(whole) == 4
    assert ahead.say(1) == whole[:1]
    for place in range(4):  # an end token from the first on
        if whole[place] not in whole[:place]:
            assert ahead.say(4, (whole[place],)) == waiting.say(4, (whole[place],)) == whole[:place]
    # One step more for each answer that went on after its first token, of which nothing is left in the books.
    assert ahead.decoder.length == waiting.decoder.length
    assert waiting.steps <= ahead.steps <= waiting.steps + 5


def test_the_host_waits_for_nothing_but_the_token_before(rigs: tuple[Rig, Rig]) -> None:
    _, ahead = rigs
    decoder, table = ahead.decoder, ahead.table
    decoder.prefill(table.rows(ids_of(ahead.text, 4)))
    decoder.advance(np.array([decoder.token]), table)
    waits, before = ahead.device.waits, ahead.steps
    for number in range(4):
        decoder.advance(np.array([decoder.token]), table)
        assert ahead.steps == before + number + 1
    assert ahead.device.waits == waits


def test_logits_are_those_of_the_token_that_was_read(rigs: tuple[Rig, Rig]) -> None:
    """Though the step after has run by then; and who looks at them, or draws, has no step run ahead."""
    for rig in rigs:
        rig.decoder.prefill(rig.table.rows(ids_of(rig.text, 4)))
    for look in (False, False, True, False):
        ids = [np.array([rig.decoder.token]) for rig in rigs]
        assert ids[0] == ids[1]
        for rig in rigs:
            rig.decoder.advance(ids[0], rig.table)
        if look:
            np.testing.assert_array_equal(rigs[1].decoder.logits, rigs[0].decoder.logits)
    settings: list[dict[str, Any]] = [{"repetition_penalty": 1.5}, {"temperature": 1.0, "seed": 3}]
    for each in settings:
        before = [rig.steps for rig in rigs]
        assert len({rig.say(3, **each) for rig in rigs}) == 1
        assert len({rig.steps - count for rig, count in zip(rigs, before, strict=True)}) == 1


def test_something_else_is_appended(rigs: tuple[Rig, Rig]) -> None:
    """As after an interruption: another token, another prompt, going back, moving up, a larger cache."""
    for rig in rigs:
        decoder, table, text = rig.decoder, rig.table, rig.text
        said: list[Any] = []

        def greedy(decoder: KernelDecoder = decoder, table: EmbeddingTable = table, said: list[Any] = said) -> None:
            for _ in range(2):
                decoder.advance(np.array([decoder.token]), table)
            said.append((decoder.token, decoder.length))

        decoder.prefill(table.rows(ids_of(text, 6)))
        greedy()
        decoder.advance(ids_of(text, 1, 9), table)
        greedy()
        decoder.rewind(decoder.length - 1)  # without the token that the step ahead begins with
        decoder.advance(ids_of(text, 1, 8), table)
        greedy()
        decoder.prefill(table.rows(ids_of(text, 3, 7)))
        greedy()
        decoder.discard(1, 2)
        decoder.prefill(table.rows(ids_of(text, 2, 6)))
        greedy()
        decoder.resize(1, 512)
        greedy()
        decoder.step(table.rows(ids_of(text, 1, 5)))
        greedy()
        decoder.wipe()
        decoder.prefill(table.rows(ids_of(text, 2, 4)))
        greedy()
        rig.said = said  # type: ignore[attr-defined]
    assert rigs[1].said == rigs[0].said  # type: ignore[attr-defined]


def test_a_full_cache_is_not_run_beyond(rigs: tuple[Rig, Rig]) -> None:
    for rig in rigs:
        decoder = rig.decoder
        decoder.resize(1, 8)
        decoder.prefill(rig.table.rows(ids_of(rig.text, 5)))
        for _ in range(3):
            decoder.advance(np.array([decoder.token]), rig.table)
    assert rigs[1].steps == rigs[0].steps
    assert rigs[1].decoder.token == rigs[0].decoder.token
    assert rigs[1].decoder.capacity == 8
    for rig in rigs:  # it grows as one that waits does
        rig.decoder.advance(np.array([rig.decoder.token]), rig.table)
    assert rigs[1].decoder.token == rigs[0].decoder.token


def test_an_answer_that_is_left_or_interrupted(rigs: tuple[Rig, Rig]) -> None:
    said: list[list[int]] = []
    for rig in rigs:
        generator = rig.generator()
        config = GenerationConfig(max_new_tokens=3)
        left = generator.tokens(rig.prompt(5), config)
        found = [next(left), next(left), next(left)]
        left.close()  # a step is under way
        same = SplicedPrompt(np.append(rig.prompt(5).ids, found[:2]), np.append(rig.prompt(5).keys, found[:2]), ())
        assert generator.reusable(same) == len(same) - 1  # what was said is in the cache, and no more
        found += [*generator.tokens(same, config)][:2]
        found += generator.tokens(rig.prompt(4, 1), config)
        said.append(found)
    assert said[1] == said[0]
    assert said[0][2] == said[0][3]


def test_a_chunk_is_seen_as_soon_as_its_token_is_read(rigs: tuple[Rig, Rig]) -> None:
    """When token n is shown, n more steps than that have been launched at most one ahead."""
    ahead = rigs[1]
    tokens: Iterator[int] = ahead.generator().tokens(ahead.prompt(5), GenerationConfig(max_new_tokens=4))
    assert ahead.steps == 0
    seen = [ahead.steps for _ in tokens]
    assert seen == [0, 2, 3, 4]  # the first is the prompt's own


@pytest.mark.parametrize(("rows", "lengths"), [(2, (2, 5, 4)), (4, (4, 4, 3, 4))])
def test_batches(rigs: tuple[Rig, Rig], rows: int, lengths: tuple[int, ...]) -> None:
    """Which end at different times, so that rows are refilled and move."""
    answers: list[dict[int, tuple[int, ...]]] = []
    for rig in rigs:
        generator = BatchGenerator(rig.decoder, rig.table, TOKENIZER, NO_END, rows, 1 << 40)
        requests = [
            BatchRequest(number, rig.prompt(3 + number, number), GenerationConfig(max_new_tokens=length))
            for number, length in enumerate(lengths)
        ]
        answers.append({key: answer.token_ids for key, answer in generator.answers(requests)})  # type: ignore[union-attr]
    assert answers[1] == answers[0]
    assert tuple(len(answers[0][number]) for number in range(len(lengths))) == lengths
    assert rigs[1].steps > rigs[0].steps  # some ran ahead in vain
