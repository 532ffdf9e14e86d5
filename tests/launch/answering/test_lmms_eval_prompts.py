"""Prompts for the documents of lmms-eval's tasks, byte for byte."""

import pytest

from launch.answering.lmms_eval_prompts import PROMPTS, images_of, prompt_of

SCIENCE = {"question": "Which is it?", "choices": ["a cat", "a dog"], "hint": ""}
CHOICE = {
    "question": "See <image 2>: which one?",
    "question_type": "multiple-choice",
    "options": '[\'left\', "the \\"right\\" one"]',
}
OPEN = {"question": "How many <image 1>?", "question_type": "open", "options": "[]"}


@pytest.mark.parametrize(
    ("task", "doc", "text"),
    [
        ("vqav2_val", {"question": "What is it?"}, "vqa2: What is it?"),
        ("ok_vqa_val2014", {"question": "What is it?"}, "okvqa: What is it?"),
        ("textvqa_val", {"question": "what is it?"}, "text_vqa: what is it?"),
        ("docvqa_val_lite", {"question": "What is it?"}, "doc_qa: What is it?"),
        ("stvqa", {"question": "What is it?"}, "st_qa: What is it?"),
        ("scienceqa_img", SCIENCE, "science_qa: Which is it?\nA: a cat\nB: a dog\n"),
        (
            "scienceqa",
            {**SCIENCE, "hint": "Look."},
            "science_qa: Look.\nWhich is it?\nA: a cat\nB: a dog\n",
        ),
        (
            "mmmu_val",
            CHOICE,
            'a_okvqa_mc: See <image 2>: which one?\nA: left\nB: the "right" one\n',
        ),
        ("mmmu_val", OPEN, "vqa2: How many <image 1>?"),
        (
            "coco2014_cap_val",
            {"question": "Provide a one-sentence caption for the provided image."},
            "coco_captioning: Caption the image with 1 or two sentences",
        ),
    ],
)
def test_the_prompts_are_those_that_molmo_was_tuned_on(task, doc, text):
    messages = [{"role": "user", "content": [{"type": "text", "text": "In one word: ..."}]}]
    assert prompt_of(task, doc, messages).text == text


def test_outputs_are_read_as_molmo_is_evaluated():
    assert prompt_of("stvqa", {"question": "q"}, []).read(" Answer: Main  St ") == "Main  St"
    assert prompt_of("scienceqa", SCIENCE, []).read(" b") == "B"
    assert prompt_of("mmmu_val", CHOICE, []).read(" B ") == "B"
    assert PROMPTS["coco2014_cap_val"]({}).read(" A cat.\nAnswer: it sits. ") == (
        "A cat.\nAnswer: it sits."
    )


def test_a_task_without_a_style_is_asked_in_the_harness_words():
    content = [{"type": "image", "url": "pixels"}, {"type": "text", "text": "digits: which?"}]
    messages = [{"role": "user", "content": content}]
    prompt = prompt_of("other", {"question": "?"}, messages)
    assert (prompt.text, prompt.read(" 7\n")) == ("digits: which?", "7")


def test_images_come_in_order_and_nothing_else_is_seen():
    content = [{"type": "image", "url": name} for name in ("first", "second")]
    assert images_of([{"role": "user", "content": content}]) == ["first", "second"]
    with pytest.raises(ValueError, match="has a video"):
        images_of([{"role": "user", "content": [{"type": "video", "url": "film"}]}])
