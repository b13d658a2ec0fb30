"""Every benchmark's file, a row or two in each form in which it is published: told by its fields, read, and asked in
the release's words. The rows are our own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vl3edge.runtime.errors import ConfigError
from vl3edge.runtime.evaluate.item import BadRow, EvalItem, StoredPicture
from vl3edge.runtime.evaluate.questions import FORMATS, read_questions

LETTER = "Answer with the option's letter from the given choices directly"
BEST = f"{LETTER} and only give the best option."
SELECT = "Select the best answer to the following multiple-choice question based on the video."
IN_WORDS = "Please watch the video and answer the question clearly and concisely.\n"
OCR = {"image_path": "o.jpg", "question": "What word?"}
MMMU = {"id": "validation_Art_Theory_3", "question_type": "multiple-choice", "answer": "B"}
MATH = {"pid": "7", "question": "How many?", "image": "images/7.jpg", "precision": None, "unit": None, "choices": None}


@dataclass
class Form:
    """A file, the media that are there, and what has to come of its first row."""

    name: str
    file: str
    content: Any
    media: str
    text: str
    right: tuple[str, ...] = ("B",)
    measure: str = "choice"
    group: str = ""
    span: tuple[float, float] | None = None
    count: int = 1
    named: bool = False  # --format is needed
    beside: dict[str, Any] = field(default_factory=dict)


VIDEOS = [
    Form(
        "videomme",
        "test-00000-of-00001.parquet",
        [
            {"videoID": "fFj", "question_id": "001-1", "question": "Who?", "answer": "B", "duration": "short"}
            | {"options": ["A. Ann.", "B. Bob.", "C. Cy.", "D. Di."], "task_type": "Counting"}
        ],
        "videos/fFj.mp4",
        f"{SELECT} Respond with only the letter (A, B, C, or D) of the correct option.\nWho?\n"
        f"A. Ann.\nB. Bob.\nC. Cy.\nD. Di.\n{BEST} The best answer is:",
        group="short",
    ),
    Form(
        "mvbench",
        "action_sequence.json",
        [
            {"video": "x.mp4", "question": "Then?", "candidates": ["He sat.", "He ran."], "answer": "He ran."}
            | {"start": 2.5, "end": 8.0}
        ],
        "video/star/Charades_v1_480/x.mp4",
        f"Question: Then?\nOptions:\n(A) He sat.\n(B) He ran.\n{BEST}",
        group="action sequence",
    ),
    Form(
        "mlvu",
        "2_needle.json",
        [
            {"video": "n.mp4", "duration": 500.0, "question": "Who?", "candidates": ["Ann", "Bob"], "answer": "Bob"}
            | {"question_type": "findNeedle"},
            {"video": "n.mp4", "duration": 5.0, "question": "Sum up.", "answer": "Much.", "question_type": "summary"},
        ],
        "MLVU/video/2_needle/n.mp4",
        f"Question: Who?\nOptions:\n(A) Ann\n(B) Bob\n{BEST}",
        group="findNeedle",
    ),
    Form(
        "mlvu",
        "dev.jsonl",
        [{"video_name": "d.mp4", "question": "Who?\n(A) Ann\n(B) Bob", "answer": "B", "task_type": "ER"}],
        "d.mp4",
        f"Question: Who?\n(A) Ann\n(B) Bob\n{LETTER}.",
        group="ER",
    ),
    Form(
        "longvideobench",
        "lvb_val.json",
        [
            {"video_id": "v", "video_path": "v.mp4", "id": "v_0", "question": "What?", "candidates": ["x", "y", "z"]}
            | {"correct_choice": 1, "duration_group": 60, "subtitle_path": "v.json", "level": "L1-Perception"}
        ],
        "videos/v.mp4",
        f"Question: What?\nA. x\nB. y\nC. z\n{LETTER}.",
        group="60",
    ),
    Form(
        "longvideobench",
        "validation.parquet",
        [
            {"video_id": "v", "video_path": "v.mp4", "id": "v_0", "question": "What?", "correct_choice": 1}
            | {"option0": "x", "option1": "y", "option2": "N/A", "option3": "N/A", "option4": "N/A"}
        ],
        "videos/v.mp4",
        f"Question: What?\nA. x\nB. y\n{LETTER}.",
    ),
    Form(
        "lvbench",
        "video_info.meta.jsonl",
        [
            {"key": "Cm7", "type": "live", "video_info": {}}
            | {"qa": [{"uid": "17", "question": "When?\n(A) now\n(B) then", "answer": "B", "question_type": ["event"]}]}
        ],
        "all_videos/Cm7.mp4",
        f"When?\n(A) now\n(B) then\n{LETTER}.",
        group="event",
    ),
    Form(
        "lvbench",
        "rows.jsonl",
        [
            {"key": "Cm7", "uid": "17", "question": "When?\n(A) now\n(B) then", "answer": "B"}
            | {"time_reference": "00:01-00:03", "question_type": "event"}
        ],
        "Cm7.mp4",
        f"When?\n(A) now\n(B) then\n{LETTER}.",
        group="event",
    ),
    Form(
        "perceptiontest",
        "mc_question_valid.json",
        {
            "video_8": {
                "metadata": {"split": "valid", "video_id": "video_8"},
                "mc_question": [
                    {"id": 0, "question": "Is it?", "options": ["x", "y", "z"], "answer_id": 1, "area": "physics"},
                    {"id": 1, "question": "Was it?", "options": ["x", "y", "z"], "answer_id": 2, "area": "physics"},
                ],
            }
        },
        "videos/video_8.mp4",
        f"Question: Is it?\nOptions:\n(A) x\n(B) y\n(C) z\n{BEST}",
        group="physics",
        count=2,
    ),
    Form(
        "perceptiontest",
        "val.parquet",
        [
            {"video_name": "video_8", "question_id": "3", "question": "Is it?", "options": ["x", "y", "z"]}
            | {"answer_id": "1", "area": "physics"}
        ],
        "video_8.mp4",
        f"Question: Is it?\nOptions:\n(A) x\n(B) y\n(C) z\n{BEST}",
        group="physics",
    ),
    Form(
        "nextqa",
        "test.csv",
        [
            {"video": "40", "frame_count": 9, "width": 4, "height": 3, "question": "why", "answer": 1, "qid": 6}
            | {"type": "CW", "a0": "hot", "a1": "cold, wet", "a2": "x", "a3": "y", "a4": "z"}
        ],
        "NExTVideo/1106/40.mp4",
        f"Question: why\nOptions:\n(A) hot\n(B) cold, wet\n(C) x\n(D) y\n(E) z\n{BEST}",
        group="causal",
        beside={"map_vid_vidorID.json": {"40": "1106/40"}},
    ),
    Form(
        "egoschema",
        "questions.json",
        [
            {"q_uid": "00", "google_drive_id": "g", "question": "What is C doing?"}
            | {f"option {n}": f"thing {n}" for n in range(5)}
        ],
        "good_clips_git/00.mp4",
        f"{SELECT}\nWhat is C doing?\nOptions:\n(A) thing 0\n(B) thing 1\n(C) thing 2\n(D) thing 3\n"
        f"(E) thing 4\n{BEST} The best answer is: ",
        beside={"subset_answers.json": {"00": 1}},
    ),
    Form(
        "egoschema",
        "subset.parquet",
        [
            {"question_idx": "5", "video_idx": "00", "question": "What is C doing?", "answer": "1"}
            | {"option": [f"{letter}. thing" for letter in "ABCDE"]}
        ],
        "videos/00.mp4",
        f"{SELECT}\nWhat is C doing?\nOptions:\n(A) thing\n(B) thing\n(C) thing\n(D) thing\n(E) thing\n{BEST} The best "
        "answer is: ",
    ),
    Form(
        "tempcompass",
        "multi-choice.parquet",
        [{"video_id": "107", "question": "How?\nA. fast\nB. slow", "answer": "B. slow", "dim": "speed"}],
        "videos/107.mp4",
        f"Question: How?\nA. fast\nB. slow\nPlease a{BEST[1:]}",
        group="speed",
    ),
    Form(
        "tempcompass",
        "yes_no.json",
        {"107": {"speed": [{"question": "Is it fast?", "answer": "no"}, {"question": "Slow?", "answer": "yes"}]}},
        "videos/107.mp4",
        "Question: Is it fast?\nPlease answer with 'yes' or 'no' directly.",
        ("no",),
        "starts",
        "speed",
        count=2,
    ),
    Form(
        "tempcompass",
        "caption_matching.jsonl",
        [
            {"video_id": "107", "dim": "order", "answer": "Option 2: He sits."}
            | {"question": "Which?\nOption 1: He runs.\nOption 2: He sits."},
            {"video_id": "107", "dim": "order", "answer": "A. x", "question": "Write.\nA. x\nB. y\nGenerated Caption:"},
        ],
        "107.mp4",
        "Question: Which?\nOption 1: He runs.\nOption 2: He sits.\nPlease directly give the best option:",
        ("Option 2",),
        "starts",
        "order",
    ),
    Form(
        "mmvu",
        "validation.json",
        [
            {"id": "validation_0", "video": "https://huggingface.co/x/resolve/main/videos/Art/3.mp4"}
            | {"question_type": "multiple-choice", "question": "Which?", "answer": "B", "metadata": {"subject": "Art"}}
            | {"choices": {"A": "x", "B": "y", "C": "z", "D": "u", "E": "w"}},
            {"id": "validation_1", "video": "https://huggingface.co/x/resolve/main/videos/Art/3.mp4"}
            | {"question_type": "open-ended", "question": "Why?", "answer": "Light", "metadata": {"subject": "Art"}}
            | {"choices": None},
        ],
        "videos/Art/3.mp4",
        "\nQuestion: Which?\nA: x\nB: y\nC: z\nD: u\nE: w\n\nAnswer the given multiple-choice question step by step. "
        "Begin by explaining your reasoning process clearly. Conclude by stating the final answer using the "
        "following format: 'Therefore, the final answer is: $LETTER' (without quotes), where $LETTER is one of the "
        "options. Think step by\nstep before answering.",
        group="Art",
        count=2,
    ),
    Form(
        "activitynetqa",
        "test_q.json",
        [{"video_name": "1QI", "question": "is it black", "question_id": "1QI_0"}],
        "all_test/v_1QI.mkv",
        f"Question: is it black\n{IN_WORDS}",
        ("no",),
        "contains",
        "yes or no",
        beside={"test_a.json": [{"answer": "no", "type": 3, "question_id": "1QI_0"}]},
    ),
    Form(
        "activitynetqa",
        "test.parquet",
        [{"video_name": "v_1QI", "question": "is it black", "question_id": "1QI_0", "answer": "no", "type": "3"}],
        "v_1QI.mp4",
        f"Question: is it black\n{IN_WORDS}",
        ("no",),
        "contains",
        "yes or no",
    ),
    Form(
        "charadessta",
        "charades_sta_test.txt",
        "3MSZA 24.3 30.4##person turn a light on.\n",
        "Charades_v1/3MSZA.mp4",
        'When does "person turn a light on" happen in the video? Please output the start and end timestamps in '
        "seconds.",
        (),
        "grounding",
        span=(24.3, 30.4),
    ),
    Form(
        "charadessta",
        "test.parquet",
        [{"video": "3MSZA.mp4", "caption": "a person sits", "timestamp": [1.5, 4.0]}],
        "Charades_v1_480/3MSZA.mp4",
        'When does "a person sits" happen in the video? Please output the start and end timestamps in seconds.',
        (),
        "grounding",
        span=(1.5, 4.0),
    ),
    Form(
        "charadessta",
        "charades_annotations_test-random_prompt.json",
        [
            {"question_id": 5, "video": "3MSZA.mp4", "timestamps": [[1.5, 4.0]]}
            | {"conversation": [{"role": "user", "content": "When does he sit? "}, {"role": "assistant"}]}
        ],
        "Charades_v1/3MSZA.mp4",
        "When does he sit? Please output the start and end timestamps in seconds.",
        (),
        "grounding",
        span=(1.5, 4.0),
    ),
]
PICTURES = [
    Form(
        "docvqa",
        "val_v1.0.json",
        {
            "dataset_name": "docvqa",
            "data": [
                {"questionId": 49, "question": "Name?", "image": "documents/x_1.png", "docId": 14}
                | {"answers": ["ITC", "itc ltd"], "question_types": ["form"]}
            ],
        },
        "documents/x_1.png",
        "Name?\nAnswer the question with a single word or phrase.",
        ("ITC", "itc ltd"),
        "anls",
    ),
    Form(
        "docvqa",
        "validation.parquet",
        [{"questionId": "49", "question": "Name?", "docId": 14, "answers": ["ITC"], "image": b"png"}],
        "",
        "Name?\nAnswer the question with a single word or phrase.",
        ("ITC",),
        "anls",
    ),
    Form(
        "docvqa",
        "docvqa/val.jsonl",
        [{"question_id": 49, "question": "Name?", "image": "val/x.png", "answer": ["ITC"]}],
        "docvqa/val/x.png",
        "Name?\nAnswer the question with a single word or phrase.",
        ("ITC",),
        "anls",
    ),
    Form(
        "infovqa",
        "infographicsVQA_val_v1.0_withQT.json",
        {
            "data": [
                {
                    "questionId": 98,
                    "question": "How many?",
                    "image_local_name": "3.jpeg",
                    "image_url": "http://x/3.jpeg",
                }
                | {"answers": ["4"], "answer_type": ["single span"]}
            ]
        },
        "images/3.jpeg",
        "How many?\nAnswer the question with a single word or phrase.",
        ("4",),
        "anls",
    ),
    Form(
        "infovqa",
        "validation.parquet",
        [
            {"questionId": "98", "question": "How many?", "answers": ["4"], "answer_type": ["x"], "image": b"png"}
            | {"image_url": "http://x/3.jpeg"}
        ],
        "",
        "How many?\nAnswer the question with a single word or phrase.",
        ("4",),
        "anls",
    ),
    Form(
        "chartqa",
        "test_human.json",
        [{"imgname": "41.png", "query": "How many?", "label": "14"}],
        "png/41.png",
        "How many?\nAnswer the question using a single word or phrase.",
        ("14",),
        "relaxed",
        "human",
    ),
    Form(
        "chartqa",
        "test.parquet",
        [{"image": b"png", "query": "How many?", "label": ["14"], "human_or_machine": 1}],
        "",
        "How many?\nAnswer the question using a single word or phrase.",
        ("14",),
        "relaxed",
        "augmented",
    ),
    Form(
        "chartqa",
        "lmms.parquet",
        [{"type": "human_test", "question": "How many?", "answer": "14", "image": b"png"}],
        "",
        "How many?\nAnswer the question using a single word or phrase.",
        ("14",),
        "relaxed",
        "human",
    ),
    Form(
        "ocrbench",
        "OCRBench.json",
        [
            {**OCR, "dataset_name": "IIIT5K", "type": "Regular Text Recognition", "answers": ["CENTRE"]},
            {**OCR, "dataset_name": "HME100k", "type": "Handwritten", "answers": "x ^ 2"},
        ],
        "OCRBench_Images/o.jpg",
        "What word?\nAnswer the question with a single word or phrase.",
        ("CENTRE",),
        "ocr",
        "Regular Text Recognition",
        count=2,
    ),
    Form(
        "ocrbench",
        "test.parquet",
        [
            {"dataset": "HME100k", "question": "What?", "question_type": "Handwritten", "answer": ["x ^ 2"]}
            | {"image": b"png"}
        ],
        "",
        "What?\nAnswer the question with a single word or phrase.",
        ("x ^ 2",),
        "formula",
        "Handwritten",
    ),
    Form(
        "ai2d",
        "test.parquet",
        [{"question": "Which?", "options": ["c", "d", "b", "a"], "answer": "1", "image": b"png"}],
        "",
        f"Which?\nA. c\nB. d\nC. b\nD. a\n{LETTER}.",
    ),
    Form(
        "ai2d",
        "ai2d_test_vlmevalkit.jsonl",
        [{"question_id": 0, "question": f"Which?\nA. c\nB. d\n{LETTER}.", "image": "images/1.png", "answer": "B"}],
        "images/1.png",
        f"Which?\nA. c\nB. d\n{LETTER}.",
    ),
    Form(
        "gqa",
        "testdev_balanced_questions.json",
        {
            "201": {"question": "Is it wet?", "imageId": "n16", "answer": "no", "fullAnswer": "No."}
            | {"types": {"structural": "verify"}}
        },
        "images/n16.jpg",
        "Is it wet?\nAnswer the question using a single word or phrase.",
        ("no",),
        "exact",
        "verify",
    ),
    Form(
        "gqa",
        "testdev.parquet",
        [{"id": "201", "imageId": "n16", "question": "Is it wet?", "answer": "no"}],
        "n16.jpg",
        "Is it wet?\nAnswer the question using a single word or phrase.",
        ("no",),
        "exact",
    ),
    Form(
        "realworldqa",
        "annotations.json",
        [{"image": "0.webp", "question": "Which?\nA. left\nB. right\nAnswer with the letter.", "answer": "B"}],
        "0.webp",
        "Which?\nA. left\nB. right\nAnswer with the letter.",
    ),
    Form(
        "realworldqa",
        "test.parquet",
        [{"image": b"png", "question": "How many? Answer with a single word.", "answer": "3"}],
        "",
        "How many? Answer with a single word.",
        ("3",),
        "exact",
    ),
    Form(
        "mmmu",
        "validation.parquet",
        [
            {**MMMU, "question": "<image 1> Which?", "options": "['x', '<image 2>']", "image_1": b"a", "image_2": b"b"},
            {**MMMU, "id": "validation_Art_4", "question": "Why <image 1>?", "options": "[]", "image_1": b"c"}
            | {"question_type": "open", "answer": "['8', '8.0']", "image_2": None},
        ],
        "",
        f"<image 1>: Which?\n\n(A):x\n(B):<image 2>:\n\n{LETTER}.",
        group="Art Theory",
        count=2,
    ),
    Form(
        "mathvista",
        "testmini.json",
        {
            "7": {**MATH, "question_type": "multi_choice", "answer_type": "text", "choices": ["3/11", "8/11"]}
            | {"answer": "8/11", "metadata": {"task": "figure question answering"}}
        },
        "images/7.jpg",
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
        "Question: How many?\nChoices:\n(A) 3/11\n(B) 8/11",
        measure="nearest",
        group="figure question answering",
    ),
    Form(
        "mathvista",
        "testmini.parquet",
        [
            {**MATH, "question_type": "free_form", "answer_type": "float", "precision": 1.0, "answer": "1.2"}
            | {"query": "Hint: as it is.\nQuestion: How many?", "decoded_image": b"png"}
        ],
        "",
        "Hint: as it is.\nQuestion: How many?",
        ("1.2",),
        "number",
    ),
    Form(
        "mathvista",
        "numbers.json",
        {"7": {**MATH, "question_type": "free_form", "answer_type": "integer", "answer": "12", "unit": "$"}},
        "images/7.jpg",
        "Hint: Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, "
        "at the end.\nQuestion: How many? (Unit: $)",
        ("12",),
        "number",
    ),
]


def picture(content: bytes) -> bytes:
    """A picture's file; another for other content."""
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), (content[0], 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        write_parquet(path, content)
    elif path.suffix == ".txt":
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, content[0])
            rows.writeheader()
            rows.writerows(content)
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Pictures as datasets on the hub have them: a struct of bytes and path. Each row is a group of its own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = [
        {
            name: {"bytes": picture(value), "path": "x.png"} if isinstance(value, bytes) else value
            for name, value in row.items()
        }
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(stored), path, row_group_size=1)


