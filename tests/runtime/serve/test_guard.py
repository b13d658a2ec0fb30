"""What clients may try: keys, pages of other sites, sizes, slowness, JSON without end, media that are none."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_messages import CLIP, SAID, about_clip, data_url, httpx, tls_files, user

KEY = "correct horse"


@pytest.fixture(scope="module")
def address(serve: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("root")
    (root / "clip.mp4").write_bytes(CLIP.read_bytes())
    (root / "list.m3u8").write_text("#EXTM3U\n#EXTINF:9,\nclip.mp4\n#EXT-X-ENDLIST\n")
    sizes = {"max_body_bytes": 200_000, "max_upload_bytes": 100_000, "max_stored_bytes": 150_000}
    return serve(api_key=KEY, media_root=root, patience_s=0.7, allow_urls=True, **sizes)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    with httpx.Client(base_url=address, timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def is_well(client: Any) -> bool:
    """Whether the server still answers, rightly."""
    answer = client.post("/v1/chat/completions", json={"messages": about_clip(url="clip.mp4")})
    return answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == SAID


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {KEY}", "Bearer", "Bearer \u00fc"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/files/x", "/docs"])
def test_nothing_without_the_key(address: str, header: str | None, path: str) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = httpx.get(address + path, headers=headers)
    assert answer.status_code == 401
    assert KEY not in answer.text


def test_the_page_and_the_health_check_are_open(address: str, client: Any) -> None:
    assert httpx.get(f"{address}/health").json()["status"] == "ok"
    assert httpx.get(address).headers["content-security-policy"].startswith("default-src 'none'")
    assert is_well(client)


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Origin": "https://evil.example"},
     {"Origin": "null"}, {"Host": ""}, {"Host": "[::1"}, {"Host": "["}, {"Origin": "http://["},
     {"Origin": "http://[::1]x"}],
)  # fmt: skip
def test_pages_of_other_sites_are_refused(client: Any, headers: dict[str, str]) -> None:
    answer = client.post("/v1/chat/completions", json={"messages": [user("?")]}, headers=headers)
    assert answer.status_code in (400, 403)


def test_json_must_say_that_it_is_json(client: Any) -> None:
    """Else a form of another site could send it."""
    answer = client.post("/v1/chat/completions", content=json.dumps({"messages": [user("?")]}))
    assert answer.status_code == 415


WRONG = ("[]", "{}", "[[1]]", "5", "true")
BODIES = {
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 20_000,
    "deep and closed": b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "no JSON": b"\xff\xfe{}",
    "a long number": b'{"messages": ' + b"9" * 50_000 + b"}",
    "half": b'{"messages": [{"role"',
    "a list": b"[]",
    "nothing": b"",
    "zipped": gzip.compress(b"{}"),
    "no number": b'{"messages": [{"role": "user", "content": "?"}], "temperature": NaN}',
    "a lone surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "a field with a lone surrogate": b'{"\\ud800": 1}',
    "an address with a lone surrogate": b'{"messages": [{"role": "user", "content": [{"type": "image_url", '
    b'"image_url": "\\ud800"}]}]}',
    **{f"a role {wrong}": f'{{"messages": [{{"role": {wrong}, "content": "?"}}]}}'.encode() for wrong in WRONG},
    **{
        f"a type {wrong}": f'{{"messages": [{{"role": "user", "content": [{{"type": {wrong}}}]}}]}}'.encode()
        for wrong in WRONG
    },
    **{
        f"a large {name}": f'{{"messages": [{{"role": "user", "content": "?"}}], "{name}": 1{"0" * 400}}}'.encode()
        for name in ("temperature", "top_p", "repetition_penalty", "fps", "start_s", "end_s", "threshold", "seed")
    },
    "deep schema": b'{"messages": [{"role": "user", "content": "?"}], "response_format": {"type": "json_schema", '
    b'"json_schema": {"schema": ' + b'{"items": ' * 900 + b"{}" + b"}" * 900 + b"}}}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies_that_are_bombs_or_nothing(client: Any, body: bytes) -> None:
    answer = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_bodies_above_the_limit(client: Any) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    json_type = {"Content-Type": "application/json"}
    assert client.post("/v1/chat/completions", content=b" " * 300_000, headers=json_type).status_code == 413
    assert client.post("/v1/chat/completions", content=pieces(), headers=json_type).status_code == 413
    assert client.post("/v1/files", files={"file": ("a", b"x" * 300_000)}).status_code == 413
    assert client.post("/v1/files", files={"file": ("a", b"x" * 120_000)}).status_code == 413
    assert client.post("/v1/files", files={"file": ("a", b"x" * 90_000)}).status_code == 200
    assert client.post("/v1/files", files={"file": ("b", b"x" * 90_000)}).status_code == 507
    assert is_well(client)


HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n".encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (HEAD[:40], b""),
        (HEAD + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{", b"HTTP/1.1 408"),
        (HEAD + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", b"HTTP/1.1 408"),
        (HEAD + b"Content-Type: application/json\r\nContent-Length: 5368709120\r\n\r\n{", b"HTTP/1.1 413"),
        (b"\x16\x03\x01 no HTTP at all\r\n\r\n", b"HTTP/1.1 400"),
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk", "5 GB", "no HTTP"],
)
def test_clients_that_stall_are_let_go(address: str, client: Any, sent: bytes, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=10) as connection:
        connection.sendall(sent)
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := connection.recv(4096)):
            answer += piece
    assert answer.startswith(status)
    assert bool(answer) == bool(status)
    assert is_well(client)


@pytest.mark.parametrize(
    "url",
    ["../clip.mp4", "/etc/passwd", "file:///etc/passwd", "file:///proc/self/environ", "list.m3u8", "concat:clip.mp4",
     "http://169.254.169.254/latest/meta-data/", "http://localhost:1/", "http://[::ffff:127.0.0.1]/", "clip.mp4\0",
     data_url(b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n"), data_url(b"ffconcat version 1.0\nfile clip.mp4\n"),
     data_url(b"\x00\x00\x00\x18ftypmp42" + b"\xff" * 5000), data_url(CLIP.read_bytes()[:3000]), data_url(b"GIF89a"),
     "data:", "data:video/mp4;base64", "data:video/mp4,%zz", "file-../../../etc/passwd",
     "subfile,,start,0,end,9,,:/etc/passwd"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["image", "video"])
def test_media_that_may_not_be_read_or_are_none(client: Any, kind: str, url: str) -> None:
    answer = client.post("/v1/chat/completions", json={"messages": [user("?", (kind, url))]})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "invalid_media"
    assert "root:" not in error["message"]
    assert "/tmp" not in error["message"]


def picture_bomb() -> bytes:
    """A PNG of 30,000 pixels squared, in a few bytes."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1_000_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_picture_bomb(client: Any) -> None:
    answer = client.post("/v1/chat/completions", json={"messages": [user("?", ("image", data_url(picture_bomb())))]})
    assert answer.status_code == 400
    assert "the limit of 16,777,216 pixels" in answer.json()["error"]["message"]
    assert is_well(client)


