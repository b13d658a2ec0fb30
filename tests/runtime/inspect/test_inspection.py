"""Inspection: counts are those of a real call, the picture opens, the page is whole, closed and cannot be broken."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.cli.inspect import report_paths
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.errors import ConfigError, MediaError
from vl3edge.runtime.inspect.charts import DARK, LIGHT, timeline
from vl3edge.runtime.inspect.frames import choose_shown, dimmed, veil
from vl3edge.runtime.inspect.inspection import Inspection, Speed, inspect
from vl3edge.runtime.inspect.page import page
from vl3edge.runtime.inspect.picture import DPI, page_charts, picture
from vl3edge.runtime.inspect.text import facts, verdict
from vl3edge.runtime.prompt.chat_template import DESCRIBE, question_about
from vl3edge.runtime.vision.difffp import keep_mask

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
SPEED = Speed(bandwidth=1e10, flops=1e11)
HOSTILE = "a<script>alert(1)<\\script>&\"'$x^$\u202e{{ 7 * 7 }}.mp4"


@pytest.fixture(scope="module")
def model() -> VideoLlama3:
    return VideoLlama3.load(num_threads=1)


def seen_of(model: VideoLlama3, media: object = CLIP, **options: object) -> Inspection:
    return inspect(model.bundle, media, speed=SPEED, **options)  # type: ignore[arg-type]


PRUNINGS = {
    "released": PruningConfig(),
    "auto": PruningConfig("auto"),
    "the paper's": PruningConfig(25.5),
    "off": PruningConfig(enabled=False),
}


@pytest.mark.parametrize("name", PRUNINGS)
def test_counts_are_those_of_a_real_call(name: str, model: VideoLlama3) -> None:
    sampling = SamplingPlan(fps=2, max_frames=12)
    clip = model.encode(CLIP, sampling, PRUNINGS[name])
    seen = seen_of(model, sampling=sampling, pruning=PRUNINGS[name])
    assert seen.timestamps_s == clip.timestamps_s
    assert seen.size == (clip.height_px, clip.width_px)
    assert seen.tokens_per_frame == clip.tokens_per_frame
    assert seen.threshold == clip.threshold
    assert seen.keep.size == clip.num_tokens + clip.num_pruned
    assert seen.pruned.prompt_tokens == len(model.prompt(question_about([clip], DESCRIBE["video"]), [clip]))
    whole = model.encode(CLIP, sampling, PruningConfig(enabled=False))
    assert seen.whole.prompt_tokens == len(model.prompt(question_about([whole], DESCRIBE["video"]), [whole]))


GIVEN = {
    "budget": PruningConfig(max_visual_tokens=60),
    "share": PruningConfig(keep_ratio=0.3),
    "ample": PruningConfig(max_visual_tokens=10_000),
    "of all": PruningConfig(enabled=False, max_visual_tokens=40),
    "least": PruningConfig("auto", keep_ratio=0.001),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_the_decoder_is_given_is_counted(name: str, model: VideoLlama3) -> None:
    """Which tokens these are the encoder tells; the picture shows what DiffFP leaves."""
    pruning = GIVEN[name]
    clip, seen = model.encode(CLIP, pruning=pruning), seen_of(model, pruning=pruning)
    left = model.encode(CLIP, pruning=replace(pruning, max_visual_tokens=None, keep_ratio=None))
    assert seen.tokens_per_frame == left.tokens_per_frame
    assert seen.pruned.visual_tokens == clip.num_tokens
    assert seen.pruned.prompt_tokens == len(model.prompt(question_about([clip], DESCRIBE["video"]), [clip]))
    assert seen.drops == left.num_tokens - clip.num_tokens
    words = f"the {clip.num_tokens} most unique for the decoder"
    assert (words in " ".join(facts(seen))) == (name != "ample")
    assert "not pruned" not in facts(seen)
    assert words in page(seen, {}, {}) or name == "ample"
    assert len(seen.costs) == 2


def test_an_image_is_counted_as_it_is_asked_about(model: VideoLlama3, media: Path) -> None:
    question = "What is written there?"
    clip = model.encode(media / "cat.jpg")
    seen = seen_of(model, media / "cat.jpg", question=question)
    assert seen.tokens_per_frame == clip.tokens_per_frame
    assert (seen.threshold, seen.pruned) == (None, seen.whole)
    assert seen.pruned.prompt_tokens == len(model.prompt(question_about([clip], question), [clip]))


def test_the_curve_is_what_pruning_keeps(model: VideoLlama3) -> None:
    seen = seen_of(model)
    thresholds = [0.0, 0.05, 0.1, 1.0, 7.3, 25.5, 300.0, *np.unique(seen.differences[1:])[::20]]
    spec = model.bundle.manifest
    merge, std = spec.processor.video.merge_size, spec.processor.std
    kept = [keep_mask(seen.frames, spec.vision.patch_size, merge, std, t).sum() for t in thresholds]
    assert seen.kept_with(thresholds).tolist() == kept


def test_budget_that_no_choice_meets_is_refused_as_by_encoding(model: VideoLlama3) -> None:
    pruning = PruningConfig(max_visual_tokens=3)
    with pytest.raises(MediaError) as encoding:
        model.encode(CLIP, pruning=pruning)
    with pytest.raises(MediaError) as inspecting:
        seen_of(model, pruning=pruning)
    assert str(inspecting.value) == str(encoding.value)


def test_a_prompt_beyond_the_context_is_told(model: VideoLlama3) -> None:
    manifest = model.bundle.manifest
    small = replace(model.bundle, manifest=replace(manifest, text=replace(manifest.text, max_position_embeddings=150)))
    seen = inspect(small, CLIP, None, PruningConfig(), generation=GenerationConfig(max_new_tokens=8), speed=SPEED)
    assert seen.pruned.answer_tokens == 0
    assert "the model's context is 150: use fewer frames" in (verdict(seen) or "")
    assert "It does not fit" in page(seen, {}, {})
    fits = inspect(small, CLIP, None, PruningConfig(25.5), generation=GenerationConfig(max_new_tokens=99), speed=SPEED)
    assert fits.pruned.prompt_tokens + fits.pruned.answer_tokens == 150
    assert verdict(fits) is None


def test_floors_scale_with_the_machine(model: VideoLlama3) -> None:
    slow, fast = (inspect(model.bundle, CLIP, speed=Speed(b, f)) for b, f in ((1e9, 1e9), (1e10, 1e10)))
    assert slow.pruned.floor_s == pytest.approx(10 * fast.pruned.floor_s)
    assert slow.pruned.floors_s["prefill"] < slow.whole.floors_s["prefill"]
    assert slow.pruned.floors_s["vision encoder"] == slow.whole.floors_s["vision encoder"]


def test_pictures_open(model: VideoLlama3, media: Path) -> None:
    for source, rows in ((CLIP, 1), (media / "cat.jpg", 0)):
        with Image.open(io.BytesIO(picture(seen_of(model, source), 10**9))) as image:
            image.load()
            assert image.format == "PNG"
            assert image.width == 13 * DPI
            assert image.height > (8 if rows else 4) * DPI
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50


def test_many_frames_stay_few_on_the_picture() -> None:
    assert choose_shown(180, 14)[0] == 0
    assert choose_shown(180, 14)[-1] == 179
    assert len(choose_shown(180, 14)) == 14
    assert choose_shown(5, 14) == [0, 1, 2, 3, 4]
    assert choose_shown(1, 14) == [0]


def test_few_upright_frames_do_not_fill_pages(model: VideoLlama3) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 320, 120, 3), dtype=np.uint8)
    height = Image.open(io.BytesIO(picture(seen_of(model, frames)))).height
    assert height < 10.5 * DPI


def test_the_time_line_begins_with_the_first_frame(model: VideoLlama3) -> None:
    """And every bar with its frame: nothing is shown before it."""
    seen = seen_of(model)
    axes = Figure().add_subplot()
    timeline(axes, seen, LIGHT)
    assert axes.get_xlim() == (0.0, 9.0)
    starts = [bar.get_x() for bar in axes.containers[1]]
    assert starts == pytest.approx(list(seen.timestamps_s))
    assert min(axes.get_xticks()) >= 0


def test_dropped_blocks_alone_are_dimmed_and_veiled() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    keep = np.array([True, False, True, False, True, False])
    result = dimmed(frame, keep, 2, (255, 255, 255))
    mask = keep.reshape(2, 3).repeat(2, 0).repeat(2, 1)
    assert np.array_equal(result[mask], frame[mask])
    assert result[~mask].min() >= 0.75 * 255
    assert np.ptp(result[~mask], axis=-1).max() == 0
    with Image.open(io.BytesIO(veil(keep, (2, 3)))) as image:
        assert np.array_equal(np.asarray(image)[..., 3] == 0, keep.reshape(2, 3))


class Page(HTMLParser):
    """Checks that tags are balanced; collects tags, their references and the text."""

    VOID = frozenset({"meta", "img", "source", "link", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_needs_nothing_else(model: VideoLlama3) -> None:
    seen = seen_of(model)
    charts = [page_charts(seen, theme) for theme in (LIGHT, DARK)]
    text = page(seen, *charts)
    parsed = Page(text)
    assert parsed.open == []
    assert parsed.tags.count("figure") == seen.num_frames
    assert parsed.tags.count("picture") == len(charts[0]) == 5
    assert all(reference.startswith("data:image/") for reference in parsed.references)
    assert not re.search(r"""https?://|["'(=]\s*//|@import|<script""", text)
    for words in (f"{seen.pruned.visual_tokens} of {seen.keep.size}", f"{seen.whole.prompt_tokens + 256:,}"):
        assert words in parsed.text
    assert all(chart.lstrip().startswith(b"<?xml") for chart in charts[0].values())


