"""`--lora`, of every command that opens a checkpoint: the adapters to merge into it."""

from __future__ import annotations

import argparse

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.lora.adapter import LoraAdapter
from vl3edge.models.lora.merged import AdapterRequest, merge_adapters


def add_lora(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="ADAPTER[:WEIGHT]",
        help="PEFT adapter (LoRA, rsLoRA, DoRA) to merge into the checkpoint: a folder or a hub id, and by how much "
        "its changes are multiplied (default: 1); may be repeated, and is merged in this order",
    )


def open_checkpoint(options: argparse.Namespace) -> Checkpoint:
    """The checkpoint of a command line, with its adapters; raises CheckpointError, ConfigError for a bad weight."""
    requests = [AdapterRequest.parse(text) for text in options.lora]
    adapters = [LoraAdapter.open(request.path, request.weight) for request in requests]
    return merge_adapters(Checkpoint.open(options.checkpoint, options.revision), adapters)
