"""Containers, the systemd unit and the ROS 2 example, as far as they can be looked at without any of the three."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serve_messages import CLIP, tls_files

from vl3edge.runtime import SamplingPlan, VideoLlama3
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.media.video import open_video

ROOT = Path(__file__).resolve().parents[3]
IMAGES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_run_as_no_root_are_health_checked_and_have_their_model_mounted(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER vl3edge$", last, re.MULTILINE)
    assert "HEALTHCHECK" in last
    command = json.loads(re.search(r"^CMD (.*)$", last, re.MULTILINE)[1])  # type: ignore[index]
    assert command[:4] == ["serve", "--host", "0.0.0.0", "-m"]
    assert not re.search(r"COPY .*(model|bundle)", text)
    extras = module(ROOT / "docker" / "try.py").extras(path.stem).split(",")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in extras:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    for copied in re.findall(r"COPY (docker/\S+)", text):
        assert (ROOT / copied).is_file()


def test_every_image_has_a_python_to_be_tried_with() -> None:
    assert sorted(module(ROOT / "docker" / "try.py").PYTHONS) == [path.stem for path in IMAGES]


def options_are_known(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` lists every option that a file passes to `vl3edge serve`."""
    with pytest.raises(SystemExit):
        main([words[0], "--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in words if word.startswith("-"))


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_use_options_that_exist(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = re.search(r"^CMD (\[.*\"serve\".*\])$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert command
    options_are_known(json.loads(command[1]), capsys)


def test_the_systemd_unit(capsys: pytest.CaptureFixture[str]) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "docker" / "vl3edge.service")
    service = unit["Service"]
    assert service["User"] == "vl3edge"
    assert "--api-key" not in service["ExecStart"]  # every user of the machine could read it
    program, *words = service["ExecStart"].split()
    assert program.endswith("/vl3edge")
    options_are_known(words, capsys)


def test_images_are_made_of_the_sources_alone() -> None:
    """A bundle in the checkout, which the commands in the files mount from there, must not go into an image."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    setup, project = ((ROOT / name).read_text(encoding="utf-8") for name in ("setup.py", "pyproject.toml"))
    packages = {folder for folder in ("runtime", "export", "quant", "models") if f'"{folder}"' in setup}
    assert len(packages) == 4
    files = set(re.findall(r'^(?:readme|license-files) = \[?"([^"]+)"', project, re.MULTILINE))
    assert files == {"README.md", "LICENSE"}
    assert kept == {*packages, *files, "docker", "setup.py", "pyproject.toml"}
    assert all((ROOT / name).exists() for name in kept)


def test_the_health_check_tells_a_server_from_none(serve: Callable[..., str], tmp_path: Path) -> None:
    certificate, key = tls_files(tmp_path)
    ports = [serve(**settings).rsplit(":", 1)[1] for settings in ({}, {"tls_certificate": certificate, "tls_key": key})]
    for number, status in ((ports[0], 0), (ports[1], 0), ("1", 1)):
        command = [sys.executable, str(ROOT / "docker" / "healthy.py")]
        done = subprocess.run(command, env={**os.environ, "VL3EDGE_PORT": number}, check=False)
        assert done.returncode == status


def message(pixels: np.ndarray, encoding: str, padding: int = 0) -> Any:
    """A sensor_msgs/Image."""
    rows = pixels.reshape(pixels.shape[0], -1)
    padded = np.pad(rows, ((0, 0), (0, padding)))
    return SimpleNamespace(
        height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=padded.shape[1], data=padded.tobytes()
    )


def test_the_ros_example_reads_frames_of_every_encoding() -> None:
    node = module(ROOT / "examples" / "ros2_node.py")
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert (node.pixels_of(message(rgb, "rgb8")) == rgb).all()
    assert (node.pixels_of(message(rgb, "rgb8", padding=11)) == rgb).all()
    assert (node.pixels_of(message(rgb[..., ::-1], "bgr8", padding=3)) == rgb).all()
    grey = node.pixels_of(message(rgb[..., :1], "mono8", padding=1))
    assert (grey == rgb[..., :1]).all()
    assert grey.shape == rgb.shape
    assert grey.flags.c_contiguous
    with pytest.raises(ValueError, match="16UC1"):
        node.pixels_of(message(rgb, "16UC1"))


def test_the_ros_example_answers_when_it_is_due_and_when_it_is_asked() -> None:
    node = module(ROOT / "examples" / "ros2_node.py")
    said: list[dict[str, Any]] = []
    model = VideoLlama3.load(num_threads=1)
    watcher = node.Watcher(model, "What colour is it?", 4.0, lambda text: said.append(json.loads(text)))
    for frame in open_video(CLIP, SamplingPlan(fps=1)).frames():
        if frame.index == 2:
            watcher.ask("What shape is it?")
        watcher.see(np.zeros((8, 8, 3), np.uint8), 99.0)  # replaced by the next one before it is taken
        watcher.see(frame.pixels, frame.timestamp_s)
        watcher.work()
    watcher.work(0.01)  # nothing has come
    assert [(one["time_s"], one["question"]) for one in said] == [
        (0.0, "What colour is it?"),
        (2.0, "What shape is it?"),
        (4.0, "What colour is it?"),
        (8.0, "What colour is it?"),
    ]
    assert {one["answer"] for one in said if one["question"] == "What colour is it?"} == {"Red."}
