"""MMMU: college-level questions of 30 subjects, multiple choice or open, with up to seven pictures.

The hub's columns: seen on the viewer's pages of lmms-lab/MMMU (one configuration) and of a copy of
MMMU/MMMU (30 of them); answers and options were counted in MMMU-Benchmark/MMMU,
answer_dict_val.json. It is there for evaluation: it has no training split.
"""

from __future__ import annotations

import ast
import re
import string
from typing import Any

from envs.spec import DataError, Sample
from envs.tasks.vqa.cells import picture_id, question_text, reference_answers
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.mmmu_answers import mmmu_choice_score, mmmu_open_score
from envs.tasks.vqa.picture import Picture
from envs.tasks.vqa.prompts import PUBLISHED_LETTERS, styled, with_options
from envs.tasks.vqa.rows import Row, Rows

SUBJECTS = (
    "Accounting Agriculture Architecture_and_Engineering Art Art_Theory Basic_Medical_Science "
    "Biology Chemistry Clinical_Medicine Computer_Science Design "
    "Diagnostics_and_Laboratory_Medicine Economics Electronics Energy_and_Power Finance Geography "
    "History Literature Manage Marketing Materials Math Mechanical_Engineering Music Pharmacy "
    "Physics Psychology Public_Health Sociology"
).split()
"""The hub's configurations, in the order in which the published code joins them."""

_MARKER = re.compile(r"<image (\d)>")


class Mmmu(DataSet):
    """The model takes one picture: the first one that the question or its options mark.

    Pictures that are not marked may belong to the explanation and are never shown. `num_images` in
    the metadata counts the marked ones.
    """

    name = "mmmu"
    hub_ids = ("MMMU/MMMU",)
    scored_by = ("mmmu_answer",)
    configs = tuple(SUBJECTS)
    on_hub = Published(validation="dev", test="validation")
    columns = (("id",), ("question",), ("options",), ("answer",), ("question_type",), ("image_1",))
    key_columns = ("id",)

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The question: its splits are not made of one another."""
        return f"{self.name}:{picture_id(row['id'])}"

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `a_okvqa_mc` for multiple choice and `vqa2` for open questions."""
        question, options = question_text(row["question"]), listed_options(row["options"])
        is_choice = row["question_type"] == "multiple-choice"
        if is_choice and not (options and all(options)):
            raise DataError("it is multiple choice and has no options, or empty ones: correct it")
        letters = PUBLISHED_LETTERS if self.config.seven_options else string.ascii_uppercase
        if is_choice:
            text = styled("a_okvqa_mc", with_options(question, options, letters=letters))
        else:
            text = styled("vqa2", question)
        marked = list(dict.fromkeys(_MARKER.findall(" ".join((question, *options)))))
        shown = f"image_{marked[0] if marked else 1}"
        return Entry(
            question_id=str(row["id"]),
            picture=Picture.of_cell(row.get(shown), rows.pictures),
            prompt=text,
            answers=_references(row["answer"], len(options) if is_choice else 0),
            metadata={
                "kind": "multiple choice" if is_choice else "open",
                "options": options if is_choice else (),
                "num_images": len(marked),
            },
        )

    def answer_text(self, output: str) -> str:
        """All of an output for MMMU's own figure, one line of it for Molmo's."""
        return output if self.config.mmmu_answer == "mmmu" else super().answer_text(output)

    def score(self, sample: Sample, answer: str) -> float:
        """The parsers and the rules of the published evaluation."""
        options = sample.metadata["options"]
        if not options:
            return mmmu_open_score(answer, sample.answers)
        (correct,) = sample.answers
        return mmmu_choice_score(answer, options, correct, sample.metadata["question_id"])


def listed_options(cell: str | None) -> tuple[str, ...]:
    """The options, none for an open question; raises DataError if the cell is no text of a list."""
    if not cell:
        return ()
    if not cell.strip().startswith("[") or not isinstance(_literal(cell), list):
        raise DataError(f"its options {cell!r} are not the text of a list: correct the row")
    return listed(cell)


def _references(cell: str, num_options: int) -> tuple[str, ...]:
    """The right letter of that many options, or the references of an open question."""
    answers = reference_answers(listed(cell))
    letters = string.ascii_uppercase[:num_options]
    if letters and answers not in [(letter,) for letter in letters]:
        raise DataError(
            f"its answer {cell!r} is not a letter of its {num_options} options: is this a "
            "test split without answers?"
        )
    if not all(answer.strip(" ?") for answer in answers):
        raise DataError(f"its answer is {cell!r}: is this a test split without answers?")
    return answers


def listed(text: str) -> tuple[str, ...]:
    """A list that a column holds as the text of a Python list; another text is its one item."""
    found = _literal(text) if text.strip().startswith("[") else None
    return tuple(str(item) for item in found) if isinstance(found, list) else (text,)


def _literal(text: str) -> Any:
    """The Python value that a text stands for; None if it stands for none."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return None
