"""Captions of a large collection on many machines: a callable for Ray Data's `map_batches`, one actor a GPU or N cores.

    import ray
    from vl3edge.runtime.ray import Captioner

    clips = ray.data.from_items([{"media": path} for path in paths], override_num_blocks=len(paths) // 32 + 1)
    captions = clips.map_batches(
        Captioner,
        fn_constructor_kwargs={"bundle": "/mnt/models/VideoLLaMA3-2B"},
        compute=ray.data.ActorPoolStrategy(size=8),
        num_cpus=4,  # with a GPU in each actor: num_gpus=1, and "backend": "cuda" above
        batch_size=32,
    )
    captions.write_parquet("/mnt/captions")

`media` are paths, absolute and the same on every machine. A row is one clip, and a clip that fails is a row with its
`error`; a bad option or bundle fails the whole job.

Nothing is lost and nothing written twice. When a worker dies, Ray starts another, which captions the block anew that
was under way (so blocks should be small), and a block is written once its captions are complete, to a file with a name
of its own, which a second attempt replaces. To continue a job whose driver died, too, let Ray (2.60 was tried) keep
account of what is written, and start the same program again:

    context = ray.data.DataContext.get_current()
    context.checkpoint_config = ray.data.checkpoint.CheckpointConfig("media", "/mnt/checkpoint")
    clips = ray.data.read_parquet("/mnt/clips").repartition(target_num_rows_per_block=32)

The clips must come from files for that, each name once; without `repartition`, Ray makes one block of a short list, and
one file of it at the very end.

Media are decoded in a process of their own, as a clip that crashes its worker would crash every other one, too. This
module does not import Ray: the class is a plain callable, and needs pyarrow only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .captions.captioner import CaptionRequest, CollectionCaptioner
from .captions.parquet import record_table
from .config import GenerationConfig, MediaKind, PruningConfig, SamplingPlan
from .media.limits import MediaLimits
from .model import VideoLlama3

COLUMNS = ("media", "caption", "finish_reason", "num_frames", "num_tokens", "seconds", "data", "score", "error")
"""Of the table of captions; `CaptionResult` says what they are. What a clip does not have is null; `data` is JSON."""


class Captioner:
    """Captions batches of clips with one loaded model. Give the class, not an object of it, to `map_batches`."""

    def __init__(
        self,
        bundle: str | Path | None = None,
        backend: str = "auto",
        num_threads: int | None = None,
        memory_limit: int | None = None,
        limits: MediaLimits | None = None,
        prompt: str | None = None,
        sampling: SamplingPlan | None = None,
        pruning: PruningConfig | None = None,
        generation: GenerationConfig | None = None,
        batch: int = 1,
        system: str | None = None,
        add_system_prompt: bool = False,
        kind: MediaKind | None = None,
        decoder: str = "auto",
    ) -> None:
        """bundle, backend, memory_limit, decoder: see `VideoLlama3.load`. Set memory_limit where actors share a
        machine: what is available when one starts is not its own.

        num_threads: of one operator; None takes OMP_NUM_THREADS, which Ray sets to the num_cpus of the actor.
        limits: None are the default ones, with decoding in a process of its own.
        prompt: None asks for a description. sampling, pruning, generation: None takes the defaults.
        batch: how many captions are generated together; see `VideoLlama3.caption_all`.
        system, add_system_prompt: see `VideoLlama3`.
        kind: "image" or "video", what all media are; None tells it by their content, as `caption` does without --as.
        Raises BundleError, BackendError, ConfigError, MemoryLimitError.
        """
        threads = int(os.environ.get("OMP_NUM_THREADS", "0").split(",")[0]) if num_threads is None else num_threads
        limits = MediaLimits(isolate=True) if limits is None else limits
        request = CaptionRequest(
            sampling or SamplingPlan(),
            pruning or PruningConfig(),
            generation or GenerationConfig(),
            prompt=prompt,
            batch=batch,
            system=system,
            add_system_prompt=add_system_prompt,
            kind=kind,
        )
        model = VideoLlama3.load(bundle, backend, threads, memory_limit, limits, decoder)
        self._captioner = CollectionCaptioner(model, request)

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> Any:
        """A pyarrow.Table of COLUMNS, one row for each of the batch's `media`, in their order.

        batch: a mapping of columns, as numpy, pandas and pyarrow give it. Raises ConfigError for an option that cannot
        work with any clip, KeyError without `media`.
        """
        media = [str(name) for name in batch["media"]]
        return record_table(self._captioner.results(media, in_order=True), COLUMNS)
