"""Writes the quantized decoder as an ordinary GPTQ checkpoint; the rest of the model is copied unchanged.

Names and layout stay those of the source checkpoint, so whatever loads the source (transformers' class, the authors'
code) loads the result, given GPTQ kernels. The output head and the embeddings are not quantized: few readers support a
quantized head, and fewer a tied one.

The settings go where each reader looks: `quantization_config` in config.json (transformers, vLLM) and
quantize_config.json (AutoGPTQ, GPTQModel). `desc_act` is false although columns were rounded in activation order: the
groups are static, so there is no order left for a reader to restore.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import Layout
from vl3edge.models.tensor_names import DECODER, stored_name
from vl3edge.runtime.files import written_folder

from .dequantized import Linears
from .errors import QuantError
from .grid import WHOLE_ROW
from .packing import ZeroFormat, to_gptq
from .plan import GROUPS

_SHARD_BYTES = 2_000_000_000
_WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".ckpt")
_CONFIG, _QUANTIZE_CONFIG = "config.json", "quantize_config.json"


def write_gptq_checkpoint(
    checkpoint: Checkpoint, linears: Linears, target: Path, zero_format: ZeroFormat = "v1"
) -> Path:
    """Writes the folder `target`, which must not exist yet, and returns it; it appears only when complete.

    Raises QuantError when target exists, a layer cannot be packed, or the disk is full.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise QuantError(f"{target} exists and will not be overwritten; choose another folder for the GPTQ checkpoint")
    target = target.resolve()
    try:
        with written_folder(target) as partial:
            _write_weights(checkpoint, linears, partial, zero_format)
            _copy_other_files(checkpoint.folder, partial)
            _write_settings(checkpoint, settings(linears, checkpoint.layout, zero_format), partial)
    except OSError as e:
        raise QuantError(f"cannot write {target}: {e}") from e
    return target


def settings(linears: Linears, layout: Layout, zero_format: ZeroFormat) -> dict[str, object]:
    """`quantization_config` for these layers; widths other than the commonest go into GPTQModel's `dynamic` rules.

    Raises QuantError when layers differ in group size, which the format cannot express.
    """
    bits: dict[str, int] = {}
    sizes: dict[int, set[int]] = {}  # group size -> widths of the layers that have it
    symmetric, ordered = True, False
    for name in _decoder_names(linears):
        linear = linears.linear(name)
        bits[name] = linear.bits
        sizes.setdefault(linear.group_size, set()).add(linear.in_features)
        symmetric &= linear.symmetric
        ordered |= linear.order is not None
    group_size = next(iter(sizes))
    if len(sizes) > 1:
        if any(widths != {size} for size, widths in sizes.items()):
            raise QuantError(f"a GPTQ checkpoint has one group size, and these layers have {sorted(sizes)}")
        group_size = WHOLE_ROW
    commonest = Counter(bits.values()).most_common(1)[0][0]
    dynamic = {
        f"+:.*{re.escape(stored_name(name, layout))}$": {"bits": number}
        for name, number in bits.items()
        if number != commonest
    }
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if zero_format == "v1" else "gptq_v2",
        "bits": commonest,
        "group_size": group_size,
        "sym": symmetric,
        "desc_act": ordered,
        "static_groups": not ordered,
        "true_sequential": True,
        "lm_head": False,
        "pack_dtype": "int32",
        # The quantized layers, for readers that would otherwise take every linear layer, even the vision encoder's.
        "block_name_to_quantize": stored_name(f"{DECODER}layers", layout),
        "modules_in_block_to_quantize": [list(group) for group in GROUPS],
        **({"dynamic": dynamic} if dynamic else {}),
        "meta": {"quantizer": ["vl3edge"]},
    }


def _decoder_names(linears: Linears) -> list[str]:
    return [name for name in linears.names if name.startswith(DECODER)]


def _write_weights(checkpoint: Checkpoint, linears: Linears, folder: Path, zero_format: ZeroFormat) -> None:
    """Shards of about 2 GB, each in memory only while it is written."""
    shard: dict[str, torch.Tensor] = {}
    shards: list[tuple[str, list[str]]] = []
    size = total = 0

    def flush() -> None:
        nonlocal size
        file = f"model-{len(shards) + 1:05d}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        shards.append((file, list(shard)))
        shard.clear()
        size = 0

    for name, tensor in _tensors(checkpoint, linears, zero_format):
        num_bytes = tensor.numel() * tensor.element_size()
        if shard and size + num_bytes > _SHARD_BYTES:
            flush()
        shard[name] = tensor
        size, total = size + num_bytes, total + num_bytes
    flush()
    if len(shards) == 1:
        (folder / shards[0][0]).rename(folder / "model.safetensors")
        return
    weight_map = {name: file for file, names in shards for name in names}
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _tensors(checkpoint: Checkpoint, linears: Linears, zero_format: ZeroFormat) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the result under its stored name."""
    layout = checkpoint.layout
    quantized = set(_decoder_names(linears))
    for name in checkpoint.names:
        stem, _, leaf = name.rpartition(".")
        if stem not in quantized:
            yield stored_name(name, layout), checkpoint.tensor(name).contiguous()
        elif leaf != "weight":  # the bias; kernels with float16 scales expect it in float16 as well
            yield stored_name(name, layout), checkpoint.tensor(name, torch.float16).contiguous()
    for name in sorted(quantized):
        packed = to_gptq(linears.linear(name), zero_format)
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            array = np.ascontiguousarray(getattr(packed, part))
            yield stored_name(f"{name}.{part}", layout), torch.from_numpy(array)


def _copy_other_files(source: Path, folder: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.endswith(_WEIGHT_FILES) and path.name not in (_CONFIG, _QUANTIZE_CONFIG):
            shutil.copyfile(path, folder / path.name)


def _write_settings(checkpoint: Checkpoint, values: Mapping[str, object], folder: Path) -> None:
    config = json.loads(checkpoint.file(_CONFIG).read_text(encoding="utf-8"))
    if not checkpoint.config.text.tie_word_embeddings:  # an adapter may have untied what the file ties
        for part in (config, config.get("text_config", {})):
            if "tie_word_embeddings" in part:
                part["tie_word_embeddings"] = False
    _write_json(folder / _CONFIG, {**config, "quantization_config": values})
    _write_json(folder / _QUANTIZE_CONFIG, values)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