def needs_pyarrow(form: Form) -> None:
    if form.file.endswith(".parquet") and find_spec("pyarrow") is None:
        pytest.skip("pyarrow is not installed")


@pytest.mark.parametrize("form", [*VIDEOS, *PICTURES], ids=lambda form: f"{form.name} {form.file}")
def test_every_form_is_told_and_read(form: Form, tmp_path: Path) -> None:
    needs_pyarrow(form)
    file = write(tmp_path / form.file, form.content)
    for name, content in form.beside.items():
        write(file.parent / name, content)
    if form.media:
        (tmp_path / form.media).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / form.media).touch()
    found = read_questions([file])
    assert [known.name for known in found.formats] == [form.name]
    assert len(found.asked) == form.count
    item = found.asked[0]
    assert isinstance(item, EvalItem), item
    assert item.text == form.text
    assert (item.measure, item.answers, item.group, item.span) == (form.measure, form.right, form.group, form.span)
    if form.media:
        assert item.media == (str(tmp_path / form.media),)
    else:
        assert all(isinstance(source, StoredPicture) and source.open().size == (28, 28) for source in item.media)
    assert read_questions([file], format=form.name).asked == found.asked or not form.media


def test_every_benchmark_of_the_paper_has_a_form() -> None:
    assert {form.name for form in (*VIDEOS, *PICTURES)} == set(FORMATS) - {"jsonl"}
    assert len(FORMATS) == 22


