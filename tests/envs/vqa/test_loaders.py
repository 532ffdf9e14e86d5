"""Every data set in every published form: sizes, prompts byte for byte, answers, scores."""

from pathlib import Path
from typing import Any

import pytest

from envs.spec import DataError
from envs.tasks.scene import SPLITS
from envs.tasks.vqa.picture import coco_key
from tests.envs.vqa.opening import FORMS, entries, opened, sample_of
from tests.reference import FOLDER, needs_reference

SIZES = {
    "coco_2014_vqa:parquet": (3, 2, 3),
    "coco_caption:parquet": (3, 1, 2),
    "doc_qa:parquet": (6, 0, 7),
    "doc_qa:huggingface_m4": (6, 0, 7),
    "mmmu:parquet": (0, 4, 10),
    "mmmu:merged": (0, 4, 10),
    "okvqa:parquet": (2, 1, 3),
    "okvqa:script": (6, 0, 6),
    "science_qa_img:parquet": (4, 0, 5),
    "science_qa_img:lmms": (4, 0, 5),
    "st_qa:parquet": (12, 1, 1),
    "st_qa:flat": (12, 1, 1),
    "text_vqa:parquet": (9, 0, 6),
    "coco_2014_vqa:original": (7, 0, 8),
    "coco_caption:original": (6, 0, 6),
    "doc_qa:original": (6, 0, 7),
    "okvqa:original": (6, 0, 6),
    "st_qa:original": (11, 0, 3),
    "tally_qa:original": (8, 0, 6),
    "text_vqa:original": (9, 0, 6),
}
"""Samples of train, validation and test; one published split is divided by its pictures."""

CAPTION = "coco_captioning: Caption the image with 1 or two sentences"
CAT = ("A cat on a red mat.", "A cat sleeps on a mat", "a cat, asleep", "Cat on mat.", "A pet")
THIRD, TWO_THIRDS = pytest.approx(1 / 3), pytest.approx(2 / 3)

GOLDEN = {
    "coco_2014_vqa": {
        "42000": (
            "vqa2: What color is the mat?",
            (*["red"] * 6, *["dark red"] * 2, "maroon", "pink"),
            {"red": 1, "Dark red.": TWO_THIRDS, "the pink": THIRD, "blue": 0},
        ),
        "42001": ("vqa2: Is the cat asleep?", ("yes",) * 10, {"Yes": 1, "no": 0}),
        "133000": (
            "vqa2: What's on the bed?",
            ("don't know", *["dont know"] * 2, *["teddy-bear"] * 7),
            {"teddy bear": 1, "dont know": 1},
        ),
    },
    "coco_caption": {
        "42": (CAPTION, CAT, {"": 0, "zebras": 0}),
        "139": (
            CAPTION,
            ("A living room.", "A room with a TV", "A tidy room", "A table.", "Chairs", "A home."),
            {"": 0},
        ),
    },
    "doc_qa": {
        "49153": ("doc_qa: What is the date?", ("1/8/93",), {"1/8/93": 1, "9/9/01": 0}),
        "49154": (
            "doc_qa: Who is it from?",
            ("J. Smith", "Smith"),
            {"smith": 1, "Smit": pytest.approx(0.8), "Jones": 0},
        ),
        "49171": (
            "doc_qa: What is the heading?",
            ("ANNUAL  REPORT",),
            {"annual report": pytest.approx(13 / 14)},
        ),
        "49190": ("doc_qa: What is the y-axis?", ("Cost (µg/l)",), {"cost (µg/l)": 1}),
    },
    "mmmu": {
        "validation_Accounting_1": (
            "a_okvqa_mc: Whose cost is in <image 1>?\n"
            'A: the firm\'s\nB: the "net" cost\nC: it\'s "gross"\nD: none\n',
            ("B",),
            {"B": 1, "(B)": 1, "A": 0},
        ),
        "validation_Accounting_2": (
            "a_okvqa_mc: Which row of <image 1> is last?\nA: one\nB: two\nC: three\nD: four\n"
            "E: five\nF: six\nG: seven\nH: eight\nI: nine\n",
            ("I",),
            {"I": 1, "G": 0},
        ),
        "validation_Accounting_3": (
            "vqa2: <image 1> What is the ratio?",
            ("24/7", "3.429"),
            {"the ratio is 3.43": 1, "24/7": 1, "5": 0},
        ),
        "validation_Pharmacy_2": (
            "vqa2: Which salt is in <image 1>?",
            ("$MgS$", "MgS"),
            {"mgs": 1, "NaCl": 0},
        ),
        "validation_Computer_Science_1": (
            "vqa2: Which node of <image 1> is the root? Name it.",
            ("B",),
            {"B": 1, "A": 0},
        ),
    },
    "okvqa": {
        "425": (
            "okvqa: What sport can you use this for?",
            (*["racing"] * 6, *["motocross"] * 2, *["riding"] * 2),
            {"racing": 1, "riding": TWO_THIRDS, "race": 0},
        ),
        "735": ("okvqa: What is this vehicle called?", ("motorbike",) * 10, {"a motorbike": 1}),
    },
    "science_qa_img": {
        "Which pair": (
            "science_qa: See the pairs.\nWhich pair is harder?\nA: 1\nB: 2\nC: both\nD: none\n",
            ("C",),
            {"C": 1, "c": 1, "A": 0},
        ),
        "Which is warmer": (
            "science_qa: Which is warmer?\nA: the pan\nB: the ice\n",
            ("A",),
            {"A": 1, "B": 0},
        ),
    },
    "st_qa": {
        "3": (
            "st_qa: What is the name of the zoo?",
            ("Wild Park", "wild park zoo"),
            {"WILD PARK": 1, "Wild Par": pytest.approx(8 / 9), "zoo": 0},
        ),
        "101": ("st_qa: What is written on the vase?", ("Fleurs",), {"fleurs": 1, "": 0}),
    },
    "tally_qa": {
        "30000001": ("tally_qa: How many lamps are lit?", ("4",), {"4": 1, "7": 0, "four": 0}),
        "30000003": ("tally_qa: How many dogs are there?", ("0",), {"0": 1, "none": 0, "": 0}),
    },
    "text_vqa": {
        "34602": (
            "text_vqa: what is the brand of this camera?",
            (*["dakota"] * 7, *["nous"] * 3),
            {"Dakota": 1, "nous": 1, "canon": 0},
        ),
        "34606": (
            "text_vqa: what time is it?",
            (*["5:40"] * 4, *["5:41"] * 3, *["17:40"] * 2, "540"),
            {"17:40": TWO_THIRDS, "540": THIRD},
        ),
    },
}
"""By data set and question: prompt, answers, and the score of some outputs."""


