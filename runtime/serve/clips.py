"""Clips known by their content: what was read and encoded once is not read or encoded again.

Reading happens in a few threads, each with a decoding process of its own; encoding in one, in the order of arrival.
Two requests for one clip share the work; when nobody waits for it any more, it stops before the next frame.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

from ..config import MediaKind, PruningConfig, SamplingPlan
from ..errors import MediaError
from ..vision.clip import Clip
from .served_model import AbandonedError, Preview, ReadMedia, ServedModel
from .sources.media_source import MediaSources
from .sources.uploads import MediaFile

T = TypeVar("T")
_READERS, _FETCHERS, _HELPERS = 3, 4, 2


@dataclass(frozen=True)
class ClipKey:
    """What a clip is known by. digest: of its file."""

    digest: str
    kind: MediaKind
    sampling: SamplingPlan
    pruning: PruningConfig


@dataclass(frozen=True)
class PreparedClip:
    """A clip and, where they were asked for, pictures of it."""

    clip: Clip
    previews: tuple[Preview, ...] | None = None

    @property
    def num_bytes(self) -> int:
        pictures = sum(len(shown.picture) + len(shown.veil) for shown in self.previews or ())
        return self.clip.visual.tokens.nbytes + pictures


class ClipCache:
    """The clips used last, as many as fit. For one thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._clips: OrderedDict[ClipKey, PreparedClip] = OrderedDict()
        self.num_bytes = 0

    def get(self, key: ClipKey) -> PreparedClip | None:
        if key in self._clips:
            self._clips.move_to_end(key)
        return self._clips.get(key)

    def put(self, key: ClipKey, clip: PreparedClip) -> None:
        self._drop(key)
        self._clips[key] = clip
        self.num_bytes += clip.num_bytes
        while self.num_bytes > self._most_bytes:
            self._drop(next(iter(self._clips)))

    def forget(self, digest: str) -> None:
        """Drops all clips of a file."""
        for key in [key for key in self._clips if key.digest == digest]:
            self._drop(key)

    def _drop(self, key: ClipKey) -> None:
        clip = self._clips.pop(key, None)
        self.num_bytes -= clip.num_bytes if clip is not None else 0


class _Making:
    """A clip that is being made, and how many wait for it."""

    def __init__(self) -> None:
        self.waiting = 0
        self.task: asyncio.Task[PreparedClip]


class Clips:
    """Makes clips for requests; its methods are for the event loop's thread."""

    def __init__(self, model: ServedModel, sources: MediaSources, cache_bytes: int) -> None:
        self._model = model
        self._sources = sources
        self.cache = ClipCache(cache_bytes)
        self._making: dict[tuple[ClipKey, bool], _Making] = {}
        # Apart, so that slow servers and slow films hold up nothing but others of their kind.
        self._fetchers = ThreadPoolExecutor(_FETCHERS, "vl3edge-fetch")
        self._readers = ThreadPoolExecutor(_READERS, "vl3edge-read")
        self._helpers = ThreadPoolExecutor(_HELPERS, "vl3edge-help")
        self._encoder = ThreadPoolExecutor(1, "vl3edge-encode")

    async def clip(
        self, url: str, kind: MediaKind, sampling: SamplingPlan, pruning: PruningConfig, previews: bool = False
    ) -> PreparedClip:
        """The clip that a request means. previews: with pictures of it. Raises MediaError, ConfigError, ApiError."""
        held = ExitStack()  # as long as somebody reads it, the file of a data URL is there
        file = await self._file(url, held)
        key = ClipKey(file.digest, kind, sampling, pruning)
        known = self.cache.get(key)
        if known is not None and (known.previews is not None or not previews):
            held.close()
            return known
        making = self._making.get((key, previews))
        if making is None:
            making = self._making[key, previews] = self._begin(key, file, previews, held)
        else:
            held.close()
        making.waiting += 1
        try:
            return await asyncio.shield(making.task)  # others may wait for it, too
        finally:
            making.waiting -= 1
            if not making.waiting:
                self._forget(key, previews, making)  # whoever comes now begins anew

    async def _file(self, url: str, held: ExitStack) -> MediaFile:
        is_gone = False

        def enter() -> MediaFile:
            file = held.enter_context(self._sources.file(url))
            if is_gone:
                held.close()
            return file

        try:
            return await _in(self._fetchers, enter)
        except asyncio.CancelledError:
            is_gone = True
            held.close()
            raise

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What a function gives that takes a moment, called in a thread."""
        return await _in(self._helpers, work)

    def close(self) -> None:
        """Waits for nothing but the frame that is being encoded."""
        for making in self._making.values():
            making.waiting = 0
        for pool in (self._fetchers, self._readers, self._helpers, self._encoder):
            pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, key: ClipKey, file: MediaFile, previews: bool, held: ExitStack) -> _Making:
        making = _Making()

        def done(_: object) -> None:
            held.close()
            self._forget(key, previews, making)

        making.task = asyncio.create_task(self._made(key, file, previews, making))
        making.task.add_done_callback(done)
        return making

    def _forget(self, key: ClipKey, previews: bool, making: _Making) -> None:
        if self._making.get((key, previews)) is making:
            del self._making[key, previews]
        if making.task.done() and not making.task.cancelled():
            making.task.exception()  # it was told to those who waited, if anybody did

    async def _made(self, key: ClipKey, file: MediaFile, previews: bool, making: _Making) -> PreparedClip:
        def read() -> ReadMedia:
            if not making.waiting:
                raise AbandonedError("nobody waits for this clip any more")
            try:
                return self._model.read(str(file.path), file.name, key.kind, key.sampling)
            except MediaError as e:  # its path is nobody's business
                raise MediaError(str(e).replace(str(file.path), file.name)) from e

        def encode(media: ReadMedia) -> Clip:
            return self._model.encoded(media, key.pruning, lambda: making.waiting > 0)

        media = await _in(self._readers, read)
        known = self.cache.get(key)
        clip = known.clip if known is not None else await _in(self._encoder, lambda: encode(media))
        shown = await self.in_thread(lambda: self._model.previews(media, clip)) if previews else None
        prepared = PreparedClip(replace(clip, name=file.name), shown)
        self.cache.put(key, prepared)
        return prepared


async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