def test_spans_and_ids_of_rows_are_kept(tmp_path: Path) -> None:
    mvbench = next(form for form in VIDEOS if form.name == "mvbench")
    (item,) = read_questions([write(tmp_path / mvbench.file, mvbench.content)]).asked
    assert isinstance(item, EvalItem)
    assert (item.start_s, item.end_s, item.kind) == (2.5, 8.0, "video")
    assert item.clip.endswith("x.mp4@2.5-8")


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_pictures_stand_where_a_question_names_them(tmp_path: Path) -> None:
    mmmu = next(form for form in PICTURES if form.name == "mmmu")
    first, second = read_questions([write(tmp_path / mmmu.file, mmmu.content)]).asked
    assert isinstance(first, EvalItem)
    assert isinstance(second, EvalItem)
    assert first.parts == ("<image 1>:", 0, " Which?\n\n(A):x\n(B):<image 2>:", 1, f"\n\n{LETTER}.")
    assert [source.open().getpixel((0, 0))[0] for source in first.media] == [ord("a"), ord("b")]  # type: ignore[union-attr]
    assert second.answers == ("8", "8.0")
    assert second.measure == "open"
    assert second.parts[1] == 0


@pytest.mark.parametrize("form", [*VIDEOS[:3], PICTURES[11]], ids=lambda form: form.name)
def test_a_bad_row_costs_itself_only(form: Form, tmp_path: Path) -> None:
    """One lacks its question, one its answer is none of the options', one is no row at all."""
    good = form.content[0]
    rows = [good, {**good, "question": None}, {**good, "answer": "nobody"}, "a string", good]
    found = read_questions([write(tmp_path / "rows.json", rows)], format=form.name)
    assert [type(one) for one in found.asked] == [EvalItem, BadRow, BadRow, BadRow, EvalItem]
    errors = [one.error for one in found.asked if isinstance(one, BadRow)]
    assert all(error.startswith(f"{tmp_path}/rows.json row ") and "\n" not in error for error in errors)
    assert "question" in errors[0]
    assert "nobody" in errors[1]