def test_other_methods_and_addresses(client: Any) -> None:
    assert client.get("/v1/chat/completions").status_code == 405
    assert client.get("/nothing").json()["error"]["message"] == "there is nothing at this address"
    assert client.get("/static/../app.py").status_code == 404
    assert client.get("/static/%2e%2e/app.py").status_code == 404


def test_https_with_a_certificate_of_one_s_own(serve: Callable[..., str], tmp_path: Path) -> None:
    certificate, key = tls_files(tmp_path)
    address = serve(tls_certificate=certificate, tls_key=key)
    assert address.startswith("https://")
    trusted = ssl.create_default_context(cafile=str(certificate))
    assert httpx.get(f"{address}/health", verify=trusted).json()["status"] == "ok"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_tls_files_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from commands import run

    certificate, key = tls_files(tmp_path)
    (tmp_path / "others").mkdir()
    other = tls_files(tmp_path / "others", "-passout", "pass:secret")[1]
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    for pair, words in {
        (tmp_path / "none.pem", key): "none.pem: No such file or directory",
        (certificate, tmp_path / "none.key"): "none.key: No such file or directory",
        (tmp_path, key): "Is a directory",
        (empty, key): "are no certificate and its key in PEM",
        (key, certificate): "are no certificate and its key in PEM",
        (CLIP, key): "are no certificate and its key in PEM",
        (certificate, other): "the key is encrypted",
    }.items():
        status, out, err = run(capsys, "serve", "--threads", "1", "--port", "0", *tls_options(*pair))
        assert (status, out) == (2, ""), err
        assert words in err
        assert err.count("\n") == 1
    plain = tmp_path / "others" / "plain.pem"
    subprocess.run(["openssl", "genrsa", "-out", plain, "2048"], check=True, capture_output=True)
    status, _, err = run(capsys, "serve", "--threads", "1", "--port", "0", *tls_options(certificate, plain))
    assert (status, "key values mismatch" in err) == (2, True), err


def tls_options(certificate: Path, key: Path) -> list[object]:
    return ["--tls-certificate", certificate, "--tls-key", key]


def test_a_loopback_address_of_its_own_is_answered_at(serve: Callable[..., str]) -> None:
    address = serve(host="127.0.0.2")
    assert httpx.get(f"{address}/v1/models").status_code == 200
    assert httpx.get(f"{address}/v1/models", headers={"Host": "127.0.0.3"}).status_code == 403


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from commands import run

    for arguments, words in {
        ("--port", "99999"): "port must be 0 to 65535",
        ("--media-root", "nowhere"): "there is no such folder",
        ("--tls-key", "a"): "TLS needs both files",
        ("--api-key", "a\u00fc"): "printable ASCII",
        ("--api-key", " "): "the API key is empty",
        ("--api-key", " a"): "spaces around it",
        ("--api-key", "a "): "spaces around it",
        ("--host", "999.1.1.1"): "cannot listen at",
    }.items():
        status, out, err = run(capsys, "serve", "--threads", "1", *arguments)
        assert status == 2, err
        assert out == ""
        assert words in err
