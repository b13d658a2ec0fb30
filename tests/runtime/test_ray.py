"""The callable for Ray Data: alone, and in a local Ray whose workers are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vl3edge.runtime import GenerationConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.captions.parquet import record_table
from vl3edge.runtime.errors import ConfigError
from vl3edge.runtime.media.limits import MediaLimits
from vl3edge.runtime.ray import COLUMNS, Captioner

CLIP = Path(__file__).parents[1] / "fixtures" / "demo_clip.mp4"
SAMPLING = SamplingPlan(max_frames=2)
GENERATION = GenerationConfig(max_new_tokens=6)
OPTIONS: dict[str, Any] = {"backend": "cpu", "sampling": SAMPLING, "generation": GENERATION}


@pytest.fixture
def captioner() -> Captioner:
    pytest.importorskip("pyarrow")
    return Captioner(num_threads=1, limits=MediaLimits(), **OPTIONS)


def write_clips(folder: Path, count: int) -> list[str]:
    """Names of pictures of one colour each, and of one file that is none."""
    folder.mkdir()
    for number in range(count):
        picture = np.full((56, 56, 3), 255 * number // count, np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
    (folder / "0.png").write_bytes(b"not a picture")
    return [str(folder / f"{number}.png") for number in range(count)]


def test_one_row_for_each_clip_in_order_with_the_errors(captioner: Captioner, tmp_path: Path) -> None:
    broken, picture = write_clips(tmp_path / "clips", 2)
    media = [str(CLIP), broken, str(tmp_path / "missing.mp4"), picture, str(CLIP)]
    table = captioner({"media": np.array(media)})
    assert tuple(table.column_names) == COLUMNS
    rows = table.to_pylist()
    assert [row["media"] for row in rows] == media
    assert [row["error"] is None for row in rows] == [True, False, False, True, True]
    assert "no such file" in rows[2]["error"]
    assert rows[1]["caption"] is None
    model = VideoLlama3.load(backend="cpu", num_threads=1)
    clip = model.encode(CLIP, SAMPLING)
    answer = model.ask(clip, "Describe this video.", GENERATION)
    expected = {
        "media": str(CLIP),
        "caption": answer.text,
        "finish_reason": answer.finish_reason,
        "num_frames": 2,
        "num_tokens": clip.num_tokens,
        "data": None,
        "score": None,
        "error": None,
    }
    for row in (rows[0], rows[4]):
        assert row.pop("seconds") > 0
        assert row == expected


def test_forms_of_answers_have_their_columns() -> None:
    """The value of JSON answers, as JSON text, and the score of the best of several."""
    pytest.importorskip("pyarrow")
    pytest.importorskip("llguidance")
    config = GenerationConfig(json_schema={"enum": ["red", "blue"]}, best_of=2, temperature=0.5, seed=3)
    options = OPTIONS | {"generation": config}
    (row,) = Captioner(num_threads=1, limits=MediaLimits(), **options)({"media": [str(CLIP)]}).to_pylist()
    model = VideoLlama3.load(backend="cpu", num_threads=1)
    answer = model.ask(model.encode(CLIP, SAMPLING), "Describe this video.", config)
    assert json.loads(row["data"]) == answer.json() == json.loads(row["caption"])
    assert row["score"] == pytest.approx(answer.stats.score)


def test_what_media_are_can_be_said(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    frames = [Image.fromarray(np.full((56, 56, 3), level, np.uint8)) for level in (0, 120, 250)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=1000)
    frames[0].save(tmp_path / "still.png")
    media = [str(tmp_path / name) for name in ("moving.gif", "still.png")]
    model = VideoLlama3.load(backend="cpu", num_threads=1)
    counts = {}
    for kind in (None, "image", "video"):
        captioner = Captioner(num_threads=1, limits=MediaLimits(), kind=kind, **OPTIONS)
        rows = captioner({"media": media}).to_pylist()
        counts[kind] = [row["num_frames"] for row in rows]
        for row in rows:
            clip = model.encode(row["media"], SAMPLING, kind=kind)
            question = f"Describe this {clip.kind}."
            assert (row["num_tokens"], row["caption"]) == (
                clip.num_tokens,
                model.ask(clip, question, GENERATION).text,
            )
    assert counts == {None: [2, 1], "image": [1, 1], "video": [2, 1]}


def test_a_kind_that_is_none_fails_the_job() -> None:
    with pytest.raises(ConfigError, match="kind"):
        Captioner(num_threads=1, limits=MediaLimits(), backend="cpu", kind="film")


def test_tables_of_good_and_of_bad_clips_have_the_same_types(captioner: Captioner) -> None:
    good, bad, none = (
        captioner({"media": [str(CLIP)]}),
        captioner({"media": ["missing.mp4"]}),
        record_table((), COLUMNS),
    )
    assert good.schema == bad.schema == none.schema
    assert (good["error"].null_count, bad["caption"].null_count) == (1, 1)


def test_it_takes_the_threads_that_ray_gives_an_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, MediaLimits, str]] = []

    def load(
        bundle: None, backend: str, num_threads: int, memory_limit: None, limits: MediaLimits, decoder: str
    ) -> None:
        asked.append((num_threads, limits, decoder))

    monkeypatch.setattr(VideoLlama3, "load", load)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    Captioner()
    Captioner(num_threads=2, limits=MediaLimits(max_pixels=5), decoder="kernels")
    monkeypatch.delenv("OMP_NUM_THREADS")
    Captioner()
    isolated = MediaLimits(isolate=True)
    assert asked == [
        (3, isolated, "auto"),
        (2, MediaLimits(max_pixels=5), "kernels"),
        (0, isolated, "auto"),
    ]


def test_a_bad_option_fails_the_job_and_not_its_clips() -> None:
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        Captioner(num_threads=1, limits=MediaLimits(), backend="cpu", batch=0)


def test_the_module_loads_no_ray() -> None:
    code = "import sys, vl3edge.runtime.ray; print(sorted({'ray', 'pyarrow', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 1024**2)
    yield ray
    ray.shutdown()


def dying_captioner(folder: Path) -> type:
    """A Captioner whose process dies by SIGKILL at its second batch, and another's after its third, each once.

    In `folder` it leaves a file for each batch begun, named after the process. It is made in a function so that Ray
    sends it to its workers by value, who have no such module.
    """
    log = str(folder)

    class DyingCaptioner(Captioner):
        def __call__(self, batch: Any) -> Any:
            names = [str(name) for name in batch["media"]]
            begun = len(os.listdir(log))
            with open(f"{log}/{begun:03}-{os.getpid()}", "x", encoding="utf-8") as file:
                json.dump(names, file)
            if begun == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            table = super().__call__(batch)
            if begun == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return table

    return DyingCaptioner


@pytest.mark.long
@pytest.mark.parametrize("form", ["json", "parquet"])
def test_killed_workers_lose_no_clip_and_write_none_twice(ray: Any, tmp_path: Path, form: str) -> None:
    media = write_clips(tmp_path / "clips", 12)
    log = tmp_path / "log"
    log.mkdir()
    captions = ray.data.from_items([{"media": name} for name in media], override_num_blocks=6).map_batches(
        dying_captioner(log),
        fn_constructor_kwargs=OPTIONS,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
        batch_size=2,
    )
    out = tmp_path / "captions"
    captions.write_json(str(out)) if form == "json" else captions.write_parquet(str(out))
    if form == "json":
        rows = [json.loads(line) for path in out.iterdir() for line in path.read_text().splitlines()]
    else:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(out).to_pylist()
    assert sorted(row["media"] for row in rows) == sorted(media)
    assert [row["media"] for row in rows if row["error"] is not None] == [media[0]]
    attempts = [json.loads(path.read_text()) for path in log.iterdir()]
    assert len(attempts) >= 8  # six batches, and two that were begun again
    assert len({path.name.split("-")[1] for path in log.iterdir()}) == 4  # two workers, and two in their places
