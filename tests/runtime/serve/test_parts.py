"""Parts of the server by themselves: turns, uploads, the media root, downloads, stop texts."""

from __future__ import annotations

import io
import ipaddress
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.serve.api_error import ApiError
from vl3edge.runtime.serve.running_answer import StopText
from vl3edge.runtime.serve.sources import download as downloads
from vl3edge.runtime.serve.sources import uploads as stores
from vl3edge.runtime.serve.sources.download import download, is_public
from vl3edge.runtime.serve.sources.media_root import MediaRoot
from vl3edge.runtime.serve.sources.uploads import Uploads
from vl3edge.runtime.serve.turns import Turns


def test_turns_are_taken_in_the_order_of_arrival() -> None:
    turns, order = Turns(), list[int]()
    turns.__enter__()

    def take(number: int) -> None:
        with turns:
            order.append(number)

    threads = [threading.Thread(target=take, args=[n]) for n in range(5)]
    for number, thread in enumerate(threads):
        thread.start()
        while len(turns._waiting) <= number:
            time.sleep(0.001)
    turns.__exit__()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    with turns:
        order.append(5)


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (["END"], ["a", "EN", "D", "b"], "a"),
        (["END"], ["a", "EN", "E", "ND"], "aEN"),
        (["aab"], ["a", "a", "a", "b", "c"], "a"),
        (["x", "ab"], ["zab", "x"], "z"),
        (["zz"], ["a", "z"], "az"),
        ([], ["a", "b"], "ab"),
    ],
)
def test_stop_texts_over_pieces(stops: list[str], pieces: list[str], shown: str) -> None:
    stop, text = StopText(stops), ""
    for piece in pieces:
        text += stop.push(piece)
        if stop.found:
            break
    assert text + stop.flush() == shown


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stores.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_uploads_go_with_their_server_even_one_that_was_killed(temporary: Path) -> None:
    left = temporary / "vl3edge-serve-left"
    left.mkdir()
    (left / "lock").touch()
    (left / "film").write_bytes(b"x")
    running = Uploads(100, 60)
    assert not left.exists()
    held = running.add(io.BytesIO(b"film"), "film.mp4", "user_data").media.path
    second = Uploads(100, 60)  # does not touch what is in use
    assert held.read_bytes() == b"film"
    assert stat_mode(held.parent) == 0o700
    running.close()
    second.close()
    assert list(temporary.iterdir()) == []


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_uploads_are_bounded_and_hashed_by_content(temporary: Path) -> None:
    gone: list[str] = []
    uploads = Uploads(10, 60, gone.append)
    a, b = (uploads.add(io.BytesIO(b"abcd"), name, "user_data") for name in "ab")
    assert a.media.digest == b.media.digest
    with pytest.raises(ApiError, match="no room"):
        uploads.add(io.BytesIO(b"abc"), "c", "user_data")
    with pytest.raises(ApiError, match="empty"):
        uploads.add(io.BytesIO(b""), "d", "user_data")
    uploads.remove(a.id)
    assert gone == []
    uploads.remove(b.id)
    assert gone == [a.media.digest]
    with pytest.raises(ApiError, match="no such file"):
        uploads.get(b.id)
    with uploads.passing(b"xyz", "passing") as file:
        assert file.path.read_bytes() == b"xyz"
    assert sum(path.is_file() for path in temporary.rglob("*")) == 1  # the lock
    uploads.close()


