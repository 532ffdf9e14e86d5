"""ScienceQA, the questions with a picture: multiple choice at school level.

The hub's columns: seen on the viewer's page of lmms-lab/ScienceQA; that those of
derek-thomas/ScienceQA are the same follows from what allenai/molmo, olmo/data/academic_datasets.py
reads. The original of scienceqa.github.io (problems.json) is not read. `lecture` and `solution`
hold the reasoning and never enter a prompt.
"""

from __future__ import annotations

import string

from envs.spec import DataError, Sample
from envs.tasks.vqa.cells import question_text, texts
from envs.tasks.vqa.choice import molmo_choice_score
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.picture import Picture, pixel_key
from envs.tasks.vqa.prompts import after_hint, styled, with_options
from envs.tasks.vqa.rows import Row, Rows


class ScienceQa(DataSet):
    """Evaluated on the validation split, as the published model was."""

    name = "science_qa_img"
    hub_ids = ("derek-thomas/ScienceQA",)
    on_hub = Published(train="train", test="validation")
    columns = (("question",), ("choices",), ("answer",), ("image",))
    key_columns = ("image",)

    def is_usable(self, row: Row) -> bool:
        """Rows with a picture."""
        return Picture.of_cell(row["image"], None) is not None

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """A hash of the pixels: pictures have no names, and some recur."""
        picture = Picture.of_cell(row["image"], rows.pictures)
        assert picture is not None
        return pixel_key(picture, self.name, f"{rows.split}/{number}")

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `science_qa`: the hint, if there is one, then the question and its options."""
        hint, question = row.get("hint") or "", question_text(row["question"])
        question = after_hint(hint, hint if hint and self.config.hint_as_published else question)
        choices, correct = texts(row["choices"], "choices"), row["answer"]
        if not isinstance(correct, int) or not 0 <= correct < len(choices):
            raise DataError(
                f"its answer {correct!r} is not the index of one of its {len(choices)} choices: "
                "correct the row or take it out"
            )
        letters = string.ascii_uppercase
        return Entry(
            question_id=f"{rows.split}/{number}",
            picture=Picture.of_cell(row["image"], rows.pictures),
            prompt=styled("science_qa", with_options(question, choices, letters=letters)),
            answers=(letters[correct],),
            metadata={"kind": str(row.get("subject") or ""), "num_options": len(choices)},
        )

    def score(self, sample: Sample, answer: str) -> float:
        """Multiple choice by letter."""
        letters = string.ascii_uppercase[: sample.metadata["num_options"]]
        return molmo_choice_score(answer, letters, letters.index(sample.answers[0]))
