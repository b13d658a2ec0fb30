"""`vl3edge serve` as a process: it starts, ends cleanly, survives a rude end, and says what is missing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_messages import SAID, about_clip, httpx, png


@contextmanager
def process(folder: Path, *options: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "vl3edge", "serve", "--port", "0", "--threads", "1", *options]
    environment = {**os.environ, "TMPDIR": str(folder), **variables}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if found := re.search(r"serving on (\S+)", line):
                    break
            yield server, found[1] if found else ""
        finally:
            server.kill()


def test_it_ends_cleanly_and_takes_its_uploads_with_it_even_when_killed(tmp_path: Path) -> None:
    key = {"Authorization": "Bearer secret-key"}
    for ending in (signal.SIGKILL, signal.SIGTERM):
        with process(tmp_path, VL3EDGE_API_KEY="secret-key") as (server, address):
            assert httpx.get(f"{address}/v1/models").status_code == 401
            answer = httpx.post(
                f"{address}/v1/chat/completions", json={"messages": about_clip()}, headers=key, timeout=60
            )
            assert answer.json()["choices"][0]["message"]["content"] == SAID
            uploaded = httpx.post(f"{address}/v1/files", files={"file": ("a.png", png())}, headers=key)
            assert uploaded.status_code == 200
            assert len(list(tmp_path.glob("vl3edge-serve-*"))) == 1
            server.send_signal(ending)
            status = server.wait(30)
            assert server.stderr is not None
            said = server.stderr.read()
        assert "Traceback" not in said
        assert "secret-key" not in said
        assert status == (0 if ending == signal.SIGTERM else -signal.SIGKILL)
    assert list(tmp_path.glob("vl3edge-serve-*")) == []


def test_without_the_extra_there_is_one_line(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["starlette"] = None
from vl3edge.runtime.cli.main import main
sys.exit(main(["serve"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'vl3edge[serve]'" in done.stderr
