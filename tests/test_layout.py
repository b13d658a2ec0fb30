"""Who may import whom, and what a real caption loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Modules each package may import from outside itself, the standard library apart.
RUNTIME = {
    "numpy",
    "av",
    "PIL",
    "tokenizers",
    "jinja2",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "pyarrow",
    "pillow_heif",
}
DRAWING, DRAWN = {"matplotlib"}, {"charts.py", "picture.py"}
SIBLINGS = {"runtime", "models", "quant", "export"}
MAY_IMPORT = {"runtime": set(), "models": {"runtime"}, "quant": {"models", "runtime"}, "export": SIBLINGS}


# The wings of runtime/ and export/ in the order in which they may import each other: each only those before it. Modules
# beside the folders are wings of their own.
RUNTIME_WINGS = (
    "errors",
    "terminal",
    "files",
    "host",
    "host_cpu",
    "host_trim",
    "bundle",
    "config",
    "media",
    "backends",
    "prompt",
    "decode",
    "kernels",
    "memory_estimate",
    "memory_budget",
    "vision",
    "live",
    "jobs",
    "chat",
    "model",
    "captions",
    "roofline",
    "roofline_workload",
    "inspect",
    "bench",
    "ray",
    "cli",
)
EXPORT_WINGS = (
    "errors",
    "tensor_source",
    "onnx_writer",
    "staging",
    "parity",
    "calibrate",
    "graphs",
    "decoder_parity",
    "prompt_files",
    "quantize",
    "tensorrt",
    "kernels",
    "pipeline",
    "cli",
    "verify",
)


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports absolutely, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return found


def test_the_runtime_imports_only_its_own_dependencies() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        outside = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"vl3edge"}
        assert outside <= RUNTIME | (DRAWING if path.name in DRAWN else set()), path


@pytest.mark.parametrize("package", sorted(SIBLINGS))
def test_packages_import_only_the_layers_below(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        siblings = {name.split(".")[1] for name in imports(path) if name.startswith("vl3edge.")}
        assert siblings - {package} <= MAY_IMPORT[package], path


def test_a_caption_loads_neither_torch_nor_transformers_nor_onnx(bundle: Path, media: Path) -> None:
    code = """
import sys
from vl3edge.runtime.cli.main import main
assert main(["caption", sys.argv[1], "-m", sys.argv[2], "--max-frames", "2", "--max-new-tokens", "4"]) == 0
heavy = {"torch", "transformers", "onnx", "matplotlib", "safetensors"}
heavy |= {"vl3edge.export", "vl3edge.models", "vl3edge.quant"}
assert "onnxruntime" in sys.modules
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
assert not heavy & set(sys.modules)
"""
    command = [sys.executable, "-c", code, str(media / "nasa_13013.mp4"), str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_runtime_loads_no_backend() -> None:
    code = "import sys, vl3edge.runtime; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names() -> None:
    import vl3edge.runtime

    names = vl3edge.runtime.__all__
    assert names == sorted(names)
    assert all(hasattr(vl3edge.runtime, name) for name in names)


@pytest.mark.parametrize("module", ["vl3edge", "vl3edge.runtime.cli.main"])
def test_the_command_runs_as_a_module(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", module]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("vl3edge ")
    done = subprocess.run([*command, "caption"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: vl3edge caption")