def set_of(form: str) -> str:
    return form.partition(":")[0]


def key_of(form: str, question: str, prompt: str, found: dict[str, Any]) -> str:
    """The question's id in a form: some forms have none, and captions have a file's name."""
    if set_of(form) == "coco_caption":
        (key,) = (key for key in found if coco_key(key) == f"coco:{question}")
    elif set_of(form) == "science_qa_img" or form == "st_qa:parquet":
        (key,) = (key for key, (_, _, e) in found.items() if e.prompt == prompt)
    else:
        key = question
    return key


@pytest.mark.parametrize("form", FORMS)
def test_number_of_samples(form: str, root: Path):
    task = opened(root, form)
    assert tuple(task.num_samples(split) for split in SPLITS) == SIZES[form]


@pytest.mark.parametrize("form", FORMS)
def test_prompts_answers_and_scores(form: str, root: Path):
    task = opened(root, form)
    found = entries(task)
    for question, (prompt, answers, scores) in GOLDEN[set_of(form)].items():
        key = key_of(form, question, prompt, found)
        sample = sample_of(task, key)
        assert sample.prompt == prompt
        if set_of(form) == "coco_caption":
            assert sorted(sample.answers) == sorted(answers), "the JSON has them in another order"
        else:
            assert sample.answers == answers
        assert sample.image is not None
        assert {output: task.score(sample, output) for output in scores} == scores


@pytest.mark.parametrize("form", FORMS)
def test_every_sample_decodes_but_those_that_are_traps(form: str, root: Path):
    task = opened(root, form)
    refused = {}
    for split in SPLITS:
        for index in range(task.num_samples(split)):
            try:
                sample = task.sample(split, index)
            except DataError as error:
                refused[split, index] = str(error)
            else:
                assert sample.image is not None
                assert sample.id == f"{task.name}/{split}/{index}"
                assert sample.task == task.name
                assert not sample.prompt.isspace()
    expected = {"text_vqa": 5, "tally_qa": 1, "doc_qa": 1, "st_qa": 1}
    assert len(refused) == expected.get(set_of(form), 0), refused
    assert all(f"sample {set_of(form)}/" in message for message in refused.values())


def test_captions_are_scored_against_the_frequencies_of_training(root: Path):
    task = opened(root, "coco_caption:original")
    sample = sample_of(task, "COCO_val2014_000000000042")
    good, poor = (task.score(sample, text) for text in (CAT[0], "A dog on a blue street."))
    assert 0 <= poor < good <= 1
    assert task.score(sample, f"Answer: {CAT[0]}") == good


@needs_reference
@pytest.mark.parametrize("form", ["mmmu:parquet", "science_qa_img:parquet"])
def test_the_final_newline_reaches_the_published_tokenizer(form: str, root: Path):
    from rollout.molmoe import Preprocessor

    preprocessor = Preprocessor.from_pretrained(FOLDER / "molmoe-1b")
    newline_then_assistant = preprocessor.tokenizer.encode("\n Assistant:")
    num_choice = 0
    for _, _, entry in entries(opened(root, form)).values():
        ids = preprocessor.encode_prompt(entry.prompt).tolist()
        assert preprocessor.tokenizer.decode(ids) == f" User: {entry.prompt} Assistant:"
        if entry.prompt.endswith("\n"):
            num_choice += 1
            assert ids[-len(newline_then_assistant) :] == newline_then_assistant
    assert num_choice > 5