def test_a_hostile_file_name_stays_a_name(model: VideoLlama3, tmp_path: Path) -> None:
    path = tmp_path / HOSTILE
    shutil.copy(CLIP, path)
    seen = seen_of(model, path, question="<img src=x onerror=alert(2)>")
    text = page(seen, *[page_charts(seen, theme) for theme in (LIGHT, DARK)])
    parsed = Page(text)
    assert HOSTILE.replace("\u202e", "") in parsed.text
    assert "\u202e" not in text
    assert "script" not in parsed.tags
    assert "<img src=x onerror=alert(2)>" in parsed.text
    assert all(reference.startswith("data:image/") for reference in parsed.references)
    picture(seen)  # $…$ is no formula


def test_the_command_writes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(CLIP), "-o", str(tmp_path / "v1.2"), "--max-frames", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / "v1.2.png"), str(tmp_path / "v1.2.html")]
    assert all(Path(line).stat().st_size > 10_000 for line in out.splitlines())
    assert "3 frames sampled" in err
    assert {path.name for path in tmp_path.iterdir()} == {"v1.2.png", "v1.2.html"}


def test_the_picture_does_not_overwrite_the_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(path)
    before = path.read_bytes()
    assert main(["inspect", str(path), "-o", str(tmp_path / "a")]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_an_ending_of_the_report_is_not_doubled() -> None:
    assert report_paths(Path("a/b.html")) == (Path("a/b.png"), Path("a/b.html"))
    assert report_paths(Path("b.v2.PNG")) == (Path("b.v2.png"), Path("b.v2.html"))
    with pytest.raises(ConfigError, match="file name for the report"):
        report_paths(Path("/"))


def test_missing_matplotlib_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "vl3edge.runtime.cli.inspect.find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    assert main(["inspect", str(CLIP), "-o", str(tmp_path / "r")]) == 2
    _, err = capsys.readouterr()
    assert err.splitlines() == [
        "vl3edge: error: inspect draws with matplotlib, which is not installed: pip install 'vl3edge[inspect]'"
    ]
    assert list(tmp_path.iterdir()) == []


def test_inspecting_loads_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a graph was loaded")

    monkeypatch.setattr("vl3edge.runtime.backends.onnxruntime.Backend.session", refuse)
    monkeypatch.setattr("vl3edge.runtime.backends.onnxruntime.Backend.graph", refuse)
    assert inspect(open_bundle(DEMO_BUNDLE), CLIP, speed=SPEED).num_frames == 9
