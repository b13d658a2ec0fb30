"""A PEFT adapter on disk: which tensors of a checkpoint it changes, and how.

Its names may be those of either layout, whatever the checkpoint's: both are of one model. Everything that is stored has
to have a place and the right shape there, or nothing is merged: an adapter of another base, or a part of one, would
leave a model that only looks fine-tuned.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from vl3edge.runtime.bundle.bundle import hash_file
from vl3edge.runtime.bundle.specs import AdapterSpec

from ..checkpoint import Checkpoint
from ..config import Layout
from ..errors import CheckpointError
from ..hub import find_checkpoint
from ..safetensors_reader import TensorFiles
from ..tensor_names import EMBEDDINGS, LM_HEAD, Shape, canonical_name, expected_shapes, stored_name
from .change import Added, Change, LowRank, Rows, Stored, Whole, same_change
from .settings import FILE_NAME as SETTINGS
from .settings import LoraSettings, missing

WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_BESIDE = "non_lora_trainables.bin"  # what trainers of this family of models train beside an adapter
_PREFIX = "base_model.model."
# Saved by PEFT, names have no adapter's name in them; taken from a model in training, they do.
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|"
    r"token_adapter\.trainable_tokens_delta)(?:\.(?!(?:weight|bias)$)[^.]+)?(?P<bias>\.bias)?(?:\.weight)?"
)
_UNUSED = ".original_module."  # what a module held that is stored whole beside it
_SAME = 0.01  # embeddings saved beside an adapter may have been rounded to another type


@dataclass(frozen=True)
class LoraAdapter:
    """Use `LoraAdapter.open`. spec: what a manifest says about it."""

    settings: LoraSettings
    files: TensorFiles
    spec: AdapterSpec

    @classmethod
    def open(cls, path_or_hub_id: str | Path, weight: float = 1.0) -> LoraAdapter:
        """Opens a local folder or a hub id; raises CheckpointError if it is no LoRA adapter that can be merged."""
        if Path(path_or_hub_id).is_file():
            raise CheckpointError(f"{path_or_hub_id} is a file; give the adapter's folder, which holds {SETTINGS}")
        # This pickle is fetched to be refused: what is in it would be left out without a word.
        folder, commit = find_checkpoint(path_or_hub_id, besides=(_BESIDE,))
        settings = LoraSettings.read(folder / SETTINGS)
        file = folder / WEIGHTS
        pickle = next((folder / name for name in (_BESIDE, _PICKLED) if (folder / name).is_file()), None)
        if pickle is not None and (pickle.name == _BESIDE or not file.is_file()):
            raise CheckpointError(
                f"{pickle} is a pickle, and unpickling can run any code: save the adapter as {WEIGHTS}, with all that "
                "was trained, as peft's save_pretrained does, and remove the pickle"
            )
        if not file.is_file():
            raise CheckpointError(f"{file} does not exist")
        if other := min((path for path in folder.glob("*.safetensors") if path != file), default=None):
            raise CheckpointError(
                f"{other} would be left out: an adapter is merged of {WEIGHTS} alone; move it elsewhere"
            )
        name = f"{path_or_hub_id}@{commit}" if commit else folder.resolve().name
        spec = AdapterSpec(name, hash_file(file).sha256, hash_file(settings.file).sha256, weight)
        adapter = cls(settings, TensorFiles(file), spec)
        adapter._check_values()
        return adapter

    def changes(self, checkpoint: Checkpoint) -> dict[str, list[Change]]:
        """By canonical name, what happens to each tensor that the adapter changes.

        Raises CheckpointError, naming the file and the tensor, unless all of the adapter fits the checkpoint.
        """
        return _Reading(self, checkpoint).changes()

    def _check_values(self) -> None:
        for key in self.files:
            tensor = self.files.tensor(key)
            if not tensor.is_floating_point():
                raise CheckpointError(f"{self.files.file(key)}: {key} is {self.files.dtype(key)}, not of floats")
            if not bool(torch.isfinite(tensor.float()).all()):  # float8 has no isfinite of its own
                raise CheckpointError(
                    f"{self.files.file(key)}: {key} holds NaN or infinity: it is damaged, or the training diverged"
                )
        self.files.release()


class _Reading:
    """One call of `LoraAdapter.changes`."""

    def __init__(self, adapter: LoraAdapter, checkpoint: Checkpoint) -> None:
        self.settings, self.files, self.weight = adapter.settings, adapter.files, adapter.spec.weight
        self.checkpoint = checkpoint
        self.shapes = expected_shapes(checkpoint.config)
        self.file = adapter.settings.file.parent / WEIGHTS
        self.parts: dict[str, dict[str, Stored]] = defaultdict(dict)  # by module, as the adapter names it
        self.found: dict[str, list[Change]] = {}

    def changes(self) -> dict[str, list[Change]]:
        for key in self.files:
            name = key.removeprefix(_PREFIX)
            if match := _PART.fullmatch(name):
                part = match["part"] + (match["bias"] or "")
                self._once(part in self.parts[match["module"]], key)
                self.parts[match["module"]][part] = Stored(self.files, key)
            elif _UNUSED not in f".{name}":
                self._whole(name, key)
        for module, parts in self.parts.items():
            self._low_rank(module, parts)
        self._check_saved()
        if not self.found:
            raise CheckpointError(f"{self.file} changes nothing: it holds no tensors of an adapter")
        if self.checkpoint.config.text.tie_word_embeddings:
            self._tie()
        return self.found

    def _whole(self, name: str, key: str) -> None:
        """A module or bias that was trained as it is, or embeddings that only lie beside their adapter."""
        places = [name, re.sub(r"\.modules_to_save\b", "", name), re.sub(r"\.modules_to_save\.[^.]+", "", name)]
        beside = name.endswith(".base_layer.weight")
        tensor = self._canonical([re.sub(r"\.base_layer\.(weight|bias)$", r".\1", place) for place in places], key)
        stored = self._fitting(key, self.shapes[tensor])
        if beside:
            self._check_base(tensor, stored)
        elif tensor in self.found:
            before = self.found[tensor][0]
            self._once(not isinstance(before, Whole) or not torch.equal(before.stored.read(), stored.read()), key)
        else:
            self.found[tensor] = [Whole(stored)]

    def _low_rank(self, module: str, parts: dict[str, Stored]) -> None:
        key = next(iter(parts.values())).key
        tensor = self._canonical([f"{module}.weight"], key)
        self._once(tensor in self.found, key)
        shape = self.shapes[tensor]
        embedding = any("embedding" in part for part in parts)
        if (rows := parts.pop("token_adapter.trainable_tokens_delta", None)) is not None:
            self._once(bool(parts), key)
            self.found[tensor] = [self._rows(tensor, module, rows)]
            return
        down, up = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        wanted = (down, up, *(("lora_magnitude_vector",) if self.settings.dora else ()))
        if absent := [part for part in wanted if part not in parts]:
            raise missing(self.file, f"{absent[0]} of {module}")
        if extra := parts.keys() - {*wanted, "lora_B.bias"}:
            raise CheckpointError(f"{parts[min(extra)].key} in {self.file} is not of what {SETTINGS} says")
        rank, scale = self.settings.rank_of(module), self.settings.scale_of(module, self.weight)
        if tensor == LM_HEAD and self.settings.keeps_tie:
            rank = self.files.shape(parts[down].key)[0]  # that of the embeddings, whatever pattern names the head
        if embedding:
            shapes = {down: (rank, shape[0]), up: (shape[1], rank), "lora_magnitude_vector": shape[1:]}
        else:
            ones = (1,) * (len(shape) - 2)  # of a convolution
            length = (1, shape[0], *ones) if ones else shape[:1]
            shapes = {down: (rank, *shape[1:]), up: (shape[0], rank, *ones), "lora_magnitude_vector": length}
        fitting = {part: self._fitting(parts[part].key, shapes[part]) for part in wanted}
        magnitude = fitting.get("lora_magnitude_vector")
        self.found[tensor] = [LowRank(fitting[down], fitting[up], scale, magnitude, embedding)]
        if (bias := parts.get("lora_B.bias")) is not None:
            target = self._canonical([f"{module}.bias"], bias.key)
            added = Added(self._fitting(bias.key, self.shapes[target]), scale)
            self.found.setdefault(target, []).append(added)

    def _rows(self, tensor: str, module: str, stored: Stored) -> Rows:
        tokens = self.settings.tokens_of(module)
        if tokens is None:
            raise missing(self.settings.file, f"the tokens of {module} in trainable_token_indices")
        if tokens and max(tokens) >= self.shapes[tensor][0]:
            raise CheckpointError(f"{self.settings.file}: token {max(tokens)} is outside the checkpoint's vocabulary")
        return Rows(self._fitting(stored.key, (len(tokens), self.shapes[tensor][1])), tokens)

    def _tie(self) -> None:
        """Head and embeddings are one tensor: what was trained as one stays one.

        Rows of the embeddings were trained in both, beside what else the head has; low-rank changes and whole tensors
        only if the settings say so and what is stored of both is the same. (DoRA has lengths of its own in each; and a
        model that was moved to a GPU trains two copies.) Anything else was trained with the other one as it is, so they
        are two tensors from then on. (PEFT unties what is stored whole; a low-rank change it merges into the shared
        tensor, and warns that this is not what was trained.)
        """
        embeddings, head = self.found.get(EMBEDDINGS, []), self.found.get(LM_HEAD, [])
        if any(isinstance(change, Rows) for change in embeddings):
            if not any(isinstance(change, Rows | Whole) for change in head):
                self.found[LM_HEAD] = embeddings + head
        elif self.settings.keeps_tie:
            both = embeddings or head
            if not (embeddings and head) or same_change(embeddings[0], head[0]):
                self.found |= {EMBEDDINGS: both, LM_HEAD: both}

    def _canonical(self, names: list[str], key: str) -> str:
        """The checkpoint's tensor of the first name that is one; raises CheckpointError if there is none."""
        layouts = (self.checkpoint.layout, *get_args(Layout))
        for name in names:
            for layout in layouts:
                if (tensor := canonical_name(name, layout)) in self.shapes:
                    self._check_float(tensor)
                    return tensor
        raise CheckpointError(
            f"{self.file}: {key} fits no tensor of {self.checkpoint.folder}: the adapter is for another model, or of a "
            "kind that cannot be merged"
        )

    def _check_float(self, tensor: str) -> None:
        if tensor not in self.checkpoint and tensor not in (EMBEDDINGS, LM_HEAD):
            raise CheckpointError(
                f"{self.checkpoint.folder} holds {tensor} quantized: merge into the checkpoint it was made from"
            )

    def _fitting(self, key: str, shape: Shape) -> Stored:
        if self.files.shape(key) != shape:
            raise CheckpointError(
                f"{self.file}: {key} is {list(self.files.shape(key))}, not {list(shape)}: the adapter was trained on "
                f"another model than {self.checkpoint.folder}, or its {SETTINGS} is another one's"
            )
        return Stored(self.files, key)

    def _check_base(self, tensor: str, stored: Stored) -> None:
        """PEFT saves embeddings that have an adapter beside it; they show whether the base is the same."""
        base, beside = self.checkpoint.tensor(tensor, torch.float32), stored.read()
        if float((base - beside).abs().max()) > _SAME * float(base.abs().max()):
            raise CheckpointError(
                f"{self.file}: {stored.key} is not that of {self.checkpoint.folder}: the adapter was trained on "
                "another model"
            )

    def _check_saved(self) -> None:
        """Every tensor of the modules that were to be stored whole has to be there."""
        for tensor in self.shapes:
            names = {f".{stored_name(tensor, layout)}" for layout in get_args(Layout)}
            for module in self.settings.modules_to_save:
                if tensor not in self.found and any(f".{module}." in name for name in names):
                    raise missing(self.file, f"{tensor}, of {module} in modules_to_save")

    def _once(self, again: bool, key: str) -> None:
        if again:
            raise CheckpointError(f"{self.file} holds two changes of one tensor, {key} is the second")
