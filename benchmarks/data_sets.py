"""Opens all nine data sets at their published size, as every rollout actor does.

    python -m benchmarks.data_sets [--folder DIR] [--code OTHER_CHECKOUT] [--quick]

The records are made up; their numbers and fields are those of the published files. The only
pictures are those of the two sets in parquet, 48 x 36 pixels each. Each line is a separate process
that opens one data set, or all of them as one mixture: first with an empty cache, then again.
Memory is the growth of the process's private pages, its share of the pages that it maps with
others, and the peak of its resident set with all libraries. Another checkout, such as an earlier
version, opens the same files.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import read_options
from launch.cluster.console import check_first, one_clear_error

ROOT = Path(__file__).parents[1]
NAMES = (
    *("coco_2014_vqa", "coco_caption", "doc_qa", "mmmu", "okvqa", "science_qa_img"),
    *("st_qa", "tally_qa", "text_vqa"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSetsConfig:
    """One measurement.

    Attributes:
        quick: two data sets of a thousandth of the size, to see within a minute that it runs.
        folder: where the records are, or are written to; by default a temporary folder.
        code: checkout that opens them; by default this one.
        names: data sets that are opened.
        part: divisor of the published numbers of records.
    """

    quick: bool = False
    folder: Path | None = None
    code: Path = ROOT
    names: tuple[str, ...] = NAMES
    part: int = 1


QUICK = DataSetsConfig(quick=True, names=("okvqa", "mmmu"), part=1000)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import io
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WORDS = "red blue tall small cat bus sign table two number street window what left near old".split()

OPEN = """
import json, resource, sys, time
import datasets, numpy, pyarrow
from envs.tasks.registry import build_tasks
from envs.tasks.vqa.config import DataConfig

def pages():
    with open("/proc/self/smaps_rollup") as file:
        found = [line.split() for line in file if line.endswith("kB\\n")]
    sizes = {name: int(size) / 1e3 for name, size, _ in found}
    return sizes["Private_Clean:"] + sizes["Private_Dirty:"], sizes["Pss:"]

names, folder = sys.argv[1].split(","), sys.argv[2]
before, started = pages(), time.perf_counter()
tasks = build_tasks(names, config=DataConfig(sources={n: f"{folder}/{n}" for n in names}))
opened_s = time.perf_counter() - started
after = pages()
started = time.perf_counter()
for task in tasks.data_sets.values():
    for index in range(300):
        task.entry("test", index)
