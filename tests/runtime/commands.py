"""`vl3edge` called in this process, for tests of the command line; and what every reader refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from vl3edge.runtime.cli.main import main
from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.limits import MediaLimits
from vl3edge.runtime.media.video import open_video


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The exit status, stdout and stderr of one command; never a traceback."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as e:  # argparse
        status = int(e.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return status, out, err


def assert_refused(media: str | Path, message: str) -> None:
    """As a video, here and in a process of its own, and as a picture."""
    for limits in (MediaLimits(), MediaLimits(isolate=True)):
        with pytest.raises(MediaError, match=message):
            open_video(media, limits=limits)
    with pytest.raises(MediaError, match=message):
        load_image(media)
