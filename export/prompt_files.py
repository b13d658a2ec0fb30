"""Writes the files that prompts are made with, and tries the chat template before the export spends minutes."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.runtime.bundle.file_names import SPECIAL_TOKENS
from vl3edge.runtime.bundle.manifest import Manifest
from vl3edge.runtime.errors import BundleError, ConfigError
from vl3edge.runtime.prompt.chat_template import MediaItem, PromptTemplate
from vl3edge.runtime.prompt.sandbox import TemplateRefusal
from vl3edge.runtime.prompt.tokenizer import Tokenizer
from vl3edge.runtime.terminal import one_line

from .errors import ExportError

_SYSTEM = [{"role": "system", "content": "Answer in one sentence."}]
_TRIAL: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": [{"type": "text", "text": "And then?"}]},
]
_MEDIA = [MediaItem("image", (0.0,)), MediaItem("video", (0.0, 1.0))]


def write_prompt_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the tokenizer, the names of its special tokens, and the chat template."""
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(checkpoint.chat_template(), encoding="utf-8")
    names = json.dumps(checkpoint.special_tokens(), indent=1, ensure_ascii=False)
    (folder / SPECIAL_TOKENS).write_text(names + "\n", encoding="utf-8")


def try_chat_template(checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Compiles the chat template and renders a conversation of several turns with an image, a video and instructions.

    A template that rejects system messages is usable without them, with a warning.
    Raises ExportError, in one line, for a template that cannot be compiled or rendered, or that omits media.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_prompt_files(checkpoint, Path(folder))
        try:
            tokenizer = Tokenizer(Path(folder) / "tokenizer.json")
            source = checkpoint.chat_template()
            template = PromptTemplate(source, tokenizer, manifest.tokens, manifest.layout)
            try:
                template.pieces(_SYSTEM + _TRIAL, _MEDIA)
            except ConfigError as e:
                if not isinstance(e.__cause__, TemplateRefusal):
                    raise
                template.pieces(_TRIAL, _MEDIA)
                warnings.warn(
                    f"the chat template does not accept system messages: {one_line(str(e.__cause__))}", stacklevel=2
                )
        except (BundleError, ConfigError) as e:
            why = one_line(str(e).removesuffix(" Export the bundle again."))
            raise ExportError(f"{checkpoint.folder}: prompts cannot be made: {why}") from e
