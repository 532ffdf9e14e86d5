"""What `doctor` finds of data sets on one node, prints of them, and shows."""

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from envs.pixels import to_rgb
from envs.tasks.vqa.config import DataConfig
from launch.cluster import doctor
from launch.cluster.data_page import lines, write_page
from launch.cluster.data_report import check_data
from launch.cluster.fleet import check_census
from rollout.worker_config import WorkerConfig
from tests.envs.vqa.fixtures import write_original, write_parquet
from tests.envs.vqa.fixtures.pictures import picture, png


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def config(folder, **sources):
    found = {name: str(folder / place) for name, place in sources.items()}
    return DataConfig(sources=found, validation_share=0.4, held_out_st_qa=3)


def test_source_splits_and_one_question(tmp_path):
    write_original("okvqa", tmp_path / "okvqa")
    found, rendered = check_data(("okvqa", "digits"), config(tmp_path, okvqa="okvqa"))
    assert found.problem == ""
    assert found.source == f"{tmp_path / 'okvqa'} (the original files)"
    assert found.sizes.endswith(" 6 test")
    assert any("mscoco_val2014_annotations.json" in origin for origin in found.origins)
    assert found.origins[0].startswith("train, validation: ")
    place = tmp_path / "okvqa" / "train2014"
    assert (
        found.origins[-1] == f"pictures: {place}; different ones: 10 known by their number of COCO"
    )
    (question,) = found.questions
    assert question.prompt.startswith("okvqa: ")
    assert question.size == (96, 72)
    assert question.answer == question.answers[0]
    assert question.score == 1.0
    assert (rendered.source, rendered.problem) == ("rendered", "")
    text = "\n".join(lines(found, "10.0.0.1"))
    assert f"okvqa on 10.0.0.1: {tmp_path}" in text
    assert repr(f" User: {question.prompt} Assistant:") in text
    assert "samples left out because their picture is held out: none" in text
    assert re.search(r"answers: '\w+( \w+)?' x \d", text)
    assert f"{question.answer!r} scores 1.000" in text


def test_shared_pictures_are_dropped_by_set(tmp_path):
    names = ("st_qa", "tally_qa", "coco_2014_vqa")
    for name in names:
        write_original(name, tmp_path / name)
    found = check_data(names, config(tmp_path, **{name: name for name in names}))
    by_name = {finding.name: dict(finding.dropped) for finding in found}
    assert by_name["st_qa"] == {"st_qa": 3}, "questions on a picture that is held out itself"
    assert by_name["tally_qa"] == {"st_qa": 1, "coco_2014_vqa": 1}
    assert by_name["coco_2014_vqa"]["st_qa"] >= 2
    text = "\n".join(line for finding in found for line in lines(finding, "node"))
    assert "samples left out because their picture is held out: 3 by st_qa" in text


def test_what_would_stop_a_run_is_named(tmp_path):
    write_original("okvqa", tmp_path / "okvqa")
    for path in (tmp_path / "okvqa").rglob("COCO_val2014*.jpg"):
        path.write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    places = config(tmp_path, okvqa="okvqa", text_vqa="empty", doc_qa="nowhere")
    broken, empty, nowhere = check_data(("okvqa", "text_vqa", "doc_qa"), places)
    assert "6 samples in a row are unusable" in broken.problem
    assert broken.sizes.endswith(" 6 test"), "what was found is told all the same"
    assert "COCO_val2014" in broken.problem
    assert "text_vqa" in empty.problem
    assert "TextVQA_0.5.1_train.json" in empty.problem
    assert "found nothing in it" in empty.problem
    assert "nowhere does not exist" in nowhere.problem


def test_the_page_shows_what_the_model_sees(tmp_path):
    write_parquet("mmmu", tmp_path / "mmmu")
    write_original("okvqa", tmp_path / "okvqa")
    names = ("mmmu", "okvqa", "digits")
    found = check_data(names, config(tmp_path, mmmu="mmmu", okvqa="okvqa"), show=3)
    assert [len(finding.questions) for finding in found] == [3, 3, 3]
    page = tmp_path / "new" / "page.html"
    write_page(page, found)
    text = page.read_text()
    urls = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(urls) == 9
    for url, question in zip(
        urls, [q for finding in found for q in finding.questions], strict=True
    ):
        shown = Image.open(io.BytesIO(base64.b64decode(url)))
        width, height = question.size
        assert abs(shown.width / shown.height - width / height) < 0.05
    assert "http" not in text.replace("http-equiv", "")
    assert "&lt;image 1&gt;" in text, "prompts are escaped"
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match=r"cannot be written .*--show-page"):
        write_page(blocked / "page.html", found)


