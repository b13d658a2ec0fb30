"""Adapters as PEFT trains and saves them, with random weights: what `--lora` reads, and PEFT's own merge of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import load_reference, transformers_module

Tensors = dict[str, torch.Tensor]
LINEAR = r".*(layers\.\d+\.(self_attn|mlp)\.(\w+_proj|fc\d)|readout\.[02])"
ALL_PARTS = rf"{LINEAR}|.*patch_embedding"


def peft_module() -> Any:
    """peft, which imports transformers and so needs what that needs."""
    pytest.importorskip("transformers")
    transformers_module()
    return pytest.importorskip("peft")


@contextmanager
def quietly() -> Iterator[None]:
    """PEFT warns of tied embeddings, and of adapters that are merged or saved beside them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lora_model(checkpoint: Path, seed: int = 0, **settings: Any) -> Any:
    """transformers' model of a checkpoint in PEFT's wrapper, everything that trains made random."""
    peft = peft_module()
    with quietly():
        model = peft.get_peft_model(load_reference(checkpoint), peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            if "magnitude" in name:
                parameter.data *= 1 + 0.2 * noise
            else:
                parameter.data += 0.1 * noise  # in place, as optimizers do: some of PEFT's parameters share memory
    return model.eval()


def save_adapter(checkpoint: Path, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """An adapter's folder, as `save_pretrained` writes it."""
    with quietly():
        lora_model(checkpoint, seed, **settings).save_pretrained(folder)
    return folder


def peft_answering(checkpoint: Path, adapter: Path) -> Any:
    """The model with its adapter beside it, not merged: as it was trained."""
    peft = peft_module()
    with quietly():
        return peft.PeftModel.from_pretrained(load_reference(checkpoint), adapter).eval()


def peft_merged(checkpoint: Path, adapters: Sequence[tuple[Path, float]], untied: bool = False) -> Tensors:
    """The weights after PEFT's merge of adapters in turn, each scaled by its weight.

    untied: embeddings and head are made two before, as PEFT advises for tied models.
    """
    peft = peft_module()
    base = load_reference(checkpoint)
    if untied:
        base.config.tie_word_embeddings = base.config.text_config.tie_word_embeddings = False
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.clone())
    names = [f"adapter{i}" for i in range(len(adapters))]
    with quietly():
        model = peft.PeftModel.from_pretrained(base, adapters[0][0], adapter_name=names[0])
        for name, (folder, _) in zip(names[1:], adapters[1:], strict=True):
            model.load_adapter(folder, name)
        for name, (_, weight) in zip(names, adapters, strict=True):
            for module in model.modules():
                if isinstance(module, peft.tuners.lora.LoraLayer):
                    module.set_scale(name, weight)
        merged = model.merge_and_unload(adapter_names=names)
    return {name: tensor.detach() for name, tensor in merged.state_dict().items()}
