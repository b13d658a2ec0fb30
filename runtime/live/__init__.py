"""Live sources: a camera or stream is read in real time, and a session of the model is asked about it.

`LiveReader` reads a source in a thread of its own, `watch` shows its frames to a `Session` (`VideoLlama3.open_session`)
and asks the questions of a `WatchConfig`, at an interval, on a change, or both.
"""

from .change import ChangeDetector
from .events import LiveEvent
from .output import AnswerRecord, AnswerWriter, WatchState
from .reader import LiveCounts, LiveFrame, LiveReader
from .source import Reconnection, SourceLost, SourceOptions
from .watch import AnswerPart, WatchConfig, watch

__all__ = [
    "AnswerPart",
    "AnswerRecord",
    "AnswerWriter",
    "ChangeDetector",
    "LiveCounts",
    "LiveEvent",
    "LiveFrame",
    "LiveReader",
    "Reconnection",
    "SourceLost",
    "SourceOptions",
    "WatchConfig",
    "WatchState",
    "watch",
]
