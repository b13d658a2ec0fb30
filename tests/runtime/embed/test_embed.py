"""Files of embeddings: what they hold, that they survive a stop, and that a picture finds its moment in them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from commands import run
from extras import needs_parquet
from PIL import Image, ImageDraw

from vl3edge.runtime import ConfigError, FrameFeatures, SamplingPlan, VideoLlama3, VideoLlama3Encoder
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.embed import clips as embed_clips
from vl3edge.runtime.embed.formats import read_embeddings
from vl3edge.runtime.embed.rows import EmbeddedFrame, EmbeddingBatch
from vl3edge.runtime.embed.search import Query

SUFFIXES = ["npy", pytest.param("parquet", marks=needs_parquet)]
COLOURS = ("red", "green", "blue", "white", "yellow", "purple")


def scene(number: int, second: float, size: int = 112) -> Image.Image:
    """A shape of its own colour on its own ground, which moves a little."""
    image = Image.new("RGB", (size, size), (30 * (number % 3), 20, 40 + 25 * (number % 4)))
    draw, at = ImageDraw.Draw(image), size // 8 + round(second * size / 40)
    box = (at, size // 4, at + size // 2, size * 3 // 4)
    shape = (draw.ellipse, draw.rectangle, draw.polygon)[number % 3]
    points: Any = (
        box if number % 3 < 2 else [(at, size * 3 // 4), (at + size // 4, size // 4), (at + size // 2, size * 3 // 4)]
    )
    shape(points, fill=COLOURS[number % len(COLOURS)])
    return image


def film(path: Path, scenes: list[int], seconds: int = 4, size: int = 112) -> Path:
    """Scenes of some seconds each, at 4 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"preset": "veryfast", "crf": "20"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        number = 0
        for each in scenes:
            for tick in range(4 * seconds):
                frame = av.VideoFrame.from_image(scene(each, tick / 4, size))
                frame.pts, frame.time_base = number, Fraction(1, 4)
                container.mux(stream.encode(frame))
                number += 1
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    film(folder / "a.mp4", [0, 1, 2])
    film(folder / "b.mp4", [3, 4], size=140)
    scene(5, 1.0).save(folder / "c.png")
    return folder


@pytest.fixture(scope="module")
def encoder() -> VideoLlama3Encoder:
    return VideoLlama3Encoder.load(backend="cpu", num_threads=1)


def rows_of(path: Path) -> tuple[list[EmbeddedFrame], np.ndarray]:
    batches = list(read_embeddings(path))
    return [row for batch in batches for row in batch.rows], np.concatenate([batch.vectors for batch in batches])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("tokens", [False, True])
def test_the_file_holds_every_frame(
    films: Path,
    encoder: VideoLlama3Encoder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    tokens: bool,
) -> None:
    path = tmp_path / f"films.{suffix}"
    status, _, err = run(capsys, "embed", films, "-o", path, "--threads", 1, *["--tokens"] * tokens)
    assert status == 0, err
    rows, vectors = rows_of(path)
    clips = [films / name for name in ("a.mp4", "b.mp4", "c.png")]
    found = [encoder.features(clip, tokens=True) for clip in clips]
    assert [row.media for row in rows] == [str(c) for c, f in zip(clips, found, strict=True) for _ in f.timestamps_s]
    assert [row.time_s for row in rows] == [*range(12), *range(8), 0.0]
    assert [row.frame for row in rows] == [*range(12), *range(8), 0]
    assert {row.kind for row in rows} == {"video", "image"}
    wanted = [f.tokens.reshape(-1, f.tokens.shape[-1]) if tokens else f.vectors for f in found if f.tokens is not None]
    np.testing.assert_array_equal(vectors, np.concatenate(wanted))
    assert sum(row.size for row in rows) == len(vectors)
    if tokens:
        assert found[1].tokens is not None
        assert {(row.rows, row.columns) for row in rows if row.media.endswith("b.mp4")} == {found[1].tokens.shape[1:3]}
    else:
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert not list(tmp_path.glob("*.part*"))


