"""Multiple choice about short videos: MVBench, PerceptionTest, NExT-QA, EgoSchema."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from .. import prompts
from ..find import MediaFinder
from ..item import EvalItem
from ..table import Values
from .format import (
    BenchmarkFormat,
    about,
    fields,
    first_of,
    group_of,
    known,
    letter_of_index,
    letter_of_text,
    nested,
    text_of,
    texts,
    unlettered,
)

_MVBENCH_FOLDERS = {
    "star/Charades_v1_480": ("action_sequence", "action_prediction", "object_interaction"),
    "ssv2_video": ("action_antonym",),
    "Moments_in_Time_Raw/videos": ("fine_grained_action",),
    "FunQA_test/test": ("unexpected_action",),
    "clevrer/video_validation": (
        *("object_existence", "moving_direction", "moving_count", "moving_attribute", "counterfactual_inference"),
    ),
    "perception/videos": ("object_shuffle", "action_count", "state_change", "character_order"),
    "sta/sta_video": ("action_localization",),
    "scene_qa/video": ("scene_transition",),
    "nturgbd": ("fine_grained_pose",),
    "vlnqa": ("egocentric_navigation",),
    "tvqa/frames_fps3_hq": ("episodic_reasoning",),
}
_MVBENCH_CUT = {
    "star/Charades_v1_480": "star/Charades_segment",
    "sta/sta_video": "sta/sta_video_segment",
    "tvqa/frames_fps3_hq": "tvqa/video_fps3_hq_segment",
    "ssv2_video": "ssv2_video_mp4",
    "nturgbd": "nturgbd_convert",
}
"""The same in the hub's branch `video`, which lmms-eval takes: parts of videos are files of their own there."""
_NEXTQA_KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}


def _mvbench(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """A file has one task, and its name tells the folder of its videos. Folders of frames are read at 3 a second."""
    question, options = text_of(row, "question"), texts(row["candidates"], "candidates")
    task, start, end = find.data.stem, _seconds(row.get("start")), _seconds(row.get("end"))
    folder = next((name for name, tasks in _MVBENCH_FOLDERS.items() if task in tasks), "")
    video = find.video(row["video"], f"video/{folder}", folder, f"data0613/{folder}")
    if folder in _MVBENCH_CUT and not os.path.exists(video):
        cut = _cut_video(row, find, _MVBENCH_CUT[folder])
        if os.path.exists(cut):
            video, start, end = cut, None, None
    yield EvalItem(
        id=number,
        **about(video, prompts.choice(question, options)),
        question=question,
        measure="choice",
        options=options,
        answers=known(row.get("answer"), lambda answer: letter_of_text(answer, options)),
        group=task.replace("_", " "),
        start_s=start,
        end_s=end,
        kind="video",
    )


def _cut_video(row: Values, find: MediaFinder, folder: str) -> str:
    """The part of a video that a row is about, as a file by its own name, or by the video's with the seconds."""
    name = str(row["video"])
    whole = find.video(name, f"video/{folder}", folder)
    if os.path.exists(whole) or row.get("start") is None:
        return whole
    cut = f"{os.path.splitext(name)[0]}_{row['start']}_{row['end']}"
    return find.video(f"{cut}.mp4", f"video/{folder}", folder)


def _perceptiontest(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """The authors' rows are videos with their questions; lmms-eval's are questions."""
    name = row.get("video_name") or nested(row, "metadata").get("video_id")
    asked: Any = row.get("mc_question", [row])
    if not isinstance(asked, list):
        raise ValueError("'mc_question' is not a list")
    for entry in asked:
        question, options = text_of(entry, "question"), texts(entry["options"], "options")
        place = entry.get("question_id", entry.get("id", number))
        yield EvalItem(
            id=f"{name}_{place}",
            **about(find.video(name), prompts.choice(question, options)),
            question=question,
            measure="choice",
            options=options,
            answers=known(entry.get("answer_id"), _index(options)),
            group=group_of(entry, "area"),
        )


def _nextqa(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """`map_vid_vidorID.json` beside the file, where it is, tells the folders of the videos."""
    listed = [row.get(f"a{n}") for n in range(5)]
    options = texts([option for option in listed if option not in (None, "")], "a0")
    name, question = str(row["video"]), text_of(row, "question")
    folders = find.beside("map_vid_vidorID.json") or {}
    yield EvalItem(
        id=f"{name}_{row.get('qid', number)}",
        **about(find.video(folders.get(name, name), "NExTVideo"), prompts.choice(question, options)),
        question=question,
        measure="choice",
        options=options,
        answers=known(row.get("answer"), _index(options)),
        group=_NEXTQA_KINDS.get(group_of(row, "type")[:1], group_of(row, "type")),
    )


def _egoschema(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """`subset_answers.json` beside the file has the 500 answers that are public."""
    name, question = str(first_of(row, "q_uid", "video_idx")), text_of(row, "question")
    listed = row["option"] if "option" in row else [row.get(f"option {n}") for n in range(5)]
    options = unlettered(texts(listed, "option"))
    answer = row.get("answer", (find.beside("subset_answers.json") or {}).get(name))
    yield EvalItem(
        id=str(row.get("q_uid") or row.get("question_idx") or number),
        **about(find.video(name, "good_clips_git"), prompts.choice_of_best(question, options)),
        question=question,
        measure="choice",
        options=options,
        answers=known(answer, _index(options)),
    )


def _index(options: tuple[str, ...]) -> Any:
    return lambda answer: letter_of_index(answer, options)


def _seconds(value: Any) -> float | None:
    return None if value in (None, "") else float(value)


SHORT_VIDEOS = (
    BenchmarkFormat("mvbench", "MVBench", (fields("video", "question", "candidates", "answer"),), _mvbench),
    BenchmarkFormat(
        "perceptiontest",
        "PerceptionTest",
        (fields("metadata", "mc_question"), fields("video_name", "question", "options", "answer_id")),
        _perceptiontest,
        "of the validation set; the paper's is of the test set, whose answers a server keeps",
    ),
    BenchmarkFormat("nextqa", "NExT-QA", (fields("video", "question", "a0", "a1", "a2", "a3", "a4"),), _nextqa),
    BenchmarkFormat(
        "egoschema",
        "EgoSchema",
        (fields("q_uid", "question", "option 0", "option 4"), fields("video_idx", "question", "option")),
        _egoschema,
        "of the 500 public answers; the others are on the authors' server",
    ),
)