def test_ids_are_told_apart(tmp_path: Path) -> None:
    rows = [{"media": "a.mp4", "question": "?", "id": name} for name in ("x", "x", "x (2)", "x")]
    first, second = (write(tmp_path / name, rows) for name in ("one.jsonl", "two.jsonl"))
    ids = [one.id for one in read_questions([first]).asked]
    assert len(set(ids)) == 4
    assert ids[0] == "x"
    both = [one.id for one in read_questions([first, second]).asked]
    assert len(set(both)) == 8
    assert both[4] == "two:x"


def test_a_limit_draws_the_same_questions_every_time(tmp_path: Path) -> None:
    rows = [{"media": "a.mp4", "question": "?", "id": str(n)} for n in range(50)]
    file = write(tmp_path / "set.jsonl", rows)
    drawn = [[one.id for one in read_questions([file], limit=7, limit_seed=seed).asked] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(drawn[0], key=int)
    assert len(set(drawn[0])) == 7
    assert len(read_questions([file], limit=99).asked) == 50
    with pytest.raises(ConfigError, match="at least 1"):
        read_questions([file], limit=0)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"question": "?"}, "there is no 'media'"),
        ({"media": "a.mp4"}, "there is no 'question'"),
        ({"media": "a.mp4", "question": " "}, "'question' is not text"),
        ({"media": "a.mp4", "question": "?", "anser": "x"}, "unknown field 'anser'"),
        ({"media": "a.mp4", "question": "?", "measure": "luck"}, "no measure is called 'luck'"),
        ({"media": "a.mp4", "question": "?", "options": ["x", "y"], "answer": "C"}, "'C' is neither the letter"),
        ({"media": "a.mp4", "question": "?", "measure": "grounding", "answer": 3}, r"must be \[start, end\]"),
        ({"media": "a.mp4", "question": "?", "start": "soon"}, "'start' must be a number"),
        ({"media": "a.mp4", "question": "?", "start": 5, "end": 2}, "must be after"),
        ({"media": "a.mp4", "question": "?", "start": -1}, "0 or more"),
        ({"media": "a.mp4", "question": "?", "kind": "song"}, "'kind' must be image or video"),
        ({"media": "a.mp4", "question": "<image 2>?"}, "names picture 2, but there are 1"),
        ({"media": [], "question": "?"}, "names no video"),
        ({"media": 3.5, "question": "?"}, "names no video"),
    ],
)
def test_what_is_wrong_with_a_row_of_our_own_is_said(row: dict[str, Any], error: str, tmp_path: Path) -> None:
    (one,) = read_questions([write(tmp_path / "set.jsonl", [row])], format="jsonl").asked
    assert isinstance(one, BadRow)
    assert pytest.importorskip("re").search(error, one.error), one.error


