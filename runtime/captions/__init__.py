"""Captions of many media: the result of each clip or segment, and the files that hold them.

`CollectionCaptioner` makes the results of a `CaptionRequest` with one model; an `Output` writes them and knows what it
already has, so that an interrupted run continues.
"""

from .captioner import CaptionRequest, CollectionCaptioner
from .jsonl import RecordFile, State
from .outputs import DocumentOutput, Output, StreamOutput, TextFileOutput
from .sidecar import SidecarOutput

__all__ = [
    "CaptionRequest",
    "CollectionCaptioner",
    "DocumentOutput",
    "Output",
    "RecordFile",
    "SidecarOutput",
    "State",
    "StreamOutput",
    "TextFileOutput",
]