def test_pictures_of_the_page_are_as_bright_as_the_models(tmp_path):
    values = np.linspace(0, 60_000, 64 * 64).reshape(64, 64).astype(np.uint16)
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(Image.fromarray(values)))
    row = json.dumps({"image": "a.png", "question": "What?", "answers": ["grey"]})
    (folder / "test.jsonl").write_text(row)
    (found,) = check_data(("scans",), DataConfig(own={"scans": folder}), show=1)
    (question,) = found.questions
    shown = Image.open(io.BytesIO(base64.b64decode(question.picture.partition(",")[2])))
    seen = to_rgb(Image.fromarray(values))
    assert np.abs(np.asarray(shown).astype(int) - seen).mean() < 3


def write_own(folder, rows):
    folder.mkdir()
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "question", "answers"), *rows])
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(png(picture(name)))


def write_three(folder):
    """Makes validation and test beside the table for training, each with a picture of its own."""
    for name in ("validation", "test"):
        (folder / f"{name}.png").write_bytes(png(picture(name)))
        (folder / f"{name}.csv").write_text(f"image,question,answers\n{name}.png,What?,x\n")


def check_own(folder, **settings):
    (found,) = check_data(("mine",), DataConfig(own={"mine": folder}, **settings))
    return found


def test_every_row_of_ones_own_data_is_checked(tmp_path):
    good = [("a.png", f"What is {n}?", f"number {n}") for n in range(4)]
    wrong = [
        ("gone.png", "What?", "x"),
        ("b.png", "", "x"),
        ("b.png", "What?", ""),
        ("lost.png", "What?", "y"),
    ]
    write_own(tmp_path / "own", [*good, *wrong])
    (found,) = check_data(("mine",), DataConfig(own={"mine": tmp_path / "own"}))
    problems = (found.problem, *found.notes)
    text = "\n".join(problems)
    assert len(problems) == 4
    assert "1 more rows cannot be used" in problems[-1]
    assert all("train.csv" in problem for problem in problems[:-1])
    assert sum(word in text for word in ("gone.png", "line 7", "line 8", "lost.png")) == 3
    write_own(tmp_path / "good", good)
    write_three(tmp_path / "good")
    (found,) = check_data(("mine",), DataConfig(own={"mine": tmp_path / "good"}))
    assert (found.problem, found.notes, found.remarks) == ("", (), ())


def test_doctor_prints_what_every_node_found(tmp_path, monkeypatch):
    write_original("okvqa", tmp_path / "okvqa")
    monkeypatch.setattr(doctor, "_on_every_node", lambda work, *_: [(n, work()) for n in "ab"])
    sources = {"okvqa": str(tmp_path / "okvqa"), "text_vqa": str(tmp_path / "nowhere")}
    options = doctor.DoctorConfig(
        tasks=("okvqa", "text_vqa"),
        data=DataConfig(sources=sources),
        show=1,
        show_page=tmp_path / "page.html",
    )
    problems = []
    printed = list(doctor._data_lines(options, problems))
    assert [line for line in printed if line.startswith("okvqa on ")] == [
        f"okvqa on {node}: {tmp_path / 'okvqa'} (the original files)" for node in "ab"
    ]
    assert printed[-1] == f"questions with their pictures: {tmp_path / 'page.html'}"
    assert [problem[:6] for problem in problems] == ["node a", "node b"]
    assert all("nowhere does not exist" in problem for problem in problems)
    with pytest.raises(ValueError, match="show is 101"):
        doctor.DoctorConfig(show=101)


