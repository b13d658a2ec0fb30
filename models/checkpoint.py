"""A VideoLLaMA3 checkpoint on disk: its configuration, its tensors under canonical names, its text files.

Both published layouts open the same way, and both are checked in full when they are opened: every missing, unexpected
and wrongly shaped tensor is named in one error.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from vl3edge.runtime.bundle.specs import AdapterSpec

from .config import Layout, ModelConfig
from .config_reader import read_config
from .errors import CheckpointError
from .hub import find_checkpoint
from .safetensors_reader import TensorFiles
from .tensor_names import DECODER, EMBEDDINGS, LM_HEAD, Shape, canonical_name, expected_shapes, is_derived
from .tokenizer_files import special_tokens, tokenizer_json
from .typed_json import Section

_FLOATS = ("F32", "F16", "BF16")
_GPTQ_OPTIONAL = ("g_idx", "bias")
_GPTQ_BITS = (2, 3, 4, 8)
_TOLD = 10  # problems in one message
_PEFT = re.compile(r"base_model\.model\.|\.(lora_|base_layer\.|modules_to_save\.)")  # names that PEFT gives tensors
_ADAPTER = "adapter_config.json"


class Checkpoint:
    """Use `Checkpoint.open`.

    folder: where the files are; commit: the hub commit they are pinned to, or None for a local folder.
    config: what the files say; `config.text.tie_word_embeddings` is what actually holds (see `_effective_tie`).
    adapters: those that are merged into it, see `lora/merged.py`.
    """

    adapters: tuple[AdapterSpec, ...] = ()

    def __init__(self, folder: Path, config: ModelConfig, files: TensorFiles, commit: str | None) -> None:
        self.folder = folder
        self.commit = commit
        self.files = files
        self._stored: dict[str, str] = {}
        for stored in files:
            name = canonical_name(stored, config.layout)
            if is_derived(name):
                continue
            if name in self._stored:
                raise CheckpointError(f"{folder}: {self._stored[name]} and {stored} are the same tensor ({name})")
            self._stored[name] = stored
        self.config = config
        self.validate()
        self.config = replace(config, text=replace(config.text, tie_word_embeddings=self._effective_tie()))

    @classmethod
    def open(cls, path_or_hub_id: str | Path, revision: str | None = None) -> Checkpoint:
        """Opens and validates a local folder or a hub id ("owner/name", at `revision` or its newest commit).

        Raises CheckpointError if it cannot be used, naming the file and the key or tensor.
        """
        folder, commit = find_checkpoint(path_or_hub_id, revision)
        if (folder / _ADAPTER).is_file() and not TensorFiles.has_model(folder):
            raise CheckpointError(
                f"{folder} holds a PEFT adapter ({_ADAPTER}) without the model it was trained on: "
                f"give that model as the checkpoint, with --lora {folder}"
            )
        return cls(folder, read_config(folder), TensorFiles(folder), commit)

    @property
    def layout(self) -> Layout:
        return self.config.layout

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the tensors that are stored."""
        return tuple(self._stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor by its canonical name, memory-mapped (read-only) unless `dtype` asks for a conversion.

        For tied embeddings, both names give the stored one.

        Raises CheckpointError if there is no such tensor.
        """
        tensor = self.files.tensor(self._stored[self._resolve(name)])
        return tensor if dtype is None else tensor.to(dtype)

    def stored_name(self, name: str) -> str:
        """A tensor's name in the files; raises CheckpointError if there is none."""
        return self._stored[self._resolve(name)]

    def release(self) -> None:
        """Releases the memory of everything read so far, before something else needs it."""
        self.files.release()

    def shape(self, name: str) -> Shape:
        """Shape of a tensor, without reading it."""
        return self.files.shape(self._stored[self._resolve(name)])

    def file(self, name: str) -> Path:
        """The path of one of the checkpoint's files; raises CheckpointError if it is missing."""
        path = self.folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist")
        return path

    def tokenizer_json(self) -> str:
        """The tokenizer, as the text of a tokenizer.json; see `tokenizer_files.py`."""
        return tokenizer_json(self.folder)

    def special_tokens(self) -> dict[str, str]:
        """The special tokens by the names that chat templates use; see `tokenizer_files.py`."""
        return special_tokens(self.folder)

    def chat_template(self) -> str:
        """The Jinja source of the chat template, wherever the checkpoint keeps it."""
        jinja = self.folder / "chat_template.jinja"
        if jinja.is_file():
            return jinja.read_text(encoding="utf-8")
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            section = Section.read_if_there(self.folder / name)
            if "chat_template" in section:
                return _template_text(section)
        raise CheckpointError(
            f"{self.folder} has no chat template: neither chat_template.jinja nor a chat_template key in "
            "chat_template.json, processor_config.json or tokenizer_config.json"
        )

    def validate(self) -> None:
        """Compares every tensor with the configuration.

        Raises CheckpointError, naming missing, unexpected, wrongly shaped and wrongly typed tensors in one message, at
        most ten.
        """
        if wrapped := [stored for stored in self._stored.values() if _PEFT.search(stored)]:
            raise CheckpointError(
                f"{self.folder} holds a PEFT model that was not merged: {len(wrapped)} tensors have names like "
                f"{wrapped[0]}; load it with peft, merge_and_unload(), save_pretrained(), and export that folder"
            )
        required, optional = self._required()
        problems = []
        for name in required.keys() - self._stored.keys():
            problems.append(f"missing: {name}")
        for name in self._stored.keys() - required.keys() - optional:
            problems.append(f"unexpected: {name} (stored as {self._stored[name]})")
        for name in self._stored.keys() & required.keys():
            stored = self._stored[name]
            if self.files.shape(stored) != required[name]:
                problems.append(f"wrong shape: {name} is {list(self.files.shape(stored))}, not {list(required[name])}")
            if not name.endswith((".qweight", ".qzeros")) and self.files.dtype(stored) not in _FLOATS:
                problems.append(f"wrong type: {name} is {self.files.dtype(stored)}, not one of {', '.join(_FLOATS)}")
        if problems:
            more = [f"and {len(problems) - _TOLD} more"] if len(problems) > _TOLD else []
            listed = "\n  ".join(sorted(problems)[:_TOLD] + more)
            raise CheckpointError(f"{self.folder}: {len(problems)} tensors do not match config.json:\n  {listed}")

    def _required(self) -> tuple[dict[str, Shape], set[str]]:
        """Shapes of required tensors, and names of optional ones."""
        shapes = expected_shapes(self.config)
        optional: set[str] = set()
        if self.config.text.tie_word_embeddings:
            # Either one suffices; transformers ties the missing one to the other.
            if LM_HEAD not in self._stored:
                del shapes[LM_HEAD]
            elif EMBEDDINGS not in self._stored:
                del shapes[EMBEDDINGS]
        if self.config.quantization is not None:
            method = self.config.quantization.get("quant_method", "gptq")
            if method != "gptq":
                raise CheckpointError(f"{self.folder}: quantized by {method!r}; of those, only 'gptq' can be read")
            for name in [name for name in shapes if name.startswith(DECODER) and f"{name[:-6]}qweight" in self._stored]:
                layer = name.removesuffix("weight")
                shapes |= self._gptq_shapes(layer, shapes.pop(name))
                optional |= {layer + part for part in _GPTQ_OPTIONAL}
        return shapes, optional

    def _gptq_shapes(self, layer: str, weight: Shape) -> dict[str, Shape]:
        """Shapes of a packed layer: 32-bit words along the inputs, zero points along the outputs.

        The bit width is inferred, since it may differ between layers.
        """
        section = Section(self.config.quantization or {}, self.folder / "config.json", "quantization_config")
        common = section.one_of("bits", _GPTQ_BITS, 4)
        group_size = section.integer("group_size", 128, at_least=-1)
        outputs, inputs = weight
        words = self.files.shape(self._stored[f"{layer}qweight"])[0]
        bits = next((bits for bits in _GPTQ_BITS if inputs * bits // 32 == words), common)
        groups = 1 if group_size <= 0 else -(-inputs // group_size)
        return {
            f"{layer}qweight": (inputs * bits // 32, outputs),
            f"{layer}qzeros": (groups, outputs * bits // 32),
            f"{layer}scales": (groups, outputs),
        }

    def _effective_tie(self) -> bool:
        """Whether embeddings and head are one tensor.

        As in transformers, a stored head that differs from the embeddings overrides the configuration.
        """
        if not self.config.text.tie_word_embeddings or not {LM_HEAD, EMBEDDINGS} <= self._stored.keys():
            return self.config.text.tie_word_embeddings
        head, embeddings = self.tensor(LM_HEAD), self.tensor(EMBEDDINGS)
        if head.dtype == embeddings.dtype and torch.equal(head, embeddings):
            return True
        warnings.warn(
            f"{self.folder}: config.json ties the embeddings, but a different {LM_HEAD} is stored and used",
            stacklevel=4,
        )
        return False

    def _resolve(self, name: str) -> str:
        if name in self._stored:
            return name
        other = {LM_HEAD: EMBEDDINGS, EMBEDDINGS: LM_HEAD}.get(name)
        if other in self._stored and self.config.text.tie_word_embeddings:
            return other
        raise CheckpointError(f"{self.folder} holds no tensor {name}")


def _template_text(section: Section) -> str:
    """One template, or the default one of a list of named templates."""
    template = section.values["chat_template"]
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        raise section.error("chat_template", "must be a string, or a list with one named 'default'")
    return template
