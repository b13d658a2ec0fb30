"""Captions of many media: records of what was said of each clip or segment, and the files they are written to.

`Captioner` makes the records of a `CaptionRequest` with one model; an `Output` writes them and knows what it already
has, so that an interrupted run continues.
"""

from .captioner import Captioner, CaptionRequest, Outcome
from .jsonl import State
from .outputs import DocumentOutput, Output, RecordOutput, StreamOutput, TextFileOutput
from .records import CaptionRecord
from .sidecar import SidecarOutput

__all__ = [
    "CaptionRecord",
    "CaptionRequest",
    "Captioner",
    "DocumentOutput",
    "Outcome",
    "Output",
    "RecordOutput",
    "SidecarOutput",
    "State",
    "StreamOutput",
    "TextFileOutput",
]
