"""The tokenizer of a checkpoint, as the text of a tokenizer.json, the only form that the runtime reads.

Checkpoints without that file have Qwen2's tokenizer in the older form (vocab.json, merges.txt and the added tokens of
tokenizer_config.json); it is converted here, with the same steps as transformers' Qwen2 tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from vl3edge.runtime.bundle.file_names import SPECIAL_TOKENS
from vl3edge.runtime.prompt.tokenizer import named_tokens

from .errors import CheckpointError
from .typed_json import Section

# How Qwen2 splits text into words before merging, a property of the model's vocabulary.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_TOKENS = dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")


def tokenizer_json(folder: Path) -> str:
    """The text of the checkpoint's tokenizer.json, or one made from its vocab.json and merges.txt.

    Raises CheckpointError if there is neither form, or it cannot be read.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        try:
            Tokenizer.from_str(text)
        except Exception as e:  # the tokenizers library raises bare Exception
            raise CheckpointError(f"{path} is not a usable tokenizer: {e}") from e
        return text
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.is_file() and merges.is_file()):
        raise CheckpointError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt")
    added = Section.read(folder / "tokenizer_config.json").section("added_tokens_decoder")
    ids = {int(key): added.section(key).values for key in added.values}
    return byte_level_bpe(
        vocab=Section.read(vocab).values,
        merges=_read_merges(merges),
        added=[AddedToken(**_token_fields(ids[key])) for key in sorted(ids)],
    ).to_str()


def special_tokens(folder: Path) -> dict[str, str]:
    """The tokens that chat templates call `eos_token`, `pad_token`, …, as transformers defines them for this
    checkpoint.

    tokenizer_config.json names them; older checkpoints, whose tokenizer_config.json has no added_tokens_decoder, in
    special_tokens_map.json too. Others have the default of the tokenizer's class.
    """
    settings = dict(Section.read_if_there(folder / SPECIAL_TOKENS).values)
    if "added_tokens_decoder" not in settings:
        settings |= Section.read_if_there(folder / "special_tokens_map.json").values
    for key in ("extra_special_tokens", "model_specific_special_tokens"):
        named = settings.get(key)
        settings |= named if isinstance(named, Mapping) else {}
    is_qwen = str(settings.get("tokenizer_class", "Qwen2Tokenizer")).startswith("Qwen2Tokenizer")
    return named_tokens({**(_QWEN_TOKENS if is_qwen else {}), **settings})


def byte_level_bpe(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Sequence[AddedToken]
) -> Tokenizer:
    """A tokenizer with Qwen2's steps; `added` get the ids after the vocabulary, in order."""
    tokenizer = Tokenizer(BPE(vocab=dict(vocab), merges=list(merges), byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(added))
    return tokenizer


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if bad := [pair for pair in pairs if len(pair) != 2]:
        raise CheckpointError(f"{path}: {' '.join(bad[0])!r} is not a pair of tokens")
    return [(first, second) for first, second in pairs]


def _token_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {key: fields[key] for key in known if key in fields}
