"""`vl3edge ask -q`: one question and its answer, with the boxes of both, in pixels of the upright original.

With --find, the question is asked about frames by themselves, as pictures: those of the times that the model names for
the event. So each box is of a frame that is known, which the answer to a question about a whole video does not say.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..captions.grounding import Span, grounding_question, read_span, read_spans
from ..config import GenerationConfig
from ..decode.generate import Answer, Chunk, join
from ..errors import ConfigError, MediaError
from ..files import write_whole
from ..inspect.boxes import drawn, picture_bytes, sheet
from ..inspect.frames import Rgb, choose_shown
from ..model import VideoLlama3
from ..prompt.boxes import box_lines, boxes_question, question_with_regions, read_boxes, region
from ..terminal import printable
from ..vision.clip import Clip
from ..vision.opened_media import OpenedMedia
from . import options as shared
from .boxes import FRAMES_OF_SPAN, boxes_problem, is_about_boxes
from .labelling import check_json
from .stderr import progress


@dataclass(frozen=True)
class _Said:
    """An answer, and the frame it is about: uint8 [H, W, 3] if it was looked at, its time if it is one of a video."""

    answer: Answer
    frame: Rgb | None = None
    time_s: float | None = None


class SingleQuestion:
    """Asks what the options say, once they are checked."""

    def __init__(self, model: VideoLlama3, options: argparse.Namespace, generation: GenerationConfig) -> None:
        self._model = model
        self._options = options
        self._generation = generation
        self._asks_boxes = options.boxes or options.output is not None
        self._prints = str(options.json) != "-"

    def run(self, media: Sequence[str]) -> int:
        """Exit status: 1 if there is no picture where one was to be drawn."""
        options, head = self._options, {"media": [*media], "question": self._options.question}
        sampling, pruning = shared.sampling_plan(options), shared.pruning_config(options)
        if not is_about_boxes(options):
            clips = self._model.encode_all(media, sampling, pruning, options.kind)
            shared.write_json(options.json, head | _described(self._ask(clips, options.question)))
            return 0
        opened = self._model.open(media[0], sampling, options.kind)
        size = (opened.height, opened.width)
        regions = [region(box, size, f"{opened.name}, of {size[1]}×{size[0]} pixels") for box in options.box or ()]
        question = question_with_regions(options.question, regions)
        question = boxes_question(question) if self._asks_boxes else question
        head |= {"question": question, "width_px": opened.width, "height_px": opened.height}
        if options.find is None:
            said = [self._about_all(opened, question)]
            head |= _described(said[0].answer)
        else:
            spans, answer = self._spans(opened)
            said = [*self._about_frames(opened, spans, question)]
            head |= {"find": options.find, "found": bool(spans), "answer": answer.text}
            head |= {"spans": [asdict(span) for span in spans]}
            head |= {"frames": [{"time_s": one.time_s, **_described(one.answer)} for one in said]}
        shared.write_json(options.json, head)
        return self._draw(said) if options.output is not None else 0

    def _about_all(self, opened: OpenedMedia, question: str) -> _Said:
        frames = opened.num_frames
        if frames > 1 and self._options.output is not None:
            raise ConfigError(
                f"-o: an answer does not say of which of the {frames} frames its boxes are: draw on those of an event "
                "with --find EVENT, or take one frame with --start S --max-frames 1"
            )
        clip = self._model.encode(opened, pruning=shared.pruning_config(self._options))
        answer = self._ask([clip], question)
        if answer.boxes and frames > 1:
            progress("the answer does not say of which frame its boxes are; --find EVENT asks about single frames")
        frame = next(opened.reader.frames()).pixels if self._options.output is not None else None
        return _Said(answer, frame)

    def _spans(self, opened: OpenedMedia) -> tuple[list[Span], Answer]:
        """When the event happens, and how the model says so."""
        if opened.start_s is None or opened.end_s is None:
            raise MediaError(f"{opened.name}: events can be found in videos only; this is an image")
        clip = self._model.encode(opened, pruning=shared.pruning_config(self._options))
        answer = join(self._stream([clip], grounding_question(self._options.find)), [clip.source_size])
        start, end = opened.start_s, opened.end_s
        whole = read_span(answer.text, start, end)
        if whole is None:
            progress(f"{self._options.find} was not found: {answer.text}")
            return [], answer
        spans = [
            Span(max(span.start_s, start), min(span.end_s, end))
            for span in read_spans(answer.text)
            if span.start_s <= end and span.end_s >= start
        ] or [whole]
        for span in spans:
            progress(f"{self._options.find}: {span.start_s:.1f} - {span.end_s:.1f} s")
        return spans, answer

    def _about_frames(self, opened: OpenedMedia, spans: Sequence[Span], question: str) -> Iterator[_Said]:
        wanted = {number for span in spans for number in frames_of(span, opened.timestamps_s)}
        for frame in opened.reader.frames() if wanted else ():
            if frame.index in wanted:
                clip = self._model.encode(frame.pixels, kind="image")
                clip = replace(clip, name=f"{opened.name} at {frame.timestamp_s:.1f} s")
                self._print(f"at {frame.timestamp_s:.1f} s: ")
                yield _Said(self._ask([clip], question), frame.pixels, frame.timestamp_s)

    def _ask(self, clips: Sequence[Clip], question: str) -> Answer:
        """The answer, printed as it comes, and its boxes after it."""
        chunks = []
        for chunk in self._stream(clips, question):
            chunks.append(chunk)
            self._print(printable(chunk.text))
        self._print("\n")
        answer = join(chunks, [clip.source_size for clip in clips])
        if self._asks_boxes:
            self._print("".join(f"{line}\n" for line in box_lines(answer.boxes)))
            if problem := boxes_problem(answer):
                progress(problem)
        for clip in clips:
            progress(f"{clip.name}: {shared.time_report(clip, answer.stats)}")
        check_json(chunks, self._generation)
        return answer

    def _stream(self, clips: Sequence[Clip], question: str) -> Iterable[Chunk]:
        options = self._options
        instructions = {"system": options.system, "add_system_prompt": options.add_system_prompt}
        return self._model.stream(clips, question, self._generation, **instructions)

    def _print(self, text: str) -> None:
        if self._prints:
            print(text, end="", flush=True)

    def _draw(self, said: Sequence[_Said]) -> int:
        output = self._options.output
        shown = [one for one in said if one.answer.boxes]
        if not shown:
            progress(f"{output} is not written: there is no box to draw")
            return 1
        pictures = [drawn(one.frame, one.answer.boxes) for one in shown if one.frame is not None]
        titles = [f"{one.time_s:.1f} s" for one in shown if one.time_s is not None]
        image = pictures[0] if len(pictures) == 1 else sheet(pictures, titles)
        write_whole(output, [picture_bytes(image, output.suffix.lower())])
        count = sum(len(one.answer.boxes) for one in shown)
        progress(f"{output}: {count} {'box' if count == 1 else 'boxes'} drawn")
        return 0


def frames_of(span: Span, times_s: Sequence[float]) -> list[int]:
    """Numbers of a few sampled frames within a span, evenly spread, or of the one nearest to its middle."""
    within = [number for number, time_s in enumerate(times_s) if span.start_s <= time_s <= span.end_s]
    if within:
        return [within[place] for place in choose_shown(len(within), FRAMES_OF_SPAN)]
    middle = (span.start_s + span.end_s) / 2
    return [min(range(len(times_s)), key=lambda number: abs(times_s[number] - middle))]


def _described(answer: Answer) -> dict[str, Any]:
    boxes = read_boxes(answer.text, answer.source_sizes).to_json()
    return {"answer": answer.text, "finish_reason": answer.finish_reason, **boxes}
