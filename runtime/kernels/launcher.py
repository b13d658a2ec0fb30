"""What runs kernels: a GPU through cuda-python, or on a CPU Triton's interpreter, for tests without a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..backends.buffers import Memory
from ..backends.onnxruntime import Backend
from ..bundle.bundle import Bundle
from ..bundle.kernel_set import KernelSet, KernelSpec, read_kernel_set
from ..bundle.tuning import TunedFor
from ..errors import BackendError, BundleError

_INTERPRETER = "vl3edge.export.kernels.interpreter"  # by name: the runtime imports no sibling


class Launcher(Protocol):
    """Kernels run one after the other, in the order of their launches.

    captures: whether `capture` makes a CUDA graph. description: what runs, in words.
    tuned_for: what a choice of tiles has to be for; None where nothing is tuned. prefers_dense: whether long prompts
    are read faster with weights unpacked once.
    """

    @property
    def memory(self) -> Memory: ...

    @property
    def captures(self) -> bool: ...

    @property
    def description(self) -> str: ...

    @property
    def tuned_for(self) -> TunedFor | None: ...

    @property
    def prefers_dense(self) -> bool: ...

    def launch(self, kernel: KernelSpec, grid: Sequence[int], arguments: Sequence[int]) -> None:
        """Starts one kernel; arguments: whole numbers and addresses, in the kernel's order."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What launches again all that `work` launches, with the same arguments; nothing has run when it returns."""
        ...


def open_launcher(backend: Backend, bundle: Bundle) -> tuple[KernelSet, Launcher]:
    """The bundle's kernels, and what runs them on this backend.

    Raises BundleError where the bundle has none, BackendError where something is missing.
    """
    if backend.device is not None:
        from .cuda_launcher import CudaLauncher

        kernels = read_kernel_set(bundle)
        return kernels, CudaLauncher(backend.device, kernels)
    try:
        interpreter: Any = importlib.import_module(_INTERPRETER)
    except (ImportError, AttributeError) as e:  # the latter is another version of Triton
        raise BackendError(
            f"on a CPU the kernels run in Triton's interpreter, for tests alone, and {e.name or e} is missing: "
            "pip install 'vl3edge[kernels]' and set TRITON_INTERPRET=1, or use --decoder onnxruntime"
        ) from e
    found: tuple[KernelSet, Launcher] = interpreter.open_interpreter(bundle)
    return found


class Catalogue:
    """The kernels of a bundle by what they compute, bound to what launches them."""

    def __init__(self, kernels: Sequence[KernelSpec], launcher: Launcher) -> None:
        self._launcher = launcher
        self._by_function: dict[str, list[KernelSpec]] = {}
        self._found: dict[Any, list[KernelSpec]] = {}
        for kernel in kernels:
            self._by_function.setdefault(kernel.function, []).append(kernel)

    def of(self, function: str) -> list[KernelSpec]:
        """All of a name, perhaps none."""
        return self._by_function.get(function, [])

    def variants(
        self, function: str, constants: Mapping[str, Any], types: Mapping[str, str] | None = None
    ) -> list[KernelSpec]:
        """All that have these constants and types of arguments, which differ in their tiles; BundleError if none."""
        key = (function, *constants.items(), *(types or {}).items())
        if key not in self._found:
            self._found[key] = self._search(function, constants, types or {})
        return self._found[key]

    def _search(self, function: str, constants: Mapping[str, Any], types: Mapping[str, str]) -> list[KernelSpec]:
        wanted, typed = constants.items(), types.items()
        found = [
            kernel
            for kernel in self._by_function.get(function, ())
            if wanted <= kernel.constants.items() and typed <= dict(kernel.arguments).items()
        ]
        if not found:
            raise BundleError(f"the bundle has no kernel {function} for {dict(constants)}. Export the bundle again.")
        return found

    def launch(self, kernel: KernelSpec, grid: Sequence[int], **arguments: int) -> None:
        """Starts a kernel with its arguments by name; those that are not given are 0, or null."""
        names = [name for name, _ in kernel.arguments]
        if unknown := arguments.keys() - set(names):
            raise BundleError(f"the kernel {kernel.function} has no {', '.join(sorted(unknown))}. Export it again.")
        self._launcher.launch(kernel, grid, [arguments.get(name, 0) for name in names])
