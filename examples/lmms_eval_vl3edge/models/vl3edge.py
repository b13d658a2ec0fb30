"""vl3edge as a model of lmms-eval, by its interface `lmms_eval.api.model.lmms`, as a "simple" model.

    pip install lmms-eval 'vl3edge[cpu]'
    PYTHONPATH=examples LMMS_EVAL_PLUGINS=lmms_eval_vl3edge python -m lmms_eval \\
        --model vl3edge --model_args bundle=my-bundle --tasks mvbench --batch_size 4 --output_path logs

Arguments come as text or numbers, as lmms-eval parses `--model_args`. What cannot be answered ends the run, as in other
models of lmms-eval, but for a clip that cannot be read, which has an empty answer and a line on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model

from vl3edge.runtime import CaptionJob, GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3


@register_model("vl3edge")
class Vl3Edge(lmms):
    """bundle: the folder that `vl3edge export` wrote; None is the demo bundle. backend, num_threads: of
    `VideoLlama3.load`.

    fps, max_frames: how videos are sampled, by default as the VideoLLaMA3 release evaluates.
    max_visual_tokens: of a video, see `PruningConfig`. system: a system message.
    """

    is_simple = True

    def __init__(
        self,
        bundle: str | None = None,
        backend: str = "auto",
        num_threads: int = 0,
        fps: float = 1.0,
        max_frames: int = 180,
        max_visual_tokens: int | None = None,
        system: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """device, max_batch_size: lmms-eval gives them to every model; the backend says where this one runs."""
        super().__init__()
        self._model = VideoLlama3.load(bundle, backend, int(num_threads))
        self._sampling = SamplingPlan(float(fps), int(max_frames))
        self._pruning = PruningConfig(max_visual_tokens=max_visual_tokens)
        self._system = system
        self._batch = int(batch_size)

    @property
    def batch_size(self) -> int:
        return self._batch

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answers, in the requests' order. Requests of equal settings and one clip each are batched."""
        answers: list[str] = [""] * len(requests)
        groups: dict[GenerationConfig, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(_config(request.args[1]), []).append(index)
        for config, members in groups.items():
            alone = [index for index in members if len(self._visuals(requests[index])) != 1]
            for index in alone:
                answers[index] = self._answer_alone(requests[index], config)
            together = [index for index in members if index not in alone]
            for result in self._model.caption_all(self._jobs(requests, together), config, self._batch):
                assert result.job is not None
                if result.error is not None:
                    print(f"vl3edge: {result.error}", file=sys.stderr)
                answers[result.job.key] = result.caption or ""
        for index, request in enumerate(requests):
            answers[index] = _until(answers[index], request.args[1])
            self.cache_hook.add_partial("generate_until", (request.args[0], request.args[1]), answers[index])
        return answers

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("vl3edge answers tasks of one round")

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("vl3edge generates answers; take the task's variant with generate_until")

    def _jobs(self, requests: list[Any], members: list[int]) -> Iterator[CaptionJob]:
        for index in members:
            (visual,) = self._visuals(requests[index])
            question = requests[index].args[0].replace("<image>", "").strip()
            yield CaptionJob(visual, question, self._sampling, self._pruning, key=index, system=self._system)

    def _answer_alone(self, request: Any, config: GenerationConfig) -> str:
        """A question about several media, which stand before it or in the place of its `<image>` marks, or none."""
        visuals, text = self._visuals(request), request.args[0]
        items = [{"type": _kind(visual), _kind(visual): visual} for visual in visuals]
        pieces = text.split("<image>") if text.count("<image>") == len(items) else ["", *[""] * len(items)]
        content: list[dict[str, Any]] = []
        for piece, item in zip(pieces, [*items, None], strict=True):
            content += [{"type": "text", "text": piece}] if piece else []
            content += [item] if item is not None else []
        if not any(pieces):
            content.append({"type": "text", "text": text.replace("<image>", "").strip()})
        messages = [{"role": "user", "content": content}]
        return self._model.generate(messages, config, self._sampling, self._pruning, system=self._system).text

    def _visuals(self, request: Any) -> list[Any]:
        """Of a request, whose arguments are (text, settings, document -> media, its number, task, split)."""
        _, _, to_visual, number, task, split = request.args
        visuals = to_visual(self.task_dict[task][split][number]) if to_visual is not None else []
        return list(visuals or [])


def _kind(visual: Any) -> str:
    return "video" if isinstance(visual, str) else "image"


def _config(settings: dict[str, Any]) -> GenerationConfig:
    """lmms-eval's settings of a task; sampling only where it asks for it."""
    samples = bool(settings.get("do_sample")) and bool(settings.get("temperature", 1.0))
    top_p = settings.get("top_p")
    return GenerationConfig(
        max_new_tokens=settings.get("max_new_tokens"),
        temperature=float(settings.get("temperature") or 1.0) if samples else 0.0,
        top_p=float(top_p) if samples and top_p else None,
    )


def _until(answer: str, settings: dict[str, Any]) -> str:
    """The answer up to the first of the task's stops."""
    stops = settings.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop:
            answer = answer.split(stop)[0]
    return answer.strip()