def test_tables_that_are_not_used_are_named(tmp_path):
    write_own(tmp_path / "own", [("a.png", "What?", "x")])
    write_three(tmp_path / "own")
    (tmp_path / "own" / "eval.csv").write_text("image,question,answers\na.png,What?,x\n")
    found = check_own(tmp_path / "own")
    assert found.problem == ""
    assert found.remarks == ("not used: eval.csv (names of tables are train, validation, test)",)
    assert "  note: not used: eval.csv" in "\n".join(lines(found, "node"))
    (tmp_path / "own" / "train.csv").unlink()
    (tmp_path / "own" / "eval.csv").unlink()
    found = check_own(tmp_path / "own")
    assert found.remarks[0].startswith("there is no table named train: nothing in validation.csv")
    assert found.problem.startswith("mine has no sample in the train split: add a table named tr")


def test_doubled_ids_are_named(tmp_path):
    write_own(tmp_path / "own", [])
    write_three(tmp_path / "own")
    rows = [f"{number},a.png,What?,x\n" for number in (7, 7, 8, "")]
    (tmp_path / "own" / "train.csv").write_text("id,image,question,answers\n" + "".join(rows))
    assert check_own(tmp_path / "own").remarks == ("several rows have the same id, for 1 ids: 7",)


def test_a_split_without_samples_is_a_problem_with_its_remedy(tmp_path):
    write_own(tmp_path / "own", [("a.png", "What?", "x"), ("b.png", "What?", "x")])
    write_three(tmp_path / "own")
    (tmp_path / "own" / "validation.csv").unlink()
    found = check_own(tmp_path / "own", validation_share=0.0)
    assert found.problem.startswith("mine has no sample in the validation split: ")
    assert "a larger --data.validation-share" in found.problem
    beside = DataConfig(own={"mine": tmp_path / "own"}, validation_share=0.0)
    assert not [f.problem for f in check_data(("mine", "digits"), beside) if f.problem]
    census = {"mine": {"train": 2, "validation": 0, "test": 1}}
    with pytest.raises(ValueError, match=r"a larger --worker\.data\.validation-share"):
        check_census(WorkerConfig(tasks=("mine",)), census, "train", "validation")


def test_pictures_are_decoded(tmp_path):
    write_own(tmp_path / "own", [("a.png", "What?", "x"), ("b.png", "What?", "x")])
    write_three(tmp_path / "own")
    (tmp_path / "own" / "b.png").write_bytes(b"no picture")
    found = check_own(tmp_path / "own")
    assert "b.png is broken" in found.problem
    assert not found.notes
    write_original("okvqa", tmp_path / "okvqa")
    next((tmp_path / "okvqa").rglob("COCO_val2014*.jpg")).write_bytes(b"no picture")
    (found,) = check_data(("okvqa",), config(tmp_path, okvqa="okvqa"))
    assert found.problem == ""
    assert any("is broken" in remark for remark in found.remarks), "a run replaces it"


def test_the_question_shown_is_not_one_that_was_left_out(tmp_path):
    write_own(tmp_path / "own", [])
    write_three(tmp_path / "own")
    for only in ("a", "b"):  # whichever comes first in the order of the split
        (tmp_path / "own" / "test.csv").write_text(
            f"image,question,answers\n{only}.png,Held out?,x\n"
        )
        rows = "".join(f"{n}.png,Which is {n}?,x\n" for n in "ab")
        (tmp_path / "own" / "train.csv").write_text(f"image,question,answers\n{rows}")
        (question,) = check_own(tmp_path / "own").questions
        assert f"Which is {only}?" not in question.prompt


def test_archives_are_named_beside_a_missing_picture(tmp_path):
    write_own(tmp_path / "own", [("gone.png", "What?", "x")])
    write_three(tmp_path / "own")
    (tmp_path / "own" / "images.zip").write_bytes(b"")
    found = check_own(tmp_path / "own")
    assert "image is missing" in found.problem
    assert "line 2 of train.csv" in found.problem
    assert found.problem.endswith("images.zip is still packed: unpack it there")


def test_messages_have_the_options_of_doctor(tmp_path):
    (found,) = check_data(("tally_qa",), DataConfig())
    assert "--data.sources tally_qa FOLDER" in found.problem
    assert "worker" not in found.problem


def test_what_pictures_are_known_by(tmp_path):
    write_own(tmp_path / "own", [("a.png", "What?", "x"), ("./a.png", "What?", "x")])
    write_three(tmp_path / "own")
    origin = check_own(tmp_path / "own").origins[-1]
    assert origin.endswith(
        "different ones: 3 known by their file (compared with your other own data alone)"
    )
