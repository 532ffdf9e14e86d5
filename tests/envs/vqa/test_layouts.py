"""Folders as people have them: accepted, or refused in one line that names what was found."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from envs.spec import DataError
from envs.tasks.scene import SPLITS
from envs.tasks.vqa import finding
from envs.tasks.vqa.finding import PictureFolders, find_file, plain, walk
from envs.tasks.vqa.picture import coco_key, picture_key, published_names
from tests.envs.vqa.opening import opened

Edit = Callable[[Path], object]


def moved(*moves: tuple[str, str]) -> Edit:
    """Moves what the first pattern finds into the folder that the second one names."""

    def edit(folder: Path) -> None:
        for pattern, place in moves:
            for path in sorted(folder.glob(pattern)):
                target = folder / place
                target.mkdir(parents=True, exist_ok=True)
                shutil.move(path, target / path.name)

    return edit


def renamed(pattern: str, change: Callable[[str], str]) -> Edit:
    def edit(folder: Path) -> None:
        for path in sorted(folder.glob(pattern)):
            path.rename(path.with_name(change(path.name)))

    return edit


def records_without(file: str, key: str, *columns: str) -> Edit:
    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        for record in content[key] if key else content:
            for column in columns:
                record.pop(column, None)
        (folder / file).write_text(json.dumps(content))

    return edit


def both(*edits: Edit) -> Edit:
    return lambda folder: [edit(folder) for edit in edits]


def parquet_without(*columns: str) -> Edit:
    def edit(folder: Path) -> None:
        for path in folder.rglob("*.parquet"):
            pq.write_table(pq.read_table(path).drop_columns(list(columns)), path)

    return edit


def with_bom(file: str) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / file
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    return edit


TOOLKIT = moved(
    ("*_questions.json", "Questions"),
    ("*_annotations.json", "Annotations"),
    ("*2014", "Images/mscoco"),
    ("*2015", "Images/mscoco"),
)
UPPER_SUFFIX = renamed("*2014/*.jpg", lambda name: name.replace(".jpg", ".JPG"))

ACCEPTED: list[tuple[str, str, Edit]] = [
    ("coco_2014_vqa:original", "the official toolkit", TOOLKIT),
    ("coco_2014_vqa:original", "one folder deeper", moved(("*", "vqa_v2"))),
    (
        "coco_2014_vqa:original",
        "unpacked into folders of the archives' names",
        both(
            moved(("*val2014_questions.json", "v2_Questions_Val_mscoco")),
            moved(("*train2014_questions.json", "v2_Questions_Train_mscoco")),
            moved(("val2014", "val2014_zip"), ("train2014", "train2014_zip")),
        ),
    ),
    ("coco_2014_vqa:original", "pictures with .JPG", UPPER_SUFFIX),
    ("coco_2014_vqa:original", "a byte order mark", with_bom("v2_mscoco_val2014_annotations.json")),
    (
        "coco_2014_vqa:original",
        "no optional keys",
        both(
            *(
                records_without(
                    f"v2_mscoco_{split}2014_annotations.json",
                    "annotations",
                    *("question_type", "multiple_choice_answer", "answer_type"),
                )
                for split in ("train", "val")
            )
        ),
    ),
    (
        "coco_2014_vqa:original",
        "small letters",
        renamed("v2_*.json", str.lower),
    ),
    ("coco_2014_vqa:original", "pictures in one heap", moved(("*2014/*.jpg", "."))),
    ("okvqa:original", "the official toolkit", TOOLKIT),
    ("okvqa:original", "annotations beside pictures", moved(("*.json", "OK-VQA/annotations"))),
    ("coco_caption:original", "annotations without a folder", moved(("annotations/*", "."))),
    ("coco_caption:original", "pictures in images/", moved(("*2014", "images"))),
    ("doc_qa:original", "task 1", moved(("*", "docvqa/task1"))),
    ("doc_qa:original", "annotations apart", moved(("*.json", "annotations"))),
    ("doc_qa:original", "pages with .PNG", renamed("documents/*.png", lambda n: n[:-3] + "PNG")),
    ("doc_qa:original", "pages as JPEG", renamed("documents/*.png", lambda n: n[:-3] + "jpg")),
    ("st_qa:original", "the folder of the task", moved(("*", "ST-VQA/Task_3"))),
    (
        "st_qa:original",
        "visual_genome",
        renamed("VisualGenome", lambda name: "visual_genome"),
    ),
    ("st_qa:original", "scene-text/", moved(("[a-zA-Z]*/", "scene-text"))),
    ("st_qa:original", "no optional keys", records_without("train_task_3.json", "data", "dataset")),
    ("tally_qa:original", "pictures apart", moved(("*2014", "images"), ("VG_*", "images"))),
    ("tally_qa:original", "JSON apart", moved(("*.json", "tallyqa"))),
    (
        "tally_qa:original",
        "names with the data set's",
        renamed("*.json", lambda name: f"TallyQA_{name}"),
    ),
    ("text_vqa:original", "train_val_images/", moved(("train_images", "train_val_images"))),
    ("text_vqa:original", "everything in data/", moved(("*", "data/textvqa"))),
    (
        "text_vqa:original",
        "no optional keys",
        records_without(
            "TextVQA_0.5.1_val.json", "data", "image_classes", "question_tokens", "set_name"
        ),
    ),
    ("text_vqa:parquet", "uppercase suffix", renamed("data/*", lambda n: n[:-7] + "PARQUET")),
    ("text_vqa:parquet", "nested twice", moved(("data", "textvqa/default"))),
    (
        "text_vqa:parquet",
        "val",
        renamed("data/validation*", lambda n: n.replace("validation", "val")),
    ),
    (
        "okvqa:parquet",
        "validation",
        renamed("data/*", lambda n: n.replace("val2014", "validation")),
    ),
    ("science_qa_img:parquet", "no hint, no subject", parquet_without("hint", "subject")),
    ("doc_qa:parquet", "no page number", parquet_without("ucsf_document_page_no")),
    ("coco_2014_vqa:parquet", "answers alone", parquet_without("answer_type", "question_type")),
]


@pytest.mark.parametrize(
    ("form", "what", "edit"), ACCEPTED, ids=[f"{form}-{what}" for form, what, _ in ACCEPTED]
)
def test_other_layouts_are_read(form: str, what: str, edit: Edit, root: Path, tmp_path: Path):
    name = form.partition(":")[0]
    folder = tmp_path / name
    if what == "no page number":
        shutil.copytree(root / form / "DocVQA", folder)
    else:
        shutil.copytree(root / form, folder)
    edit(folder)
    plain_form = opened(root, form)
    configs = {"configs": {name: ""}} if what == "no page number" else {}
    task = opened(root, form, sources={name: str(folder)}, **configs)
    for split in SPLITS:
        assert task.num_samples(split) == plain_form.num_samples(split)
        for index in range(task.num_samples(split)):
            try:
                expected = plain_form.sample(split, index)
            except DataError:
                continue  # a trap, in either layout
            sample = task.sample(split, index)
            assert sample.image is not None
            assert expected.image is not None
            assert sample.image.tobytes() == expected.image.tobytes()
            assert sample.answers == expected.answers
            if "hint" not in what:
                assert sample.prompt == expected.prompt


def packed(pattern: str, archive: str) -> Edit:
    def edit(folder: Path) -> None:
        with zipfile.ZipFile(folder / archive, "w") as file:
            for path in sorted(folder.glob(pattern)):
                file.write(path, path.name)
                path.unlink()

    return edit


def nothing_but(file: str) -> Edit:
    def edit(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / file).write_text("[]")

    return edit


def copied(pattern: str, place: str) -> Edit:
    def edit(folder: Path) -> None:
        for path in sorted(folder.glob(pattern)):
            (folder / place).mkdir(exist_ok=True)
            shutil.copy(path, folder / place / path.name)

    return edit


REFUSED: list[tuple[str, str, Edit, str]] = [
    (
        "coco_2014_vqa:original",
        "still packed",
        packed("v2_Open*", "v2_Questions_Train_mscoco.zip"),
        r"no v2_OpenEnded_mscoco_train2014_questions\.json .*found v2_Questions_Train_mscoco\.zip, "
        "still packed: unpack it",
    ),
    (
        "text_vqa:original",
        "another version",
        renamed("*.json", lambda name: name.replace("0.5.1", "0.6")),
        r"no TextVQA_0\.5\.1_train\.json or TextVQA_0\.5_train\.json .*found TextVQA_0\.6_test",
    ),
    (
        "doc_qa:original",
        "an empty folder",
        nothing_but("readme.txt"),
        "found 1 files, none of them annotations",
    ),
    (
        "tally_qa:original",
        "two of a kind",
        both(copied("train.json", "one"), moved(("train.json", "two"))),
        "several times .one/train.json and two/train.json.: name the folder of one",
    ),
    (
        "st_qa:original",
        "another task",
        renamed("*.json", lambda name: name.replace("3", "2")),
        r"no train_task_3\.json .*found test_task_2\.json, train_task_2\.json: is it this data set",
    ),
    (
        "okvqa:original",
        "the folder of VQA v2",
        renamed("*.json", lambda name: f"v2_{name}"),
        "no OpenEnded_mscoco_train2014_questions.json .*found v2_OpenEnded.* and v2_|found v2_",
    ),
    (
        "science_qa_img:parquet",
        "its original",
        both(nothing_but("problems.json")),
        r"the original distribution is not read; found problems\.json: is it",
    ),
]


@pytest.mark.parametrize(
    ("form", "what", "edit", "message"),
    REFUSED,
    ids=[f"{form}-{what}" for form, what, *_ in REFUSED],
)
def test_what_is_not_understood_names_what_was_found(
    form: str, what: str, edit: Edit, message: str, root: Path, tmp_path: Path
):
    name = form.partition(":")[0]
    folder = tmp_path / name
    shutil.copytree(root / form, folder)
    edit(folder)
    with pytest.raises(DataError, match=message) as refusal:
        opened(root, form, sources={name: str(folder)}).num_samples("train")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 700


def test_a_packed_file_is_named_instead_of_a_folder(root: Path, tmp_path: Path):
    archive = tmp_path / "tallyqa.zip"
    archive.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"tallyqa\.zip is a file: unpack it and name its folder"):
        opened(root, "tally_qa:original", sources={"tally_qa": str(archive)}).num_samples("train")


def test_a_missing_picture_says_where_it_was_looked_for(root: Path, tmp_path: Path):
    folder = tmp_path / "vqa"
    shutil.copytree(root / "coco_2014_vqa:original", folder)
    for path in folder.rglob("*.jpg"):
        path.unlink()
    task = opened(root, "coco_2014_vqa:original", sources={"coco_2014_vqa": str(folder)})
    with pytest.raises(
        DataError, match=r"looked for .*/val2014/COCO_val2014_\d+\.jpg and .*others?"
    ):
        task.sample("test", 0)


def test_the_nearest_file_wins_and_large_folders_are_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for place in ("far/away", "near", "near/copy"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "One_File.json").write_text("")
    assert find_file(tmp_path, ["one-file.json"], "it") == tmp_path / "near/One_File.json"
    monkeypatch.setattr(finding, "MAX_PICTURES", 3)
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_text("")
    (tmp_path / "last.json").write_text("")
    assert find_file(tmp_path, ["other.json", "last.json"], "it") == tmp_path / "last.json"
    pictures = [name for _, _, files in walk(tmp_path) for name in files if name.endswith("jpg")]
    assert len(pictures) == 3


def test_a_loop_of_links_ends(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(list(walk(tmp_path))) <= 2 * (finding.MAX_DEPTH + 1)


def test_folders_of_pictures(tmp_path: Path):
    wanted = tmp_path / "deep" / "Visual Genome"
    wanted.mkdir(parents=True)
    (wanted / "7.JPEG").write_text("")
    folders = PictureFolders(root=tmp_path)
    found = [path for path in folders.paths(["VisualGenome/7.jpg"]) if path.is_file()]
    assert found == [wanted / "7.JPEG"]
    assert not [path for path in folders.paths(["icdar/7.jpg"]) if path.is_file()]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("VisualGenome/2388888.jpg", "vg:2388888"),
        ("visualgenome/1.jpg", "vg:1"),
        ("Visual_Genome/12.png", "vg:12"),
        ("images/VG_100K_2/12.jpg", "vg:12"),
        ("vg_100k/12.jpg", "vg:12"),
        ("coco_train2014_000000000025.jpg", "coco:25"),
        ("train2017/000000000025.jpg", "coco:25"),
        ("val2014/000000000042.jpg", "coco:42"),
        ("imageNet/n02_4711.JPEG", "one:imageNet/n02_4711.JPEG"),
        ("iiit_text/003.jpg", "one:iiit_text/003.jpg"),
        ("VisualGenome/sign.jpg", "one:VisualGenome/sign.jpg"),
    ],
)
def test_keys_in_other_spellings(name: str, key: str):
    assert picture_key(name, "one") == key


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        (42, 42),
        ("42", 42),
        ("000000000042", 42),
        ("000000000042.jpg", 42),
        ("COCO_val2014_000000000042", 42),
        ("COCO_val2014_000000000042.JPG", 42),
        ("val2014/COCO_val2014_000000000042.jpg", 42),
        (" 42 ", 42),
    ],
)
def test_numbers_of_coco(cell: object, number: int):
    assert coco_key(cell) == f"coco:{number}"


@pytest.mark.parametrize("cell", ["", None, "cat", "42.5", -3, "a42b", "42.0"])
def test_what_is_no_number_of_coco(cell: object):
    with pytest.raises(DataError, match="no number of a COCO picture"):
        coco_key(cell)


def test_names_of_releases():
    names = published_names("val2014/COCO_val2014_000000000042.jpg")
    assert names[1:] == ("train2017/000000000042.jpg", "val2017/000000000042.jpg")
    assert published_names("icdar/img_7.jpg") == ("icdar/img_7.jpg",)
    assert plain("Visual Genome") == plain("visual_genome") == plain("VisualGenome")


def test_original_files_count_more_than_a_stray_parquet_file(root: Path, tmp_path: Path):
    folder = tmp_path / "okvqa"
    shutil.copytree(root / "okvqa:original", folder)
    (folder / "embeddings.parquet").write_bytes(b"")
    task = opened(root, "okvqa:original", sources={"okvqa": str(folder)})
    assert task.num_samples("test") == 6
    for path in folder.rglob("*.json"):
        path.unlink()
    with pytest.raises(DataError, match=r"embeddings\.parquet"):
        opened(root, "okvqa:original", sources={"okvqa": str(folder)}).num_samples("test")
