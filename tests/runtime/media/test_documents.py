"""Files in which others are packed: FFmpeg finds the pictures and films in them, which is not what anyone meant."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from clips import picture, write_clip
from commands import assert_refused, run
from PIL import Image

from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.live.reader import LiveReader


def photographs(folder: Path) -> list[Path]:
    paths = [folder / f"photo{number}.jpg" for number in range(4)]
    for number, path in enumerate(paths):
        Image.fromarray(picture(number)).save(path)
    return paths


def pdf(path: Path) -> None:
    first, *others = (Image.fromarray(picture(number)) for number in range(4))
    first.save(path, format="PDF", save_all=True, append_images=others)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for photo in photographs(path.parent):
            file.write(photo, photo.name)


def film_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.write(write_clip(path.with_name("film.ts"), range(30)), "film.ts")


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        for photo in photographs(path.parent):
            file.add(photo, photo.name)


HOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "report.pdf": (pdf, "a PDF document"),
    "slides.pptx": (archive, "a ZIP archive"),
    "photos.zip": (archive, "a ZIP archive"),
    "film.mp4": (film_archive, "a ZIP archive"),
    "photo.jpg": (archive, "a ZIP archive"),
    "photos.tar": (tar, "a tar archive"),
    "photos": (tar, "a tar archive"),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_document_is_no_film(tmp_path: Path, name: str) -> None:
    make, words = HOLDERS[name]
    path = tmp_path / "held" / name
    path.parent.mkdir()
    make(path)
    with av.open(str(path)) if path.suffix != ".jpg" else av.open(str(path), format="mjpeg") as container:
        assert container.streams.video  # FFmpeg finds something
    assert_refused(path, rf"{name}: this is {words}.*; take what is in it out of it first$")
    with pytest.raises(MediaError, match=words), LiveReader(str(path)) as reader:
        reader.take(timeout_s=5.0)


def test_the_command_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pdf(tmp_path / "a.pdf")
    status, _, err = run(capsys, "caption", tmp_path / "a.pdf")
    assert status == 1
    assert "a.pdf: this is a PDF document, no picture or video" in err
