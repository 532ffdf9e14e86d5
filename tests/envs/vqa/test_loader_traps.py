"""What loaders of these data sets trip over, each at the rows that `fixtures.traps` names."""

from pathlib import Path

import datasets
import numpy as np
import pytest

from envs.spec import DataError
from envs.tasks.scene import SPLITS
from envs.tasks.vqa.picture import picture_key
from tests.envs.vqa.fixtures import traps, write_original
from tests.envs.vqa.fixtures.coco import rename_to_coco_2017
from tests.envs.vqa.fixtures.okvqa import write_vqa_v1
from tests.envs.vqa.fixtures.pictures import picture
from tests.envs.vqa.fixtures.st_qa import SHUFFLED, move_pictures
from tests.envs.vqa.opening import HELD_OUT, entries, opened, question_ids, sample_of


def test_raw_answers_are_taken_where_there_are_two(root: Path):
    for form in ("okvqa:script", "okvqa:original"):
        answers = sample_of(opened(root, form), traps.REDUCED_ANSWER.id).answers
        assert set(answers) == {"racing", "motocross", "riding"}


def test_files_of_vqa_v1_are_refused_as_ok_vqa(root: Path, tmp_path: Path):
    folder = write_vqa_v1(tmp_path)
    task = opened(root, "okvqa:original", sources={"okvqa": str(folder)})
    with pytest.raises(DataError, match=r"okvqa: .*no raw_answer: these are the files of VQA v1"):
        task.num_samples("train")


def test_hints(root: Path):
    published = opened(root, "science_qa_img:parquet", hint_as_published=True)
    hint = "science_qa: See the pairs.\nSee the pairs.\nA: 1\nB: 2\nC: both\nD: none\n"
    assert sample_of(published, f"validation/{traps.HINT.id}").prompt == hint
    no_hint = "science_qa: Which is warmer?\nA: the pan\nB: the ice\n"
    assert sample_of(published, f"validation/{traps.NO_HINT.id}").prompt == no_hint


@pytest.mark.parametrize("form", ["science_qa_img:parquet", "science_qa_img:lmms"])
def test_no_prompt_holds_the_reasoning(form: str, root: Path):
    task = opened(root, form)
    prompts = [task.entry(s, i).prompt for s in SPLITS for i in range(task.num_samples(s))]
    assert len(prompts) == 9
    assert not any("LECTURE" in prompt or "SOLUTION" in prompt for prompt in prompts)


def test_rows_without_a_picture_are_no_part_of_science_qa(root: Path):
    ids = question_ids(opened(root, "science_qa_img:parquet"), "test")
    assert ids == {f"validation/{number}" for number in (0, 2, 4, 5, 6)}, (
        "numbered before the filter"
    )
    assert traps.NULL_STRUCT.id == "1"
    assert traps.STRUCT_OF_NULLS.id == "3"


def test_mmmu_reads_one_line_as_molmo_or_all_paragraphs_as_its_own_evaluation(root: Path):
    output = "It cannot be (A).\nIt cannot be (A).\nSo it must be (B)."
    scores = {}
    for rule in ("molmo", "mmmu"):
        task = opened(root, "mmmu:parquet", mmmu_answer=rule)
        scores[rule] = task.score(sample_of(task, "validation_Accounting_1"), output)
    assert scores == {"molmo": 0.0, "mmmu": 1.0}


def test_soft_accuracy_under_its_owners_names(root: Path):
    scores = {}
    for rule in ("molmo", "vqa_v2", "text_vqa"):
        task = opened(root, "coco_2014_vqa:original", vqa_score=rule)
        scores[rule] = task.score(sample_of(task, "42001"), "Yes.")
    assert scores == {"molmo": 1.0, "vqa_v2": 0.0, "text_vqa": 1.0}


def test_seven_options_as_published(root: Path):
    name = traps.NINE_OPTIONS.id
    sample = sample_of(opened(root, "mmmu:parquet", seven_options=True), name)
    assert sample.prompt.endswith("\nF: six\nG: seven\n")
    assert sample.answers == ("I",)


def shown(root: Path, name: str) -> tuple[np.ndarray, int]:
    sample = sample_of(opened(root, "mmmu:parquet"), name)
    assert sample.image is not None
    return np.asarray(sample.image.convert("RGB")), sample.metadata["num_images"]


@pytest.mark.parametrize(
    ("trap", "num_images"),
    [
        (traps.IMAGES_IN_OPTIONS, 4),
        (traps.IMAGES_IN_OPTIONS_ONLY, 2),
        (traps.IMAGE_OF_THE_EXPLANATION, 1),
    ],
)
def test_the_first_marked_picture_is_shown_and_never_that_of_an_explanation(
    trap: traps.Trap, num_images: int, root: Path
):
    pixels, marked = shown(root, trap.id)
    assert marked == num_images
    assert np.array_equal(pixels, np.asarray(picture(f"mmmu:{trap.id}:1")))


