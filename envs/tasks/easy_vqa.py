"""The easy-vqa package's real images and questions about one shape."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from envs.spec import DataError, Sample
from envs.tasks.metrics import exact_match
from envs.tasks.render import COLOR_NAMES, COLORS, HEIGHT, WIDTH, shape_class
from envs.tasks.scene import Question, Scene, check_split, sample_rng, split_of

SHAPE_OF_ANSWER = {"circle": "circle", "rectangle": "square", "triangle": "triangle"}


class EasyVqa:
    """Global questions; the 64x64 image is doubled and set into the common canvas.

    The package's test images are the test split; of its training images 15 % are the validation
    split. Its wordings (107 in all) are the same everywhere.

    Args:
        root: the package's data folder.
    """

    name = "easy_vqa"

    def __init__(self, root: Path | None = None) -> None:
        self._root = root

    @cached_property
    def root(self) -> Path:
        """The data folder."""
        if self._root is not None:
            return self._root
        return Path(str(files("easy_vqa"))) / "data"

    @cached_property
    def _questions(self) -> dict[str, dict[int, list[tuple[str, str]]]]:
        splits: dict[str, dict[int, list[tuple[str, str]]]] = {
            split: defaultdict(list) for split in ("train", "validation", "test")
        }
        for folder in ("train", "test"):
            path = self.root / folder / "questions.json"
            try:
                rows = json.loads(path.read_text())
            except FileNotFoundError:
                raise DataError(f"{path} is missing: reinstall the easy-vqa package") from None
            except ValueError as error:
                raise DataError(f"{path} is not valid JSON ({error})") from None
            for question, answer, image in rows:
                validation = folder == "train" and split_of(f"easy_vqa {image}") == "validation"
                splits["validation" if validation else folder][image].append((question, answer))
        return splits

    def _images(self, split: str) -> list[int]:
        images = sorted(self._questions[check_split(split)])
        if not images:
            raise DataError(f"the {split} split of easy_vqa is empty: look into {self.root}")
        return images

    def load_image(self, split: str, image: int, sample_id: str) -> Image.Image:
        """The original 64x64 picture; raises DataError that names the sample if it is unusable."""
        folder = "test" if split == "test" else "train"
        path = self.root / folder / "images" / f"{image}.png"
        try:
            with Image.open(path) as picture:
                return picture.convert("RGB")
        except FileNotFoundError:
            raise DataError(f"sample {sample_id}: image {path} is missing") from None
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise DataError(f"sample {sample_id}: image {path} is broken ({error})") from None

    def scene(
        self,
        split: str,
        rng: np.random.Generator,
        *,
        num_questions: int = 1,
        dense: bool = False,
        sample_id: str = "easy_vqa scene",
    ) -> Scene:
        """See `envs.tasks.scene.SceneSource`; `dense` has no effect here."""
        del dense
        images = self._images(split)
        image = images[rng.integers(len(images))]
        pairs = self._questions[split][image]
        order = rng.permutation(len(pairs))[: max(1, num_questions)]
        questions = tuple(self._ask(*pairs[i]) for i in order)
        picture = self.load_image(split, image, sample_id).resize((HEIGHT, HEIGHT))
        corner = int(np.asarray(picture)[0, 0].mean())
        canvas = Image.new("RGB", (WIDTH, HEIGHT), (corner, corner, corner))
        left = int(rng.integers(0, WIDTH - HEIGHT + 1))
        canvas.paste(picture, (left, 0))
        labels = self._labels(np.asarray(canvas), dict(pairs))
        return Scene(image=canvas, questions=questions, labels=labels)

    def _ask(self, question: str, answer: str) -> Question:
        kind = "yes/no" if answer in ("yes", "no") else "open"
        return Question(prompt=f"vqa: {question}", answers=(answer,), metadata={"kind": kind})

    def _labels(self, pixels: np.ndarray, answers: dict[str, str]) -> np.ndarray:
        labels = np.zeros((*pixels.shape[:2], 2), dtype=np.uint8)
        ink = np.abs(pixels.astype(int) - pixels[0, 0].astype(int)).max(-1) > 40
        found = set(answers.values())
        shapes, colors = found & set(SHAPE_OF_ANSWER), found & set(COLORS)
        if shapes:
            labels[ink, 0] = shape_class(SHAPE_OF_ANSWER[min(shapes)])
        if colors:
            labels[ink, 1] = 1 + COLOR_NAMES.index(min(colors))
        return labels

    def sample(self, split: str, index: int) -> Sample:
        """See `envs.spec.Task`."""
        sample_id = f"{self.name}/{split}/{index}"
        rng = sample_rng(self.name, split, index)
        scene = self.scene(split, rng, sample_id=sample_id)
        question = scene.questions[0]
        return Sample(
            id=sample_id,
            task=self.name,
            image=scene.image,
            prompt=question.prompt,
            answers=question.answers,
            metadata=dict(question.metadata),
        )

    def score(self, sample: Sample, answer: str) -> float:
        """Exact match."""
        return exact_match(answer, sample.answers)
