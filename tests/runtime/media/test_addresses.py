"""Media at addresses: pictures, animations and films over HTTP and file://, and what is said when there are none."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from commands import run
from pictures import shown, write_animation, write_picture

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.media.addresses import Fetched, clip_key, located, without_secrets
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.limits import DEFAULT_LIMITS, MediaLimits
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.model import VideoLlama3

FILM = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
OPTIONS = ["--backend", "cpu", "--threads", "1", "--max-new-tokens", "2"]
HASTY = MediaLimits(max_read_s=0.5)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; /status/N answers N, /silent/ nothing, /broken/ half of a file; /secret/ wants a password."""

    def do_GET(self) -> None:
        _, kind, rest = [*self.path.split("?")[0].split("/", 2), "", ""][:3]
        if kind == "status":
            self.send_error(int(rest.split("/")[0]))
        elif kind == "silent":
            threading.Event().wait(3)
        elif kind == "broken":
            data = (Path(self.directory) / rest).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
        elif kind == "moved":
            self.send_response(302)
            self.send_header("Location", f"/{rest}")
            self.end_headers()
        elif kind == "secret" and self.headers["Authorization"] != f"Basic {base64.b64encode(b'me:a b').decode()}":
            self.send_error(401)
        else:
            self.path = self.path.removeprefix("/secret")
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server for the test's folder."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("limits", [DEFAULT_LIMITS, MediaLimits(isolate=True)], ids=["here", "isolated"])
def test_content_at_an_address_decides(tmp_path: Path, site: str, limits: MediaLimits) -> None:
    for name, style in (("a.jpg", "JPEG"), ("b", "PNG"), ("c.mp4", "TIFF"), ("d.tga", "TGA"), ("é 1.jpg", "JPEG")):
        write_picture(tmp_path / name, style)
    write_animation(tmp_path / "moving", "GIF", [400, 600, 500])
    write_animation(tmp_path / "moving.jpg", "PNG", [400, 600, 500])
    shutil.copy(FILM, tmp_path / "film.jpg")
    model = VideoLlama3.load(backend="cpu", num_threads=1, limits=limits)
    for name in ("a.jpg", "b", "c.mp4?token=a.gif", "d.tga", "moved/a.jpg", "é 1.jpg", "%C3%A9%201.jpg", "b#x"):
        opened = model.open(f"{site}/{name}")
        assert (opened.kind, opened.name) == ("image", f"{site}/{name}")
        file = tmp_path / name.split("?")[0].split("#")[0].replace("moved/", "").replace("%C3%A9%20", "é ")
        np.testing.assert_array_equal(opened.reader.read().frames[0], load_image(file))
    for name in ("moving", "moving.jpg?token=a.jpg"):
        opened = model.open(f"{site}/{name}", SamplingPlan(fps=2.0))
        assert (opened.kind, opened.end_s) == ("video", 1.5)
        path = tmp_path / name.split("?")[0]
        np.testing.assert_array_equal(opened.reader.read().frames, [shown(path, n) for n in (1, 1, 2)])
        assert model.open(f"{site}/{name}", kind="image").kind == "image"
    opened = model.open(f"{site}/film.jpg?signature=a.gif")
    assert (opened.kind, opened.num_frames, opened.end_s) == ("video", 9, 9.0)
    with pytest.raises(MediaError, match="no picture that Pillow can read"):
        model.open(f"{site}/film.jpg", kind="image")


def test_names_and_passwords(tmp_path: Path, site: str) -> None:
    write_picture(tmp_path / "a.jpg", "JPEG")
    with pytest.raises(MediaError, match="the server answers 401 Unauthorized"):
        load_image(f"{site}/secret/a.jpg")
    secret = f"{site}/secret/a.jpg".replace("//", "//me:a%20b@")
    np.testing.assert_array_equal(load_image(secret), load_image(tmp_path / "a.jpg"))


