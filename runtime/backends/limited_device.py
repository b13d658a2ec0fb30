"""A GPU of which only so much memory may be taken, as if it had no more."""

from __future__ import annotations

from typing import Any, cast

from ..errors import BackendError
from .cuda import Device


class _LimitedDevice:
    """What a device has free is what is left of the limit; all who ask for memory make do with that, or are refused."""

    def __init__(self, device: Device, limit_bytes: int) -> None:
        self._device = device
        self._limit_bytes = limit_bytes
        self._free_before = device.free_bytes()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def free_bytes(self) -> int:
        free = self._device.free_bytes()
        return max(0, min(free, self._limit_bytes - (self._free_before - free)))

    def allocate(self, num_bytes: int) -> int:
        free = self.free_bytes()
        if num_bytes > free:
            raise BackendError(
                f"{num_bytes:,} bytes of GPU memory do not fit the {free:,} that are left of the limit given "
                "(memory_limit, --memory-limit)"
            )
        return self._device.allocate(num_bytes)


def limited(device: Device, limit_bytes: int) -> Device:
    """The device, with so much memory from now on, of what is free.

    What anybody takes counts, ONNX Runtime with its weights and activations and other processes included.
    """
    return cast(Device, _LimitedDevice(device, limit_bytes))
