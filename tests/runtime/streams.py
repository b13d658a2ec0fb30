"""Live streams served over loopback for tests: MPEG-TS and MJPEG over HTTP, H.264 over RTSP; at any pace, with any
damage.

A script is what one connection sends: pieces of bytes, each after a pause in seconds.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import av
import numpy as np
from PIL import Image

Script = Iterable[tuple[float, bytes]]
X264 = {"preset": "veryfast", "tune": "zerolatency", "threads": "1"}


class _Pieces(io.RawIOBase):
    """A file that is only written to, and gives what was written since it was last asked."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken


def transport_stream(
    frames: Sequence[np.ndarray], fps: int, first_s: int = 0, keyframe_every: int = 8, title: str = "stream"
) -> list[bytes]:
    """RGB frames [H, W, 3] as H.264 in MPEG-TS, one piece of bytes for each. first_s: the time of the first.

    Where the size of the frames changes, so does that of the stream, with a new keyframe.
    """
    file = _Pieces()
    pieces: list[bytes] = []
    options = {"mpegts_flags": "resend_headers", "flush_packets": "1"}
    with av.open(file, "w", format="mpegts", options=options) as container:
        container.metadata["service_name"] = title
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        encoder = None
        for number, picture in enumerate(frames, first_s * fps):
            if encoder is None or (encoder.height, encoder.width) != picture.shape[:2]:
                encoder = _encoder(picture, fps, keyframe_every)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            for packet in encoder.encode(frame):  # at once: "zerolatency" holds none back
                packet.stream = stream
                container.mux(packet)
            pieces.append(file.take())
    pieces[-1] += file.take()
    return pieces


def _encoder(picture: np.ndarray, fps: int, keyframe_every: int) -> av.VideoCodecContext:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.framerate, encoder.time_base = "yuv420p", fps, Fraction(1, fps)
    encoder.options = {**X264, "g": str(keyframe_every)}
    return encoder


def paced(pieces: Iterable[bytes], pause_s: float) -> list[tuple[float, bytes]]:
    return [(pause_s, piece) for piece in pieces]


def motion_jpeg(frames: Sequence[np.ndarray]) -> list[bytes]:
    """The parts of a multipart/x-mixed-replace response with the boundary `frame`, as cheap cameras send it."""
    parts = []
    for frame in frames:
        jpeg = io.BytesIO()
        Image.fromarray(frame).save(jpeg, "JPEG", quality=95)
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {jpeg.tell()}\r\n\r\n"
        parts.append(head.encode() + jpeg.getvalue() + b"\r\n")
    return parts


@contextmanager
def http_stream(
    script: Callable[[int], Script], content_type: str = "video/mp2t", port: int = 0
) -> Iterator[tuple[str, list[int]]]:
    """An HTTP server, its address, and a list that grows with each connection; `script(n)` is what the n-th one sends.

    The connection ends with its script; when the context ends, so does everything.
    """
    connections: list[int] = []
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            connections.append(len(connections))
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            try:
                for pause_s, piece in script(connections[-1]):
                    if closing.wait(pause_s):
                        return
                    self.wfile.write(piece)
            except OSError:
                return  # the other side has gone, as it may

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/stream", connections
        finally:
            closing.set()
            server.shutdown()
            thread.join()


@contextmanager
def tcp_stream(script: Script) -> Iterator[str]:
    """A server that sends one client its script and nothing else, as GStreamer's tcpserversink does."""

    def serve() -> None:
        with suppress(OSError), server.accept()[0] as connection:
            for pause_s, piece in script:
                time.sleep(pause_s)
                connection.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def rtsp_stream(frames: Sequence[np.ndarray], fps: int, pause_s: float) -> Iterator[str]:
    """A camera of the simplest kind: an RTSP server for one client that takes its RTP over the same connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_serve_rtsp, args=(server, frames, fps, pause_s), daemon=True)
        thread.start()
        yield f"rtsp://127.0.0.1:{server.getsockname()[1]}/camera"


_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track1\r\n"
)


def _serve_rtsp(server: socket.socket, frames: Sequence[np.ndarray], fps: int, pause_s: float) -> None:
    connection, _ = server.accept()
    with connection, connection.makefile("rb") as requests:
        while True:
            lines = [line.decode().strip() for line in iter(requests.readline, b"\r\n")]
            method = lines[0].split()[0]
            sequence = next(line for line in lines if line.lower().startswith("cseq"))
            head = {
                "OPTIONS": ["Public: DESCRIBE, SETUP, PLAY"],
                "DESCRIBE": ["Content-Type: application/sdp", f"Content-Length: {len(_SDP)}"],
                "SETUP": ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"],
                "PLAY": ["Session: 1"],
            }[method]
            body = _SDP if method == "DESCRIBE" else ""
            connection.sendall(("\r\n".join(["RTSP/1.0 200 OK", sequence, *head]) + "\r\n\r\n" + body).encode())
            if method == "PLAY":
                break
        for packet in _rtp_packets(frames, fps, pause_s):
            try:
                connection.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
            except OSError:
                return


def _rtp_packets(frames: Sequence[np.ndarray], fps: int, pause_s: float) -> Iterator[bytes]:
    """RTP as FFmpeg makes it, which it does for UDP alone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        sink.settimeout(0.02)
        with av.open(f"rtp://127.0.0.1:{sink.getsockname()[1]}", "w", format="rtp") as container:
            stream = container.add_stream("libx264", rate=fps, options={**X264, "g": "8"})
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            for number, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, fps)
                container.mux(stream.encode(frame))
                time.sleep(pause_s)
                while True:
                    try:
                        yield sink.recv(65536)
                    except TimeoutError:
                        break
