"""What tests send to a server."""

from __future__ import annotations

import base64
import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

try:
    import httpx2 as httpx  # openai 3 brings it, the versions before bring httpx
except ImportError:
    httpx = pytest.importorskip("httpx")

CLIP = Path(__file__).resolve().parents[1] / "fixtures" / "demo_clip.mp4"
SAID = "A red square on a checkered ground. It waits, moves right, turns down and stops."


def data_url(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(shade: int = 80) -> bytes:
    buffer = io.BytesIO()
    y, x = np.mgrid[:112, :112]
    Image.fromarray(np.stack([x + shade, y, x + y], axis=2).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def user(text: str, *media: tuple[str, str]) -> dict[str, Any]:
    """A user's message; media: ("video", url) or ("image", url)."""
    parts: list[dict[str, Any]] = [{"type": f"{kind}_url", f"{kind}_url": {"url": url}} for kind, url in media]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def about_clip(text: str = "Describe this video.", url: str | None = None) -> list[dict[str, Any]]:
    return [user(text, ("video", url or data_url(CLIP.read_bytes())))]


def tls_files(folder: Path, *options: str) -> tuple[Path, Path]:
    """A certificate of one's own, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=localhost",
               "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]  # fmt: skip
    try:
        subprocess.run([*command, *(options or ("-nodes",))], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return certificate, key
