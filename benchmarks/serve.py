"""The server under load and under attack: does each client get its own answer, how soon, and what does it survive?

    python benchmarks/serve.py [--clients 64] [--seconds 600] [--json benchmarks/results/serve.json]

Starts `vl3edge serve` with the demo bundle. Every client has a clip of its own, of the demo world, asks about it again
and again, and compares the answer with the model's own, computed before. Then the table of attacks.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from vl3edge.models.demo.clips import encode_mp4
from vl3edge.models.demo.render import HELD_OUT_SEED, random_scene, source_frames
from vl3edge.runtime import VideoLlama3

try:
    import httpx2 as httpx  # openai 3 brings it, the versions before bring httpx
except ImportError:
    import httpx

PARTS = ("load", "attacks", "restart")
QUESTIONS = ("Describe this video.", "What colour is it?", "What shape is it?", "When does it stop?")


def clips_of(folder: Path, count: int) -> list[Path]:
    """Clips that show different scenes."""
    paths = []
    for number in range(count):
        scene = random_scene(HELD_OUT_SEED + 5000 + number)
        path = folder / f"{number}.mp4"
        path.write_bytes(encode_mp4(source_frames(scene), scene.fps, preset="ultrafast"))
        paths.append(path)
    return paths


@contextmanager
def server(root: Path, *options: str) -> Any:
    command = [sys.executable, "-m", "vl3edge", "serve", "--port", "0", "--media-root", str(root), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(found[1] for line in process.stderr if (found := re.search(r"serving on (\S+)", line)))
        try:
            yield process, address
        finally:
            process.kill()


def figures(address: str) -> dict[str, float]:
    lines = [line for line in httpx.get(f"{address}/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


class Load:
    """Clients that ask about their own clips, and what they measure."""

    def __init__(self, address: str, expected: dict[tuple[str, str], str]) -> None:
        self.address = address
        self.expected = expected
        self.first_s: list[float] = []
        self.between_s: list[float] = []
        self.answers = self.wrong = self.failed = self.busy = self.tokens = 0
        self.differing: list[dict[str, str]] = []

    async def client(self, http: httpx.AsyncClient, clip: str, until_s: float) -> None:
        asked = 0
        while time.monotonic() < until_s:
            question = QUESTIONS[asked % len(QUESTIONS)]
            try:
                asked += await self.ask(http, clip, question)
            except httpx.HTTPError:
                self.failed += 1

    async def ask(self, http: httpx.AsyncClient, clip: str, question: str) -> int:
        parts = [{"type": "video_url", "video_url": {"url": clip}}, {"type": "text", "text": question}]
        body = {"messages": [{"role": "user", "content": parts}], "stream": True}
        said, last_s, is_first, is_whole = "", time.monotonic(), True, False
        async with http.stream("POST", f"{self.address}/v1/chat/completions", json=body) as answer:
            if answer.status_code == 429:
                self.busy += 1
                await answer.aread()
                await asyncio.sleep(float(answer.headers["retry-after"]))
                return 0
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                choice = event["choices"][0] if event.get("choices") else {"delta": {}, "finish_reason": None}
                is_whole = is_whole or choice["finish_reason"] is not None
                if piece := choice["delta"].get("content"):
                    now = time.monotonic()
                    (self.first_s if is_first else self.between_s).append(now - last_s)
                    last_s, is_first = now, False
                    said += piece
                    self.tokens += 1
        self.answers += 1
        if not is_whole:
            self.failed += 1
        elif said != self.expected[clip, question]:
            self.wrong += 1
            self.differing.append({"clip": clip, "question": question, "said": said})
        return 1

    async def run(self, clips: list[str], seconds: float) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=120, limits=limits) as http:
            until_s = time.monotonic() + seconds
            await asyncio.gather(*(self.client(http, clip, until_s) for clip in clips))

    def summary(self, seconds: float) -> dict[str, Any]:
        def spread(values: list[float]) -> dict[str, float]:
            points = statistics.quantiles(values, n=100) if len(values) > 1 else [0.0] * 99
            return {"p50_s": round(points[49], 4), "p99_s": round(points[98], 4)}

        return {
            "answers": self.answers,
            "wrong": self.wrong,
            "failed": self.failed,
            "busy_429": self.busy,
            "tokens_per_s": round(self.tokens / seconds, 1),
            "first_token": spread(self.first_s),
            "between_tokens": spread(self.between_s),
        }


async def loaded(load: Load, process: Any, clips: list[str], seconds: float) -> list[float]:
    """Resident MB of the server while the clients ask, once every few seconds."""
    memory: list[float] = []

    async def watch() -> None:
        while True:
            await asyncio.sleep(max(1.0, seconds / 60))
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            found = re.search(r"VmRSS:\s+(\d+)", status)
            memory.append(round(int(found[1]) / 1024, 1) if found else 0.0)

    watching = asyncio.create_task(watch())
    await load.run(clips, seconds)
    watching.cancel()
    return memory


def expectations(clips: list[Path]) -> dict[tuple[str, str], str]:
    model = VideoLlama3.load()
    found = {}
    for path in clips:
        clip = model.encode(str(path))
        for question in QUESTIONS:
            found[path.name, question] = model.ask(clip, question).text
    return found


def attacks(address: str, process: Any, clip: Path, count: int) -> list[dict[str, str]]:
    """Each attack, what came of it, and whether the server answered rightly after it."""
    port = int(address.rsplit(":", 1)[1])
    url = f"{address}/v1/chat/completions"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    json_type = {"Content-Type": "application/json"}
    table = []

    def asked(media: str, kind: str = "video") -> str:
        parts = [{"type": f"{kind}_url", f"{kind}_url": {"url": media}}, {"type": "text", "text": "What is it?"}]
        answer = httpx.post(url, json={"messages": [{"role": "user", "content": parts}]}, timeout=200)
        return f"{answer.status_code} {answer.json()['error']['message']}" if answer.status_code != 200 else "200"

    def raw(data: bytes, count: int = 1) -> str:
        import socket

        connections = [socket.create_connection(("127.0.0.1", port), timeout=45) for _ in range(count)]
        for connection in connections:
            connection.sendall(data)
        answers = set()
        for connection in connections:
            with connection, suppress(OSError):
                answers.add(connection.recv(200).split(b"\r\n")[0].decode() or "closed")
        return ", ".join(sorted(answers))

    def many() -> str:
        body = b'{"messages": [{"role": "user", "content": "?"}]}'
        asked = head + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
        at_once = asyncio.Semaphore(500)

        async def one() -> str:
            async with at_once:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(asked)
                    status = (await asyncio.wait_for(reader.readline(), 300)).split()
                    writer.close()
                    return status[1].decode() if len(status) > 1 else "closed"
                except (OSError, asyncio.TimeoutError) as e:
                    return type(e).__name__

        async def all_of_them() -> list[str]:
            return await asyncio.gather(*(one() for _ in range(count)))

        counts: dict[str, int] = {}
        for status in asyncio.run(all_of_them()):
            counts[status] = counts.get(status, 0) + 1
        return ", ".join(f"{count} × {status}" for status, count in sorted(counts.items()))

    def vanishing() -> str:
        schema = {"type": "json_schema", "json_schema": {"schema": {"type": "string", "minLength": 9000}}}
        long = {"messages": [{"role": "user", "content": "?"}], "stream": True, "response_format": schema}
        long["max_tokens"] = 3000
        for _ in range(32):
            with httpx.stream("POST", url, json=long, timeout=60) as answer:
                next(answer.iter_lines())
        for _ in range(200):
            if figures(address)["vl3edge_requests_admitted"] == 0:
                return "32 rows were freed"
            time.sleep(0.1)
        return "rows are still taken"

    def huge() -> str:
        def zeros() -> Any:
            for _ in range(5 << 10):
                yield bytes(1 << 20)

        with suppress(httpx.HTTPError):
            return str(httpx.post(url, content=zeros(), headers=json_type, timeout=60).status_code)
        return "cut off"

    def data(content: bytes) -> str:
        return f"data:video/mp4;base64,{base64.b64encode(content).decode()}"

    tries = {
        "half a body, 50 clients": lambda: raw(head + b"Content-Length: 9999\r\n\r\n{", 50),
        "half a head, 50 clients": lambda: raw(head[:50], 50),
        "5 GB, announced": lambda: raw(head + b"Content-Length: 5368709120\r\n\r\n"),
        "5 GB, not announced": huge,
        f"{count:,} requests": many,
        "32 clients that vanish": vanishing,
        "JSON nested 1,000,000 deep": lambda: str(
            httpx.post(url, content=b"[" * 1_000_000, headers=json_type).status_code
        ),
        "video bomb: a billion frames": lambda: asked(data(bomb())),
        "video cut in half": lambda: asked(data(clip.read_bytes()[: clip.stat().st_size // 2])),
        "a path with ..": lambda: asked("../../etc/passwd"),
        "a file elsewhere": lambda: asked("file:///etc/passwd"),
        "the metadata service": lambda: asked("http://169.254.169.254/latest/meta-data/"),
        "this machine by another name": lambda: asked("http://0x7f.1:1/"),
        "a playlist of other files": lambda: asked(data(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")),
    }
    for name, attempt in tries.items():
        begin = time.monotonic()
        outcome = " ".join(str(attempt()).split())[:200]
        well = asked(clip.name) == "200" and process.poll() is None
        table.append({"attack": name, "outcome": outcome, "then": "answers" if well else "BROKEN"})
        print(f"{name}: {outcome} ({time.monotonic() - begin:.1f} s), then {table[-1]['then']}", flush=True)
    return table


def bomb() -> bytes:
    """A Matroska file of one frame whose times state that it lasts for years."""
    import io
    from fractions import Fraction

    import av

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        for tick in (0, 10**9):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def restarted(root: Path, clip: Path) -> str:
    """Kills a server in the middle of an answer, and starts another in its place."""
    outcomes = []
    for rude in (True, False):
        with server(root) as (process, address):
            parts = [{"type": "video_url", "video_url": {"url": clip.name}}, {"type": "text", "text": QUESTIONS[0]}]
            body = {"messages": [{"role": "user", "content": parts}], "stream": True}
            try:
                with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as answer:
                    lines = answer.iter_lines()
                    next(lines)
                    if rude:
                        os.kill(process.pid, signal.SIGKILL)
                    outcomes.append("whole" if "data: [DONE]" in list(lines) else "cut")
            except httpx.HTTPError:
                outcomes.append("cut")
    return " and then ".join(outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--requests", type=int, default=10_000, help="of one attack, at once")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "serve.json")
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else {}

    def note(**found: Any) -> None:
        """Writes what is known by now; parts that are not measured anew stay as they are."""
        result.update(found)
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(json.dumps(found, indent=2), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = clips_of(root, options.clients)
        names = [path.name for path in paths]
        with server(root, "--queue", str(options.clients), "--allow-urls") as (process, address):
            if "load" in options.parts:
                expected = expectations(paths)
                asyncio.run(loaded(Load(address, expected), process, names[:1], 2.0))  # its first clip starts a process
                alone = Load(address, expected)
                seconds = max(10.0, options.seconds / 10)
                asyncio.run(loaded(alone, process, names[:1], seconds))
                together = Load(address, expected)
                memory = asyncio.run(loaded(together, process, names, options.seconds))
                sizes = {"after_a_third": memory[len(memory) // 3], "at_the_end": memory[-1], "most": max(memory)}
                note(
                    machine=describe(),
                    clients=options.clients,
                    seconds=options.seconds,
                    one_client=alone.summary(seconds),
                    all_clients=together.summary(options.seconds),
                    differing=together.differing[:20],
                    memory_mb=sizes,
                )
            if "attacks" in options.parts:
                note(attacks=attacks(address, process, paths[0], options.requests))
        if "restart" in options.parts:
            note(killed_and_restarted=restarted(root, paths[0]))


if __name__ == "__main__":
    main()
