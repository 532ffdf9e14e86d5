"""Molmo's prompts for the documents of lmms-eval's tasks, instead of the harness' own.

The published model was tuned with a style in front of the bare question. The harness adds
instructions ("Answer the question using a single word or phrase.") that it has never seen.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from envs.tasks.vqa.choice import molmo_choice
from envs.tasks.vqa.coco_caption import TEMPLATE
from envs.tasks.vqa.mmmu import listed
from envs.tasks.vqa.output import scored_text
from envs.tasks.vqa.prompts import after_hint, styled, with_options

Doc = Mapping[str, Any]
"""One row of a task's data set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model is asked, and how its output is read.

    Attributes:
        text: the user's text, in the style of the data set.
        read: maps the model's output to the response that the harness scores.
    """

    text: str
    read: Callable[[str], str]


def question(doc: Doc, style: str) -> Prompt:
    """The bare question of a document, in a style."""
    return Prompt(text=styled(style, doc["question"]), read=scored_text)


def caption(doc: Doc) -> Prompt:
    """The one caption template that this project uses; the document has none."""
    return Prompt(text=styled("coco_captioning", TEMPLATE), read=str.strip)


def science_qa(doc: Doc) -> Prompt:
    """The hint, if there is one, the question and its options; read as a letter."""
    asked = after_hint(doc["hint"], doc["question"])
    letters = string.ascii_uppercase[: len(doc["choices"])]
    text = with_options(asked, doc["choices"], letters=letters)
    return Prompt(text=styled("science_qa", text), read=partial(_letter, letters=letters))


def mmmu(doc: Doc) -> Prompt:
    """Multiple choice with its options, or an open question; markers of images stay in the text."""
    if doc["question_type"] != "multiple-choice":
        return question(doc, "vqa2")
    options = listed(doc["options"])
    text = with_options(doc["question"], options, letters=string.ascii_uppercase)
    return Prompt(text=styled("a_okvqa_mc", text), read=scored_text)


def _letter(output: str, letters: str) -> str:
    return letters[molmo_choice(scored_text(output), letters)]


PROMPTS: Mapping[str, Callable[[Doc], Prompt]] = {
    **dict.fromkeys(("vqav2_val", "vqav2_val_lite", "vqav2_test"), partial(question, style="vqa2")),
    **dict.fromkeys(("ok_vqa_val2014", "ok_vqa_val2014_lite"), partial(question, style="okvqa")),
    **dict.fromkeys(
        ("textvqa_val", "textvqa_val_lite", "textvqa_test"), partial(question, style="text_vqa")
    ),
    **dict.fromkeys(
        ("docvqa_val", "docvqa_val_lite", "docvqa_test"), partial(question, style="doc_qa")
    ),
    "stvqa": partial(question, style="st_qa"),
    **dict.fromkeys(("scienceqa", "scienceqa_img"), science_qa),
    **dict.fromkeys(("mmmu_val", "mmmu_test"), mmmu),
    **dict.fromkeys(
        (
            *("coco2014_cap_val", "coco2017_cap_val", "coco2017_cap_val_lite"),
            *("coco_karpathy_val", "coco_karpathy_test"),
        ),
        caption,
    ),
}
"""Prompts by the harness' name of a task. TallyQA is not among its tasks."""


def prompt_of(task: str, doc: Doc, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Molmo's prompt for a document; for a task that it has no style for, the harness' own text.

    Args:
        task: the harness' name of the task.
        doc: the document.
        messages: the harness' chat messages about it.
    """
    if task in PROMPTS:
        return PROMPTS[task](doc)
    return Prompt(text="\n".join(_contents(messages, "text", "text")), read=str.strip)


def images_of(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The images of chat messages, in order; raises ValueError for a video or sound."""
    for kind in ("video", "audio"):
        if _contents(messages, kind, "url"):
            raise ValueError(f"a question has a {kind}: choose tasks about images or text")
    return _contents(messages, "image", "url")


def _contents(messages: Sequence[Mapping[str, Any]], kind: str, key: str) -> list[Any]:
    parts = [part for message in messages for part in message["content"]]
    return [part[key] for part in parts if part["type"] == kind]