entry_ms = (time.perf_counter() - started) / 300 / len(names) * 1e3
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
census = {name: list(counts.values()) for name, counts in tasks.census().items()}
print(json.dumps([opened_s, after[0] - before[0], after[1] - before[1], peak, entry_ms, census]))
"""
"""What a process of either checkout runs."""


def main() -> int:
    """Writes the records, and prints one row per data set and state of the cache."""
    options = read_options(QUICK, __doc__)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="data-sets-"))
    if not (folder / "whole").is_file():
        write_all(folder, options.part)
    cache = Path(tempfile.mkdtemp(prefix="data-sets-cache-"))
    print(f"{'data set':16} {'cache':6} {'s':>7} {'private MB':>11} {'shared MB':>10} "
          f"{'peak MB':>8} {'ms/entry':>9}  train, validation, test, dropped")  # fmt: skip
    for names in [*((name,) for name in options.names), options.names]:
        for state in ("empty", "full"):
            seconds, private, share, peak, entry_ms, census = opened(
                names, folder, options.code, cache
            )
            label = names[0] if len(names) == 1 else "all, mixed"
            counts = census[names[0]] if len(names) == 1 else ""
            print(f"{label:16} {state if len(names) == 1 else 'full':6} {seconds:7.1f} "
                  f"{private:11.0f} {share - private:10.0f} {peak:8.0f} {entry_ms:9.2f}  {counts}",
                  flush=True)  # fmt: skip
    shutil.rmtree(cache)
    if options.folder is None:
        shutil.rmtree(folder)
    return 0


def opened(names: Sequence[str], folder: Path, code: Path, cache: Path) -> list[Any]:
    """What a fresh process of a checkout measures.

    Raises:
        RuntimeError: it failed; holds the end of its output.
    """
    environment = {**os.environ, "PYTHONPATH": str(code), "HF_DATASETS_CACHE": str(cache)}
    command = [sys.executable, "-c", OPEN, ",".join(names), str(folder)]
    done = subprocess.run(
        command, env=environment, cwd=code, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{code} cannot open {', '.join(names)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write_all(folder: Path, part: int) -> None:
    """Writes all nine data sets, each with its published number of records divided by `part`."""
    words = random.Random(0)
    for name in NAMES:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    for split, num_questions, num_images in (("train", 443_757, 82_783), ("val", 214_354, 40_504)):
        _write_vqa(folder / NAMES[0], split, num_questions // part, num_images // part, words)
        _write_captions(folder / "coco_caption", split, num_images // part, words)
    for split, num_questions in (("train", 9_009), ("val", 5_046)):
        _write_ok_vqa(folder / "okvqa", split, num_questions // part, words)
    for split, count in (("train", 39_463), ("val", 5_349)):
        rows = [_page(number, split, words) for number in range(count // part)]
        _write(folder / f"doc_qa/{split}_v1.0_withQT.json", {"data": rows})
    scenes = [_scene(number, words) for number in range(max(26_074 // part, 1_100))]
    _write(folder / "st_qa/train_task_3.json", {"data": scenes})
    for split, count in (("train", 249_318), ("test", 38_589)):
        rows = [_count(number, split, words) for number in range(count // part)]
        _write(folder / f"tally_qa/{split}.json", rows)
    for split, count in (("train", 34_602), ("val", 5_000)):
        rows = [_text(number, split, words) for number in range(count // part)]
        _write(folder / f"text_vqa/TextVQA_0.5.1_{split}.json", {"data": rows})
    _write_parquet(folder, part, words)
    (folder / "whole").write_text("")


def _sentence(words: random.Random, count: int) -> str:
    return " ".join(words.choices(WORDS, k=count))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _write_vqa(
    folder: Path, split: str, num_questions: int, num_images: int, words: random.Random
) -> None:
    ids = range(1 if split == "train" else 200_000, 10**6)
    questions, annotations = [], []
    for number in range(num_questions):
        image_id = ids[number % num_images]
        key = {"image_id": image_id, "question_id": image_id * 1000 + number // num_images}
        questions.append({**key, "question": f"{_sentence(words, 6)}?"})
        answers = [
            {"answer": _sentence(words, 1), "answer_confidence": "yes", "answer_id": place}
            for place in range(1, 11)
        ]
        annotations.append(
            {
                **key,
                "question_type": "what is",
                "multiple_choice_answer": answers[0]["answer"],
                "answers": answers,
                "answer_type": "other",
            }
        )
    _write(folder / f"v2_OpenEnded_mscoco_{split}2014_questions.json", {"questions": questions})
    _write(folder / f"v2_mscoco_{split}2014_annotations.json", {"annotations": annotations})


def _write_captions(folder: Path, split: str, num_images: int, words: random.Random) -> None:
    first = 1 if split == "train" else 200_000
    images = [
        {
            "license": 3,
            "file_name": f"COCO_{split}2014_{number:012d}.jpg",
            "coco_url": f"http://images.example.org/{number}.jpg",
            "height": 480,
            "width": 640,
            "date_captured": "2013-11-18 09:00:00",
            "flickr_url": "",
            "id": number,
        }
        for number in range(first, first + num_images)
    ]
    annotations = [
        {"image_id": image["id"], "id": 5 * place + k, "caption": f"A {_sentence(words, 9)}."}
        for place, image in enumerate(images)
        for k in range(5)
    ]
    content = {"info": {}, "images": images, "licenses": [], "annotations": annotations}
    _write(folder / f"captions_{split}2014.json", content)


def _write_ok_vqa(folder: Path, split: str, num_questions: int, words: random.Random) -> None:
    first = 1 if split == "train" else 200_000
    keys = [{"image_id": n, "question_id": 10 * n} for n in range(first, first + num_questions)]
    questions = [{**key, "question": f"{_sentence(words, 8)}?"} for key in keys]
    annotations = [
        {
            **key,
            "question_type": "one",
            "answer_type": "other",
            "confidence": 3,
            "answers": [
                {
                    "answer_id": k,
                    "raw_answer": "racing",
                    "answer_confidence": "yes",
                    "answer": "race",
                }
                for k in range(1, 11)
            ],
        }
        for key in keys
    ]
    _write(folder / f"OpenEnded_mscoco_{split}2014_questions.json", {"questions": questions})
    _write(folder / f"mscoco_{split}2014_annotations.json", {"annotations": annotations})


def _page(number: int, split: str, words: random.Random) -> dict[str, Any]:
    document = f"{split}{number // 6}"
    return {
        "questionId": number,
        "question": f"{_sentence(words, 8)}?",
        "question_types": ["form"],
        "image": f"documents/{document}_1.png",
        "docId": number // 6,
        "ucsf_document_id": document,
        "ucsf_document_page_no": "1",
        "answers": [_sentence(words, 3)],
        "data_split": split,
    }


def _scene(number: int, words: random.Random) -> dict[str, Any]:
    image = number * 19_000 // 26_074
    places = ("coco-text/COCO_train2014_{:012d}.jpg", "VisualGenome/{}.jpg", "icdar/img_{}.jpg")
    path = places[image % 3].format(image)
    return {
        "question_id": number,
        "question": f"{_sentence(words, 7)}?",
        "answers": [_sentence(words, 2)],
        "file_path": path,
        "file_name": path.rpartition("/")[2],
        "dataset": path.partition("/")[0],
        "set_name": "train",
        "image_id": image,
    }


def _count(number: int, split: str, words: random.Random) -> dict[str, Any]:
    image = number // 2 + (0 if split == "train" else 500_000)
    is_coco = split == "train" and image % 3
    name = f"train2014/COCO_train2014_{image:012d}.jpg" if is_coco else f"VG_100K/{image}.jpg"
    row = {
        "answer": number % 9,
        "data_source": "amt",
        "image": name,
        "image_id": image,
        "question": f"How many {_sentence(words, 4)}?",
        "question_id": number,
    }
    return row if split == "train" else {**row, "issimple": number % 2 == 0}


def _text(number: int, split: str, words: random.Random) -> dict[str, Any]:
    question = _sentence(words, 7)
    return {
        "question": question,
        "image_id": f"{split}{number * 22 // 34:012x}",
        "image_classes": [_sentence(words, 1) for _ in range(5)],
        "flickr_original_url": f"https://example.org/{number}_o.jpg",
        "flickr_300k_url": f"https://example.org/{number}_z.jpg",
        "image_width": 1024,
        "image_height": 768,
        "answers": [_sentence(words, 1) for _ in range(10)],
        "question_tokens": question.split(),
        "question_id": number,
        "set_name": split,
    }


def _write_parquet(folder: Path, part: int, words: random.Random) -> None:
    """MMMU with its 30 configurations, and ScienceQA with and without pictures."""
    from envs.tasks.vqa.mmmu import SUBJECTS

    pixels = np.random.default_rng(0)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for subject in SUBJECTS:
        for split, count in (("dev", 5), ("validation", 30)):
            rows = [_subject(subject, split, number, pixels) for number in range(count)]
            _write_rows(folder / f"mmmu/{subject}/{split}-00000-of-00001.parquet", rows, image)
    for split, count, with_picture in (("train", 12_726, 6_218), ("validation", 4_241, 2_097)):
        rows = [
            {
                "image": _picture(pixels) if place < with_picture // part else None,
                "question": f"{_sentence(words, 9)}?",
                "choices": [_sentence(words, 2) for _ in range(3)],
                "answer": 1,
                "hint": _sentence(words, 20),
                "lecture": _sentence(words, 80),
            }
            for place in range(count // part)
        ]
        path = folder / f"science_qa_img/data/{split}-00000-of-00001.parquet"
        _write_rows(path, rows, image)


def _subject(subject: str, split: str, number: int, pixels: Any) -> dict[str, Any]:
    return {
        "id": f"{split}_{subject}_{number}",
        "question": "Which one is it in <image 1>?",
        "options": "['one', 'two', 'three', 'four']",
        "image_1": _picture(pixels),
        "answer": "B",
        "question_type": "multiple-choice",
    }


def _picture(pixels: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    values = pixels.integers(0, 255, (36, 48, 3)).astype(np.uint8)
    Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _write_rows(path: Path, rows: list[dict[str, Any]], image: pa.DataType) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: Iterator[str] = iter(rows[0])
    arrays = {
        name: pa.array([row[name] for row in rows], image if name.startswith("image") else None)
        for name in columns
    }
    pq.write_table(pa.table(arrays), path)


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
