"""The demo model's tokenizer, chat template and processor files, in the layout of the released checkpoints.

A byte-level BPE of Qwen2's kind, trained on the demo's own sentences; all 256 bytes are in it, so any text can be
encoded. The special tokens have the released models' names.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .model import PATCH_PX, VOCABULARY
from .questions import IMAGE_KINDS, VIDEO_KINDS, WORDINGS, ask_image, ask_video
from .render import SIZE_PX, random_scene
from .stock import PreTrainedTokenizerFast, VideoLlama3ImageProcessor, VideoLlama3Processor, VideoLlama3VideoProcessor

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|stream_start|>",
    "<|stream_end|>",
)

# Of Qwen2's tokenizer: contractions, words with at most one leading sign, single digits, signs, line ends, spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set name = 'stream' if message['role'] == 'stream' else 'im' -%}
{{- '<|' + name + '_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part is string -%}
{{- part -}}
{%- elif part['type'] == 'image' -%}
{{- '<|image_pad|>\\n' -}}
{%- elif part['type'] == 'video' -%}
{{- '<|video_pad|>\\n' -}}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|' + name + '_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def train_tokenizer() -> Tokenizer:
    """Trains the demo's tokenizer; the same every time."""
    sentences = [wording for wordings in WORDINGS.values() for wording in wordings] * 100
    for seed in range(500):
        scene = random_scene(seed)
        sentences += [ask_video(scene, kind).answer for kind in VIDEO_KINDS]
        sentences += [ask_image(scene, kind).answer for kind in IMAGE_KINDS]
    return train_bpe(sentences)


def train_bpe(sentences: list[str]) -> Tokenizer:
    """Trains a tokenizer of `VOCABULARY` tokens on questions and answers, and on the words of the prompt's frame."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, fuse_unk=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    sentences = sentences + ["user\n", "assistant\n", "system\n", "stream\n", "Time 0.0s:", ",Time 0.0s:"] * 200
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL_TOKENS])
    return tokenizer


def make_processor(tokenizer: Tokenizer, side_px: int = SIZE_PX) -> VideoLlama3Processor:
    """The processor of a checkpoint: square pictures of the side stay as they are.

    A video of up to 16 frames keeps its pixels, too; for a longer one the pixel budget shrinks the frames.
    """
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    fast.image_token, fast.video_token = "<|image_pad|>", "<|video_pad|>"
    fast.image_token_id = fast.convert_tokens_to_ids("<|image_pad|>")
    fast.video_token_id = fast.convert_tokens_to_ids("<|video_pad|>")
    common = {"patch_size": PATCH_PX, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    area = side_px * side_px
    image = VideoLlama3ImageProcessor(size={"shortest_edge": area, "longest_edge": area}, merge_size=1, **common)
    video = VideoLlama3VideoProcessor(
        size={"shortest_edge": area, "longest_edge": 16 * area},
        merge_size=2,
        fps=1,
        max_frames=180,
        use_token_compression=True,
        **common,
    )
    return VideoLlama3Processor(image, fast, video, chat_template=CHAT_TEMPLATE)


def token_id(tokenizer: Tokenizer, text: str) -> int:
    """The id of a token. Raises KeyError if the vocabulary has no such token."""
    found = tokenizer.token_to_id(text)
    if found is None:
        raise KeyError(text)
    return int(found)


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special tokens by their text."""
    return {text: token_id(tokenizer, text) for text in SPECIAL_TOKENS}


def save_processor(processor: VideoLlama3Processor, folder: Path) -> None:
    """Writes the tokenizer and processor files, each processor in its own as the released checkpoints have it."""
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    processor.video_processor.save_pretrained(folder)
    outer = {"processor_class": "VideoLlama3Processor", "fps": 1, "max_frames": 180}
    outer |= {"image_merge_size": 1, "video_merge_size": 2}
    (folder / "processor_config.json").write_text(json.dumps(outer, indent=2) + "\n")