@pytest.mark.parametrize("trap", [*traps.WITHOUT_ANSWERS, traps.TEN_EMPTY_ANSWERS])
def test_test_splits_without_answers_are_refused(trap: traps.Trap, root: Path):
    for form in trap.forms:
        form = "flat" if (trap.data_set, form) == ("st_qa", "parquet") else form
        task = opened(root, f"{trap.data_set}:{form}", splits={f"{trap.data_set}/test": "test"})
        with pytest.raises(DataError, match=trap.data_set) as refusal:
            task.sample("test", 0)
        known = ("split without answers", "split with answers", "two parts of", "has no v2_")
        assert any(words in str(refusal.value) for words in known), refusal.value


def test_a_question_without_answers_is_refused(root: Path):
    for form in ("doc_qa:parquet", "doc_qa:original"):
        task = opened(root, form)
        messages = []
        for index in range(task.num_samples("train")):
            try:
                task.sample("train", index)
            except DataError as error:
                messages.append(str(error))
        assert len(messages) == 1
        assert "it has no reference answers" in messages[0]
        assert traps.EMPTY_ANSWERS.id not in entries(task)


def test_doc_qa_does_not_read_its_other_configuration(root: Path):
    task = opened(root, "doc_qa:parquet", splits={})
    asked = [entry.prompt for _, _, entry in entries(task).values()]
    assert len(asked) == 7
    assert not any("phone" in prompt for prompt in asked)


def test_kinds_of_tally_qa(root: Path):
    found = entries(opened(root, "tally_qa:original"))
    kinds = {key: entry.metadata["kind"] for key, (_, _, entry) in found.items()}
    assert kinds["30000001"] == "complex"
    assert kinds["30000002"] == "simple"
    assert kinds[traps.WITHOUT_ISSIMPLE.id] == ""
    task = opened(root, "tally_qa:original")
    first, second = (sample_of(task, trap.id) for trap in traps.ANY_ANSWER_OF_THE_PICTURE)
    assert task.score(first, second.answers[0]) == 0, "an answer to another question is wrong"


@pytest.mark.parametrize("count", [1, HELD_OUT, 13])
def test_st_vqa_holds_out_the_published_shuffle(count: int, root: Path):
    task = opened(root, "st_qa:original", held_out_st_qa=count)
    rows = task.splits["test"].rows
    ids = [rows.row(int(number))["question_id"] for number in task.splits["test"].numbers]
    assert tuple(ids) == SHUFFLED[:count]
    assert task.num_samples("train") == len(SHUFFLED) - count


def test_pictures_in_other_layouts(root: Path, tmp_path: Path):
    folder = write_original("coco_2014_vqa", tmp_path / "vqa")
    rename_to_coco_2017(folder)
    task = opened(root, "coco_2014_vqa:original", sources={"coco_2014_vqa": str(folder)})
    assert sample_of(task, "42000").image is not None
    folder = write_original("st_qa", tmp_path / "st")
    move_pictures(folder)
    task = opened(root, "st_qa:original", sources={"st_qa": str(folder)})
    assert sample_of(task, "3").image is not None
    pictures = folder.rename(tmp_path / "elsewhere")
    (tmp_path / "json").mkdir()
    (pictures / "train_task_3.json").rename(tmp_path / "json" / "train_task_3.json")
    own = {"sources": {"st_qa": str(tmp_path / "json")}, "images": {"st_qa": pictures}}
    assert sample_of(opened(root, "st_qa:original", **own), "3").image is not None


def test_parquet_files_with_the_features_of_the_hub(root: Path, tmp_path: Path):
    """Files of the hub say that a column is an image; the library would decode it."""
    source = datasets.Dataset.from_parquet(
        [str(path) for path in sorted((root / "text_vqa:parquet/data").glob("validation-*"))]
    )
    table = source.cast_column("image", datasets.Image())
    table.to_parquet(str(tmp_path / "data" / "validation-00000-of-00001.parquet"))
    splits = {"text_vqa/train": ""}
    own = {"sources": {"text_vqa": str(tmp_path)}, "splits": splits}
    task, plain = opened(root, "text_vqa:parquet", **own), opened(root, "text_vqa:parquet")
    sample, other = (sample_of(t, "34602") for t in (task, plain))
    assert sample.image is not None
    assert other.image is not None
    assert sample.image.tobytes() == other.image.tobytes()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("coco-text/COCO_train2014_000000000025.jpg", "coco:25"),
        ("val2014/COCO_val2014_000000000042.jpg", "coco:42"),
        ("VG_100K/2300001.jpg", "vg:2300001"),
        ("VG_100K_2/2400001.jpg", "vg:2400001"),
        ("visual_genome/2388888.jpg", "vg:2388888"),
        ("icdar/img_7.jpg", "one:icdar/img_7.jpg"),
    ],
)
def test_picture_keys(name: str, key: str):
    assert picture_key(name, "one") == key
