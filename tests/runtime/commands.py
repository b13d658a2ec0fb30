"""`vl3edge` called in this process, for tests of the command line."""

from __future__ import annotations

import pytest

from vl3edge.runtime.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The exit status, stdout and stderr of one command; never a traceback."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as e:  # argparse
        status = int(e.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return status, out, err
