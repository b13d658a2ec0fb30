"""What the CPU can do that decides between two correct ways to compute."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni"}


@cache
def adds_8_bit_products_exactly() -> bool:
    """Whether uint8 · int8 products are known to be added in 32 bits, which Linux says of x86 CPUs with VNNI.

    Older x86 CPUs add them in pairs in 16 bits, which can overflow. False where it is not known.
    """
    try:
        lines = CPUINFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not _VNNI.isdisjoint(flags)
