"""Chat templates give transformers' own prompt: its tags, its filters, the variables it passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference import transformers_module
from resealing import reseal

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.tokenizer_files import special_tokens
from vl3edge.runtime.bundle.bundle import open_bundle
from vl3edge.runtime.bundle.file_names import SPECIAL_TOKENS
from vl3edge.runtime.bundle.specs import TokenSpec
from vl3edge.runtime.errors import BundleError, ConfigError
from vl3edge.runtime.prompt.chat_template import PromptTemplate
from vl3edge.runtime.prompt.tokenizer import Tokenizer

MESSAGES = [
    {"role": "system", "content": "Ünïcode & <b>'quotes'</b> \"double\" \\ 🙂\n\ttab"},
    {"role": "user", "content": [{"type": "text", "text": "é < & > '"}, {"type": "text", "text": "日本語"}]},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "And?"},
]
BODY = "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}{{ m['content'] }}{{ '<|im_end|>' }}{% endfor %}"
LOOP = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% continue %}{% endif %}{{ loop.index }}{{ m['role'] }}"
)
TEMPLATES = {
    "special tokens": BODY + "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ sep_token }}",
    "which are there": "{{ bos_token is defined }}{{ pad_token is none }}{{ unk_token is defined }}",
    "eos in a sum": "{{ eos_token + pad_token ~ eos_token }}" + BODY,
    "tools and documents": "{{ tools }}{{ documents }}{{ tools is none }}{{ add_generation_prompt }}",
    "nothing else": "{{ other is defined }}{{ chat_template is defined }}",
    "JSON": "{{ messages | tojson }}",
    "JSON indented": "{{ messages | tojson(indent=2) }}",
    "JSON indented by tabs": "{{ messages | tojson(indent='\t') }}",
    "JSON in ASCII": "{{ messages | tojson(ensure_ascii=True) }}{{ messages | tojson(true) }}",
    "JSON, all arguments": "{{ {'b': {'é': [1, 2.5, none, true]}, 'a': []} | tojson(false, 3, [',', ':'], true) }}",
    "JSON separators": "{{ {'b': [1, {}], 'a': '<&>'} | tojson(separators=(' ; ', ' = '), sort_keys=True) }}",
    "JSON of each": "{{ messages | map('tojson') | join('\n') }}{{ 'é' | tojson }}{{ 3 | tojson }}{{ none | tojson }}",
    "continue": LOOP + "{% endfor %}",
    "break": LOOP + "{% if loop.index > 2 %}{% break %}{% endif %}{% else %}none{% endfor %}",
    "break of the inner": "{% for a in [1, 2] %}{% for b in [1, 2, 3] %}{% if b == a %}{%- break -%}{% endif %}{{ a }}"
    "{{ b }}{% endfor %}{{ a }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.role }}{% endif %}{% endfor %}",
    "generation keeps its names": "{% set x = 1 %}{% set n = namespace(y=1) %}{% generation %}{% set x = 2 %}"
    "{% set n.y = 2 %}{{ x }}{% endgeneration %}{{ x }}{{ n.y }}",
    "generation and blanks": "a\n {%- generation -%}\n b \n{% endgeneration %}\n c{% generation %}d{% endgeneration %}",
    "generation in loops": "{% for m in messages %}{% generation %}{{ loop.index }}{% if loop.last %}!{% endif %}"
    "{% endgeneration %}{% endfor %}",
    "set block": "{% set x %}{% for m in messages %}{{ m.role }},{% endfor %}{% endset %}{{ x }}{{ x | length }}",
    "set block filtered": "{% set x | upper %}a{{ eos_token }}{% endset %}{{ x }}{% set x %}{{ x }}{% endset %}{{ x }}",
}


@pytest.fixture(scope="module", params=["TokenizersBackend", "Qwen2Tokenizer", "older", "named"])
def folder(request: pytest.FixtureRequest, checkpoints: Callable[..., Path], tmp_path_factory: Any) -> Path:
    """A checkpoint whose files name their special tokens in one of the ways that there are."""
    folder = Path(shutil.copytree(checkpoints("tiny"), tmp_path_factory.mktemp("tokens") / "c"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    content = {"content": "<|im_end|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    if request.param == "Qwen2Tokenizer":  # some are the class's own
        settings = {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": {**content, "__type": "AddedToken"},
            "unk_token": None,
        }
    elif request.param == "older":
        names = {"eos_token": content, "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]}
        (folder / "special_tokens_map.json").write_text(json.dumps(names))
    elif request.param == "named":
        settings |= {
            "bos_token": "<|im_start|>",
            "pad_token": "<|endoftext|>",
            "extra_special_tokens": {"sep_token": "é"},
        }
    (folder / SPECIAL_TOKENS).write_text(json.dumps(settings))
    return folder


def rendered(folder: Path, template: str, messages: list[dict[str, Any]], tmp_path: Path) -> str:
    """The prompt as one text, from files as a bundle has them."""
    config = Checkpoint.open(folder).config
    shutil.copy(folder / "tokenizer.json", tmp_path)
    (tmp_path / SPECIAL_TOKENS).write_text(json.dumps(special_tokens(folder)))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    tokens = TokenSpec(config.image_token_id, config.video_token_id, config.eos_token_ids)
    pieces = PromptTemplate(template, tokenizer, tokens, "transformers").pieces(messages, [], False)
    return "".join(tokenizer.token(piece) if isinstance(piece, int) else str(piece) for piece in pieces)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_transformers(folder: Path, tmp_path: Path, name: str) -> None:
    tokenizer = transformers_module().AutoTokenizer.from_pretrained(folder)
    theirs = tokenizer.apply_chat_template(MESSAGES, chat_template=TEMPLATES[name], tokenize=False)
    assert rendered(folder, TEMPLATES[name], MESSAGES, tmp_path) == theirs


def test_names_are_transformers(folder: Path) -> None:
    tokenizer = transformers_module().AutoTokenizer.from_pretrained(folder)
    assert special_tokens(folder) == tokenizer.special_tokens_map


UNSAFE = [
    "<|im_end|>",
    "a<|im_end|>é<|endoftext|>",
    '"<|im_start|>"',
    r"\udbc0\udc000\udbc0\udc00 <|im_end|>",
    "<|im_<|im_end|>end|>",
]
WRITERS = {
    "JSON": "{{ messages | tojson }}",
    "JSON in ASCII": "{{ messages | tojson(ensure_ascii=True) }}",
    "JSON indented": "{{ messages[0] | tojson(indent=4) }}",
    "set block": "{% set x %}{{ messages[0]['content'] }}{% endset %}{{ x }}",
    "generation": "{% generation %}{{ messages[0]['content'] }}{% endgeneration %}",
    "loop": "{% for m in messages %}{{ m['content'] }}{% break %}{% endfor %}",
}


@pytest.mark.parametrize("text", UNSAFE)
@pytest.mark.parametrize("name", WRITERS)
def test_what_users_write_stays_text(checkpoints: Callable[..., Path], tmp_path: Path, name: str, text: str) -> None:
    """The template's own token is one; everything of the user's is text, and all of it arrives."""
    folder, messages = checkpoints("tiny"), [{"role": "user", "content": text}]
    config = Checkpoint.open(folder).config
    tokenizer = Tokenizer(folder / "tokenizer.json")
    tokens = TokenSpec(config.image_token_id, config.video_token_id, config.eos_token_ids)
    source = WRITERS[name] + "{{ '<|im_end|>' }}"
    pieces = PromptTemplate(source, tokenizer, tokens, "transformers").pieces(messages, [])
    assert [piece for piece in pieces if not isinstance(piece, str)] == [tokenizer.added["<|im_end|>"]]
    theirs = transformers_module().AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(messages, chat_template=WRITERS[name], tokenize=False)
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == expected


def test_a_template_that_writes_what_json_cannot_hold_is_an_error(
    checkpoints: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises((BundleError, ConfigError), match="not JSON serializable"):
        rendered(checkpoints("tiny"), "{{ nothing | tojson }}", MESSAGES, tmp_path)


def test_bundles_hold_the_names_and_older_ones_do_without(bundle: Path, tmp_path: Path) -> None:
    assert json.loads((bundle / SPECIAL_TOKENS).read_text())["eos_token"] == "<|im_end|>"
    copy = Path(shutil.copytree(bundle, tmp_path / "older"))
    tokenizer = Tokenizer(copy / "tokenizer.json")
    assert tokenizer.special == json.loads((bundle / SPECIAL_TOKENS).read_text())
    (copy / SPECIAL_TOKENS).unlink()
    assert Tokenizer(copy / "tokenizer.json").special is None
    with pytest.raises(BundleError, match=f"{SPECIAL_TOKENS} is missing"):
        open_bundle(copy)


def test_names_that_the_manifest_does_not_list_are_not_read(bundle: Path, tmp_path: Path) -> None:
    def unlist(data: dict[str, Any]) -> None:
        del data["files"][SPECIAL_TOKENS], data["generation"]

    copy = Path(shutil.copytree(bundle, tmp_path / "changed"))
    reseal(copy, unlist)
    with pytest.raises(BundleError, match=f"{SPECIAL_TOKENS} is not one of the bundle's files"):
        open_bundle(copy)
    (copy / SPECIAL_TOKENS).unlink()
    assert open_bundle(copy).manifest.generation.penalize_prompt
