"""The page: one HTML file, with its examples and settings put in."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from envs.tasks.registry import load_tasks

PAGE = Path(__file__).parent / "page.html"

BEGIN = "const SETTINGS = /*SETTINGS*/"
"""What stands before the settings, which end with the line."""

EXAMPLES = {"easy_vqa": 5, "digits": 3, "reading": 2, "counting": 4, "recall": 1, "chain": 2}
"""Index of a sample of the test split, by task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question to try.

    Attributes:
        title: the task.
        prompt: the question.
        image: the image as a data URL, if there is one.
    """

    title: str
    prompt: str
    image: str | None


def shipped_examples() -> list[Example]:
    """One question of each task that ships with the project, and one without an image."""
    tasks = load_tasks(tuple(EXAMPLES))
    samples = [tasks[name].sample("test", index) for name, index in EXAMPLES.items()]
    about_images = [
        Example(
            title=sample.task.replace("_", " "),
            prompt=sample.prompt,
            image=None if sample.image is None else data_url(sample.image),
        )
        for sample in samples
    ]
    return [*about_images, Example(title="without an image", prompt="chain: 3 plus 4", image=None)]


def data_url(image: Image.Image) -> str:
    """An image as a PNG in a data URL."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def render(examples: Sequence[Example], budget_ms: float) -> str:
    """The page with these examples and this initial budget."""
    settings: dict[str, Any] = {
        "examples": [asdict(example) for example in examples],
        "budget_ms": budget_ms,
    }
    before, begin, after = PAGE.read_text().partition(BEGIN)
    assert begin, "the page has lost the place of its settings"
    # The script must not end within a string.
    content = json.dumps(settings).replace("<", "\\u003c")
    return f"{before}{begin}{content};{after[after.index(chr(10)) :]}"
