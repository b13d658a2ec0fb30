"""What /proc/cpuinfo says of a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from vl3edge.runtime import host as cpu_features

XEON = "processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f {}\nbugs\t\t: \n\nprocessor\t: 1\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("text", "exactly"),
    [
        (XEON.format("avx512_vnni"), True),
        (XEON.format("avx_vnni"), True),
        (XEON.format("avx512bw"), False),
        (ARM, False),
    ],
)
def test_vnni(text: str, exactly: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu_features, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu_features.adds_8_bit_products_exactly.__wrapped__() is exactly


def test_a_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features, "CPUINFO", tmp_path / "nothing")
    assert cpu_features.adds_8_bit_products_exactly.__wrapped__() is False
