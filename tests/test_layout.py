"""Who may import whom, and what a real caption loads."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from vl3edge.runtime.media import video

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
    "llguidance",
}
DRAWING, DRAWN = {"matplotlib"}, {"charts.py", "picture.py"}
SERVING = {"starlette", "uvicorn", "prometheus_client"}  # of runtime/serve alone
SIBLINGS = {"runtime", "models", "quant", "export"}
MAY_IMPORT = {"runtime": set(), "models": {"runtime"}, "quant": {"models", "runtime"}, "export": SIBLINGS}


# The wings of runtime/ and export/ in the order in which they may import each other: each only those before it. Modules
# beside the folders are wings of their own.
RUNTIME_WINGS = (
    "errors",
    "terminal",
    "files",
    "host",
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
    "encoder",
    "live",
    "jobs",
    "chat",
    "loaded_bundle",
    "model",
    "captions",
    "embed",
    "roofline",
    "inspect",
    "evaluate",
    "compare",
    "bench",
    "ray",
    "serve",
    "cli",
)
EXPORT_WINGS = (
    "errors",
    "progress",
    "tensor_source",
    "onnx_writer",
    "staging",
    "parity",
    "calibrate",
    "graphs",
    "decoder_parity",
    "prompt_files",
    "vocabulary",
    "quantize",
    "tensorrt",
    "kernels",
    "options",
    "presets",
    "manifest",
    "disk_estimate",
    "vision_stage",
    "decoder_stage",
    "pipeline",
    "lora_option",
    "cli",
    "verify",
    "evaluate",
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


def test_files_named_in_docstrings_exist() -> None:
    """By their name, or by the end of their path."""
    files = [path.relative_to(ROOT) for package in sorted(SIBLINGS) for path in (ROOT / package).rglob("*.py")]
    other = [
        path.relative_to(ROOT) for folder in ("tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")
    ]
    whole = {f"/{file.as_posix()}" for file in [*files, *other, Path("vl3edge/__main__.py")]}
    for file in files:
        for named in re.findall(r"`([\w/]+\.py)`", (ROOT / file).read_text(encoding="utf-8")):
            assert any(path.endswith(f"/{named}") for path in whole), f"{file}: {named}"


def test_the_runtime_imports_only_its_own_dependencies() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        outside = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"vl3edge"}
        serving = SERVING if path.is_relative_to(ROOT / "runtime" / "serve") else set()
        assert outside <= RUNTIME | (DRAWING if path.name in DRAWN else set()) | serving, path


@pytest.mark.parametrize("package", sorted(SIBLINGS))
def test_packages_import_only_the_layers_below(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        siblings = {name.split(".")[1] for name in imports(path) if name.startswith("vl3edge.")}
        assert siblings - {package} <= MAY_IMPORT[package], path


def wing_imports(package: str) -> set[tuple[str, str]]:
    """(wing, wing it imports) of a package, by its relative imports."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        place = path.relative_to(ROOT / package).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*place[: len(place) - node.level], *(node.module or "").split(".")]
                named = base[:1] if base[0] else [alias.name for alias in node.names]
                found |= {(place[0], name) for name in named}
    return {(wing, other) for wing, other in found if wing not in (other, "__init__")}


@pytest.mark.parametrize(("package", "wings"), [("runtime", RUNTIME_WINGS), ("export", EXPORT_WINGS)])
def test_wings_import_only_those_before_them(package: str, wings: tuple[str, ...]) -> None:
    imported = wing_imports(package)
    assert len(imported) > 30  # the imports are seen at all
    wrong = sorted(pair for pair in imported if wings.index(pair[0]) <= wings.index(pair[1]))
    assert not wrong


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for package in sorted(SIBLINGS):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert len(places) > 200  # classes are seen at all
    assert not {name: where for name, where in places.items() if len(where) > 1}


@pytest.mark.parametrize("package", sorted(SIBLINGS))
def test_no_folder_is_a_corridor(package: str) -> None:
    folders = [ROOT / package, *(p for p in (ROOT / package).rglob("*") if p.is_dir() and p.name != "__pycache__")]
    modules = {str(f.relative_to(ROOT)): len(set(f.glob("*.py")) - {f / "__init__.py"}) for f in folders}
    assert not {folder: count for folder, count in modules.items() if count > 22}


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


PUBLIC = ("vl3edge.runtime", "vl3edge.runtime.live", "vl3edge.runtime.captions")


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module: str) -> None:
    public = importlib.import_module(module)
    assert public.__all__ == sorted(public.__all__, key=lambda name: (name.islower(), name))
    assert all(hasattr(public, name) for name in public.__all__)


# What callers get from one public name and give to another, without a use of their own.
PASSED_THROUGH = {
    "GenerationConfig.filled: GenerationSpec",
    "GenerationConfig.new_tokens: GenerationSpec",
    "Session.pull: Fetched",
    "SplicedPrompt.embeddings: EmbeddingTable",
}


def test_public_methods_take_and_return_public_types() -> None:
    modules = [importlib.import_module(name) for name in PUBLIC]
    public = {getattr(module, name) for module in modules for name in module.__all__}
    hidden = {
        f"{item.__name__}.{name}: {kind.__name__}"
        for item in public
        for name, member in [(item.__name__, item), *vars(item).items()]
        if not name.startswith("_")
        for kind in types_of(member)
        if kind not in public
    }
    assert hidden <= PASSED_THROUGH


def types_of(member: Any) -> Iterator[type]:
    """The project's own classes in the signature of a function, method or property."""
    function = getattr(member, "fget", None) or getattr(member, "__func__", member)
    if inspect.isfunction(function):
        waiting: list[Any] = list(get_type_hints(function, localns=vars(video)).values())
        while waiting:
            kind = waiting.pop()
            waiting += kind if isinstance(kind, list) else get_args(kind)
            if inspect.isclass(kind) and kind.__module__.startswith("vl3edge."):
                yield kind


@pytest.mark.parametrize("module", ["vl3edge", "vl3edge.runtime.cli.main"])
def test_the_command_runs_as_a_module(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", module]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("vl3edge ")
    done = subprocess.run([*command, "caption"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: vl3edge caption")