def test_nothing_outside_the_media_root_is_found(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "secret.mp4"
    (root / "sub").mkdir(parents=True)
    outside.write_bytes(b"secret")
    for inside in (root / "a b.mp4", root / "sub" / "c.mp4"):
        inside.write_bytes(b"film")
    (root / "link.mp4").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    (root / "circle.mp4").symlink_to(root / "circle.mp4")
    (root / "inner.mp4").symlink_to(root / "sub" / "c.mp4")
    os.mkfifo(root / "pipe.mp4")
    media = MediaRoot(root)
    for name in ("a b.mp4", "sub/c.mp4", "inner.mp4", str(root / "sub" / "c.mp4"), f"file://{root}/a%20b.mp4"):
        assert media.find(name).path.read_bytes() == b"film"
    refused = [
        "../secret.mp4", "sub/../../secret.mp4", "sub/../a b.mp4", "link.mp4", "folder/secret.mp4", "circle.mp4",
        "pipe.mp4", "sub", ".", "", str(outside), f"file://{outside}", f"file://{root}/%2e%2e/secret.mp4", "a\0b",
        "/dev/zero", "/proc/self/environ", "nothing.mp4", "x" * 5000, "\ud800",
    ]  # fmt: skip
    for name in refused:
        with pytest.raises(MediaError, match="no such file below"):
            media.find(name)


def test_a_file_that_changes_is_another_clip(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    media = MediaRoot(tmp_path)
    first = media.find("a.mp4")
    assert media.find("a.mp4") is first
    path.write_bytes(b"three")
    assert media.find("a.mp4").digest != first.digest


PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "2002:a9fe:a9fe::1", "2001:0:4136::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url", ["http://localhost/a", "http://127.1/a", "http://2130706433/a", "http://0x7f.1/a", "http://[::1]/a",
            "http://169.254.169.254/latest/meta-data/", "http://user:secret@127.0.0.1/a?token=secret"],
)  # fmt: skip
def test_this_machine_is_not_asked_by_any_of_its_names(url: str) -> None:
    with pytest.raises(MediaError, match="public addresses only") as caught:
        download(url, 100, 5)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://example.com/a", "file:///etc/passwd", "http://", "gopher://127.0.0.1:70/x"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(MediaError, match="only http and https"):
        download(url, 100, 5)


@contextmanager
def web(pages: dict[str, Any]) -> Iterator[str]:
    """A server of pages: bytes, an address to be sent on to, a status, or a function that writes the body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path, 404)
            if isinstance(page, str):
                self.send_response(302)
                self.send_header("Location", page)
                self.end_headers()
            elif isinstance(page, int):
                self.send_error(page)
            elif callable(page):
                self.send_response(200)
                self.end_headers()
                page(self.wfile)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def anyone(_: Any) -> bool:
    return True


def drip(file: Any) -> None:
    try:
        for _ in range(100):
            file.write(b"x")
            time.sleep(0.1)
    except OSError:
        return


def test_downloads_are_bounded_in_size_time_and_redirects() -> None:
    pages = {"/film": b"film", "/large": b"x" * 1000, "/moved": "/film", "/round": "/round", "/slow": drip,
             "/none": b"", "/out": "file:///etc/passwd"}  # fmt: skip
    with web(pages) as address:
        assert download(f"{address}/film", 100, 5, anyone) == b"film"
        assert download(f"{address}/moved", 100, 5, anyone) == b"film"
        for page, words in {
            "large": "larger than the server's limit of 100 bytes",
            "round": "redirects more than 5 times",
            "slow": "takes longer than 0.5 s",
            "none": "sends nothing",
            "missing": "answers 404",
            "out": "only http and https",
        }.items():
            with pytest.raises(MediaError, match=words):
                download(f"{address}/{page}", 100, 0.5 if page == "slow" else 5, anyone)


def test_a_redirect_into_the_private_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first host counts as public here; what it sends on to does not."""
    with web({"/secret": b"secret"}) as inner, web({"/a": f"{inner}/secret"}) as outer:
        port = int(outer.rsplit(":", 1)[1])
        real = downloads.socket.getaddrinfo

        def resolved(host: str, number: int, **options: Any) -> Any:
            allowed.append(number == port)
            return real(host, number, **options)

        allowed: list[bool] = []
        monkeypatch.setattr(downloads.socket, "getaddrinfo", resolved)
        with pytest.raises(MediaError, match="public addresses only"):
            download(f"{outer}/a", 100, 5, lambda _: allowed[-1])
        assert allowed == [True, False]