def test_our_own_form_has_everything(tmp_path: Path) -> None:
    rows = [
        {"media": "a.mp4", "question": "Which?", "options": ["x", "y"], "answer": "y", "start": 1, "end": 2.5},
        {"media": ["a.png", "b.png"], "question": "Is <image 2> like <image 1>?", "answers": ["yes", "y"]},
        {"media": "a.mp4", "question": "it stops", "measure": "grounding", "answer": [1, 2.5]},
        {"media": "a.mp4", "question": "Name", "prompt": "Say the name.", "measure": "anls", "answer": "Bo"},
    ]
    one, two, three, four = read_questions([write(tmp_path / "set.jsonl", rows)]).asked
    assert isinstance(one, EvalItem)
    assert (one.answers, one.measure, one.start_s, one.end_s) == (("B",), "choice", 1.0, 2.5)
    assert one.right == "B. y"
    assert isinstance(two, EvalItem)
    assert two.parts == ("Is ", 1, " like ", 0, "?")
    assert two.answers == ("yes", "y")
    assert isinstance(three, EvalItem)
    assert three.span == (1.0, 2.5)
    assert three.text.startswith('When does "it stops" happen')
    assert isinstance(four, EvalItem)
    assert four.parts == (0, "Say the name.")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.xml", "<x/>", "--data takes .json"),
        ("set.json", "{", "not JSON"),
        ("set.json", "3", "holds no list of rows"),
        ("set.json", "[]", "it has no rows"),
        ("set.jsonl", '{"a": 1}\n', "form cannot be told .the first row has a."),
        ("set.jsonl", "nonsense\n", "form cannot be told"),
        (
            "set.jsonl",
            '{"question_id": 1, "image": "x", "question": "?", "answer": "y"}\n',
            "could be docvqa, chartqa, ai2d",
        ),
        ("set.parquet", "nonsense", "cannot be read as Parquet|pip install"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_questions([tmp_path / name])
    assert "\n" not in str(caught.value)


def test_files_and_folders_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_questions([tmp_path / "none.json"])
    with pytest.raises(ConfigError, match="no such folder"):
        read_questions([tmp_path / "none.json"], media_root=tmp_path / "none")
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_questions([tmp_path / "latin.json"])