def test_what_numpy_and_a_line_of_json_read(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "films.npy"
    assert run(capsys, "embed", films / "a.mp4", "-o", path, "--tokens", "--max-frames", 2, "--threads", 1)[0] == 0
    array = np.load(path)
    lines = (tmp_path / "films.npy.jsonl").read_text(encoding="utf-8").splitlines()
    assert array.dtype == np.float32
    assert [json.loads(line)["time_s"] for line in lines] == [0.0, 11.0]
    second = json.loads(lines[1])
    assert len(array) == 2 * second["rows"] * second["columns"]


@needs_parquet
@pytest.mark.parametrize("tokens", [False, True])
def test_what_a_reader_of_parquet_sees(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tokens: bool
) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "films.parquet"
    assert run(capsys, "embed", films / "c.png", "-o", path, "--threads", 1, *["--tokens"] * tokens)[0] == 0
    table = pq.read_table(path)
    names = ["media", "kind", "frame", "frames", "time_s", "width", "height", "rows", "columns", "model"]
    assert table.column_names == [*names, "tokens" if tokens else "vector"]
    kind = "list<element: fixed_size_list<" if tokens else "fixed_size_list<"
    assert str(table.schema.types[-1]).startswith(kind)
    assert len(table.to_pylist()[0]["tokens" if tokens else "vector"]) == (64 if tokens else 96) or tokens


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_run_that_is_stopped_goes_on(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"films.{suffix}"
    run(capsys, "embed", films, "-o", whole, "--threads", 1)
    stream = VideoLlama3Encoder.stream_features

    def stopped(self: VideoLlama3Encoder, media: Any, *rest: Any, **named: Any) -> Iterator[FrameFeatures]:
        parts = stream(self, media, *rest, **named)
        yield next(parts)
        if media.name.endswith("b.mp4"):
            raise KeyboardInterrupt
        yield from parts

    monkeypatch.setattr(VideoLlama3Encoder, "stream_features", stopped)
    status, _, err = run(capsys, "embed", films, "-o", path, "--threads", 1)
    assert status == 130
    assert "--resume" in err
    assert not path.exists()
    monkeypatch.undo()
    status, _, err = run(capsys, "embed", films, "-o", path, "--threads", 1)
    assert (status, "left of a run that was stopped; continue it with --resume" in err) == (2, True)
    # What a power cut leaves of the last line of the index, and of the array.
    index = tmp_path / f"films.{suffix}.part.jsonl"
    index.write_bytes(index.read_bytes() + b'{"media": "')
    status, _, err = run(capsys, "embed", films, "-o", path, "--resume", "--threads", 1)
    assert (status, "2 embedded, 0 failed, 1 skipped" in err) == (0, True)
    (rows, vectors), (wanted_rows, wanted) = rows_of(path), rows_of(whole)
    assert rows == wanted_rows
    np.testing.assert_array_equal(vectors, wanted)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_replacement_that_is_stopped_goes_on(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """What --force was to replace is no part of what --resume then continues: no frame is in the file twice."""
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"films.{suffix}"
    for each in (whole, path):
        run(capsys, "embed", films, "-o", each, "--threads", 1)
    stream = VideoLlama3Encoder.stream_features

    def stopped(self: VideoLlama3Encoder, media: Any, *rest: Any, **named: Any) -> Iterator[FrameFeatures]:
        if media.name.endswith("b.mp4"):
            raise KeyboardInterrupt
        return stream(self, media, *rest, **named)

    monkeypatch.setattr(VideoLlama3Encoder, "stream_features", stopped)
    status, _, err = run(capsys, "embed", films, "-o", path, "--force", "--threads", 1)
    assert (status, "continue with --resume in place of --force" in err) == (130, True)
    monkeypatch.undo()
    status, _, err = run(capsys, "embed", films, "-o", path, "--resume", "--threads", 1)
    assert (status, "2 embedded, 0 failed, 1 skipped" in err) == (0, True)
    (rows, vectors), (wanted_rows, wanted) = rows_of(path), rows_of(whole)
    assert rows == wanted_rows
    np.testing.assert_array_equal(vectors, wanted)
    before = path.read_bytes()
    assert run(capsys, "embed", tmp_path / "none.mp4", "-o", path, "--force", "--threads", 1)[0] == 1
    assert path.read_bytes() == before  # nothing came to take its place


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_clips_are_added_to_a_file(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    path = tmp_path / f"films.{suffix}"
    command = ["-o", path, "--threads", 1, "--max-frames", 3]
    assert run(capsys, "embed", films / "b.mp4", films / "c.png", *command)[0] == 0
    status, _, err = run(capsys, "embed", films, *command)
    assert (status, f"{path} exists; continue it with --resume" in err) == (2, True)
    before = path.read_bytes()
    status, _, err = run(capsys, "embed", films, *command, "--resume", "--tokens")
    assert (status, "96 values of checkpoint, maps" in err) == (2, True)
    assert (path.read_bytes(), len(list(tmp_path.iterdir()))) == (before, 2 if suffix == "npy" else 1)
    assert run(capsys, "embed", films, *command, "--resume")[0] == 0
    rows, vectors = rows_of(path)
    names = [Path(row.media).name for row in rows]
    assert names == ["b.mp4"] * 3 + ["c.png"] + ["a.mp4"] * 3
    assert len(vectors) == 7
    assert run(capsys, "embed", films / "c.png", *command, "--force")[0] == 0
    assert [Path(row.media).name for row in rows_of(path)[0]] == ["c.png"]


def test_a_bad_clip_costs_itself_only(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    path = tmp_path / "out.npy"
    clips = [tmp_path / "bad.mp4", films / "a.mp4", tmp_path / "none.mp4", films / "b.mp4"]
    stream = VideoLlama3Encoder.stream_features

    def failing(self: VideoLlama3Encoder, media: Any, *rest: Any, **named: Any) -> Iterator[FrameFeatures]:
        yield from stream(self, media, *rest, **named)
        if media.name.endswith("a.mp4"):  # after all of its frames
            raise RuntimeError("a codec's fault")

    monkeypatch.setattr(VideoLlama3Encoder, "stream_features", failing)
    status, _, err = run(capsys, "embed", *clips, "-o", path, "--threads", 1)
    assert status == 1
    assert "1 embedded, 3 failed, 0 skipped" in err
    assert "a codec's fault (unexpected: please report it" in err
    rows, vectors = rows_of(path)
    assert {Path(row.media).name for row in rows} == {"b.mp4"}
    assert len(rows) == len(vectors) == 8
    monkeypatch.undo()
    assert run(capsys, "embed", *clips, "-o", path, "--threads", 1, "--resume")[0] == 1
    assert {Path(row.media).name for row in rows_of(path)[0]} == {"a.mp4", "b.mp4"}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("number", "second", "wanted", "span"),
    [(0, 1.0, "a.mp4", (0, 4)), (2, 2.0, "a.mp4", (8, 12)), (3, 0.5, "b.mp4", (0, 4)), (4, 3.0, "b.mp4", (4, 8))],
)
def test_a_picture_finds_its_moment(
    films: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    number: int,
    second: float,
    wanted: str,
    span: tuple[int, int],
) -> None:
    """A frame saved as JPEG at another size: the best moment is within its scene."""
    path, query = tmp_path / f"films.{suffix}", tmp_path / "query.jpg"
    assert run(capsys, "embed", films, "-o", path, "--threads", 1)[0] == 0
    scene(number, second, 200).save(query, quality=70)
    status, out, _ = run(capsys, "embed", "--like", query, "--in", path, "--threads", 1, "--json", "-")
    assert status == 0
    best, *others = json.loads(out)
    assert Path(best["media"]).name == wanted
    assert span[0] <= best["start_s"] <= best["best_s"] <= best["end_s"] < span[1]
    assert best["cosine"] > 0.9
    assert all(other["cosine"] < best["cosine"] for other in others)
    status, out, _ = run(capsys, "embed", "--like", query, "--in", path, "--threads", 1, "--top", 1)
    assert out.startswith(f"{best['cosine']:.3f}  {films / wanted}  ")
    assert len(out.splitlines()) == 1


def test_a_picture_finds_itself(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "films.npy"
    run(capsys, "embed", films, "-o", path, "--threads", 1)
    status, out, _ = run(capsys, "embed", "--like", films / "c.png", "--in", path, "--threads", 1, "--top", 1)
    assert (status, out) == (0, f"1.000  {films / 'c.png'}\n")


def batches(cosines: list[list[float]]) -> list[EmbeddingBatch]:
    """Clips whose frames have these cosines with (1, 0)."""
    made = []
    for clip, values in enumerate(cosines):
        rows = [EmbeddedFrame(f"{clip}", "video", n, len(values), n / 2, 28, 28, 0, 0, "m") for n in range(len(values))]
        vectors = np.array([[c, np.sqrt(1 - c * c)] for c in values], np.float32)
        made += [EmbeddingBatch(rows[:2], vectors[:2]), EmbeddingBatch(rows[2:], vectors[2:])]
    return made


def test_neighbouring_frames_are_one_moment() -> None:
    looked_for = {"video": np.array([1, 0], np.float32)}
    found = Query(looked_for, "m").moments(
        batches([[0.1, 0.1, 0.8, 0.9, 0.7], [0.85, 0.1, 0.1, 0.2, 0.6, 0.1]]), 3, "f"
    )
    assert [(m.media, m.start_s, m.best_s, m.end_s, m.cosine) for m in found] == [
        ("0", 1.0, 1.5, 2.0, 0.9),  # it ends with its clip, not in the next one
        ("1", 0.0, 0.0, 0.0, 0.85),
        ("1", 2.0, 2.0, 2.0, 0.6),
    ]
    assert Query(looked_for, "m").moments([], 3, "f") == []
    assert len(Query(looked_for, "m").moments(batches([[0.5] * 4]), 9, "f")) == 1
    with pytest.raises(ConfigError, match=r"f was made with m \(2 values\), not other \(2\): name its bundle"):
        Query(looked_for, "other").moments(batches([[0.1] * 4]), 3, "f")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--like", "{c}"], "--like needs --in FILE"),
        (["{c}", "--like", "{c}", "--in", "x.npy"], "takes neither MEDIA nor -o"),
        (["--like", "{c}", "--in", "x.npy"], "x.npy: there is no such file; make it with"),
        (["--like", "{c}", "--in", "{c}"], "named *.npy or *.parquet"),
        (["--like", "{c}", "--in", "{damaged}"], "damaged.npy is not a whole file of `vl3edge embed`"),
        (["--like", "{a}", "--in", "{damaged}"], "search takes a picture"),
        (["{c}"], "name media and a file"),
        (["{c}", "-o", "x.txt"], "named *.npy or *.parquet"),
        (["{c}", "-o", "x.npy", "--in", "x.npy"], "are for a search"),
        (["{c}", "-o", "x.npy", "--force", "--resume"], "mutually exclusive"),
        (["{c}", "-o", "{tmp}/x.npy", "--frames-expected", "0"], "frames_expected must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    damaged = tmp_path / "damaged.npy"
    np.save(damaged, np.zeros((3, 96), np.float32))
    damaged.with_name("damaged.npy.jsonl").write_text('{"media": 3}\n')
    places = {"a": films / "a.mp4", "c": films / "c.png", "damaged": damaged, "tmp": tmp_path}
    status, _, err = run(capsys, "embed", "--threads", "1", *(part.format(**places) for part in arguments))
    assert status in (1, 2)
    assert message in err.splitlines()[-1]
    assert not list(tmp_path.glob("*.part*"))


def test_nothing_but_the_encoder_is_loaded(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    session = Backend.session

    def seen(self: Backend, path: Path, *rest: Any, **named: Any) -> Any:
        loaded.append(path.name)
        return session(self, path, *rest, **named)

    monkeypatch.setattr(Backend, "session", seen)
    VideoLlama3Encoder.load(backend="cpu", num_threads=1).features(films / "c.png")
    assert loaded == ["vision.onnx"]
    with pytest.raises(AttributeError):
        VideoLlama3Encoder.ask  # type: ignore[attr-defined]  # noqa: B018


def test_a_model_gives_the_same_features(films: Path, encoder: VideoLlama3Encoder) -> None:
    model = VideoLlama3.load(backend="cpu", num_threads=1)
    for name in ("a.mp4", "c.png"):
        ours, theirs = (each.features(films / name, tokens=True) for each in (model, encoder))
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_array_equal(ours.vectors, theirs.vectors)
        assert ours.timestamps_s == theirs.timestamps_s


def test_frames_of_short_and_long_films_have_one_size(encoder: VideoLlama3Encoder) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (300, 60, 80, 3), dtype=np.uint8)
    few, many = encoder.features(frames[:3]), encoder.features(frames)
    assert (few.height_px, few.width_px) == (many.height_px, many.width_px)
    assert many.num_frames == 300  # the checkpoint's limit is not ours
    np.testing.assert_allclose(few.vectors, many.vectors[:3], atol=1e-5)
    assert encoder.features(frames, SamplingPlan(max_frames=7)).num_frames == 7


def test_a_film_comes_in_parts(encoder: VideoLlama3Encoder) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (300, 60, 80, 3), dtype=np.uint8)
    parts = list(encoder.stream_features(frames, tokens=True))
    assert len(parts) > 1
    whole = encoder.features(frames, tokens=True)
    np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), whole.tokens)
    assert tuple(time for part in parts for time in part.timestamps_s) == whole.timestamps_s


def test_a_full_disk_is_no_fault_of_a_clip(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "out.npy.part")

    monkeypatch.setattr(embed_clips.EmbeddingStore, "add", full)
    status, _, err = run(capsys, "embed", films, "-o", tmp_path / "out.npy", "--threads", 1)
    assert (status, err.splitlines()[-1]) == (1, "vl3edge: error: out.npy.part: No space left on device")
    assert not io.BytesIO(b"".join(path.read_bytes() for path in tmp_path.iterdir())).read()