@pytest.mark.parametrize("name", ["a b.png", "100%.png", "a?b=1.png", "é#1.png", "plain.png"])
def test_addresses_of_files(tmp_path: Path, name: str) -> None:
    path = write_picture(tmp_path / name, "PNG")
    for address in (path.as_uri(), path.as_uri().replace("///", "//localhost/")):
        np.testing.assert_array_equal(load_image(address), load_image(path))
        assert clip_key(address) == clip_key(str(path))
    shutil.copy(FILM, tmp_path / "a film.mp4")
    assert open_video((tmp_path / "a film.mp4").as_uri()).num_source_frames == 36
    with pytest.raises(MediaError, match=r"no\.png: there is no such file"):
        load_image(tmp_path.as_uri() + "/no.png")
    with pytest.raises(MediaError, match="addresses are local"):
        load_image("file://elsewhere/a.png")


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.mark.parametrize("name", ["a.jpg", "a.mp4", "a"])
def test_what_goes_wrong_is_said_to_be_that(tmp_path: Path, site: str, name: str) -> None:
    (tmp_path / name).write_bytes(b"Hello, world.\n" * 99)
    (tmp_path / "empty").write_bytes(b"")
    port = closed_port()
    for address, message in [
        (f"{site}/no/{name}", "the server answers 404 File not found"),
        (f"{site}/status/403/{name}", "the server answers 403 Forbidden"),
        (f"{site}/status/500/{name}", "the server answers 500 Internal Server Error"),
        (f"{site}/silent/{name}", r"silent for 0\.5 s \(time-out\)"),
        (f"http://127.0.0.1:{port}/{name}", "connection refused"),
        (f"rtsp://127.0.0.1:{port}/{name}", "connection refused"),
        (f"http://no-such-host.invalid/{name}", "the host is unknown"),
        (f"https{site[4:]}/{name}", "no trusted TLS connection"),
        (f"http://[::1/{name}", "not a valid address"),
        (f"strange://127.0.0.1/{name}", "FFmpeg does not support this protocol"),
        (f"{site}/{name}", "no readable picture or video"),
        (f"{site}/empty", "the server sends nothing"),
    ]:
        with pytest.raises(MediaError, match=message) as caught:
            VideoLlama3.open(_model(), address)
        assert str(caught.value).startswith(address)
        assert "\n" not in str(caught.value)


def _model() -> VideoLlama3:
    return VideoLlama3.load(backend="cpu", num_threads=1, limits=HASTY)


def test_a_picture_that_breaks_off(tmp_path: Path, site: str) -> None:
    write_picture(tmp_path / "a.png", "PNG")
    with pytest.raises(MediaError, match="the connection was lost"):
        load_image(f"{site}/broken/a.png")


def test_limits_of_what_is_fetched(tmp_path: Path, site: str) -> None:
    size = write_picture(tmp_path / "a.bmp", "BMP").stat().st_size
    assert isinstance(located(f"{site}/a.bmp", MediaLimits(max_fetch_bytes=size)), Fetched)
    with pytest.raises(MediaError, match=r"larger than the limit of [\d,]+ bytes \(max_fetch_bytes\)"):
        located(f"{site}/a.bmp", MediaLimits(max_fetch_bytes=size - 1))
    with pytest.raises(MediaError, match="96×64 pixels exceed the limit"):
        load_image(f"{site}/a.bmp", MediaLimits(max_pixels=96 * 64 - 1))


def test_addresses_on_the_command_line(tmp_path: Path, site: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = write_picture(tmp_path / "a.jpg", "JPEG")
    write_animation(tmp_path / "b", "GIF", [1000, 1000])
    out = tmp_path / "out.jsonl"
    media = [f"{site}/a.jpg?token=123456", f"{site}/b?token=a.mp4", picture.as_uri(), str(picture), f"{site}/none?t=77"]
    status, _, err = run(capsys, "caption", *media, "-o", out, *OPTIONS)
    assert (status, "123456" in err, "t=77" in err, "answers 404" in err) == (1, False, False, True)
    # A file and its address are one clip.
    assert [json.loads(line)["media"] for line in out.read_text().splitlines()] == [*media[:3], media[4]]
    assert run(capsys, "caption", *media[:4], "-o", out, "--resume", *OPTIONS)[0] == 0
    assert len(out.read_text().splitlines()) == 4
    assert run(capsys, "caption", media[1], "-o", tmp_path / "b.srt", *OPTIONS)[0] == 0
    assert "00:00:02,000" in (tmp_path / "b.srt").read_text()
    status, _, err = run(capsys, "caption", media[0], "--sidecar", *OPTIONS)
    assert (status, "is not a file" in err) == (2, True)
    assert run(capsys, "caption", media[2], "--sidecar", *OPTIONS)[0] == 0
    assert (tmp_path / "a.txt").exists()
    status, _, err = run(capsys, "ask", *media[:3], "-q", "What?", *OPTIONS)
    assert (status, "2 frames" in err) == (0, True)
    status, _, err = run(capsys, "inspect", media[0], "-o", tmp_path / "report")
    assert status == 0
    assert "123456" not in (tmp_path / "report.html").read_text()
    shutil.copy(FILM.with_name("grid.heif"), tmp_path / "grid")
    for address in (media[0], (tmp_path / "grid").as_uri()):
        status, _, err = run(capsys, "watch", address, "-q", "What?", *OPTIONS)
        assert (status, "this is a still picture" in err) == (1, True)
    status, _, err = run(capsys, "caption", "file://elsewhere/a.jpg", media[2], *OPTIONS)
    assert (status, "1 captioned, 1 failed" in err) == (1, True)


def test_secrets_are_not_shown() -> None:
    assert without_secrets("http://a/b.jpg: it is damaged (no: x=1)") == "http://a/b.jpg: it is damaged (no: x=1)"
    assert (
        without_secrets("[1/2] https://me:pw@a/b?x=1&token=a/b%20c: error")
        == "[1/2] https://me:***@a/b?x=…&token=…: error"
    )
    assert without_secrets("rtsp://a:b@c/d, http://e/f?g") == "rtsp://a:***@c/d, http://e/f?g"
