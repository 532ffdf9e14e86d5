"""Answers questions within a budget, with a trained controller or a fixed configuration.

    answerer = Answerer.load("runs/one")
    answer = answerer.answer("chain: 3 plus 4", budget_ms=60)
    print(answer.text, answer.knobs, answer.latency_ms, answer.within_budget)

`answerer.stream` yields the text piece by piece while it is decoded, and then the answer. Without
"runs/one", the folder of a training run, one fixed configuration answers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from envs.checks import check_prompt
from envs.episode import Outcome
from envs.reward import is_violation
from envs.spec import Decoding, Knobs, Sample
from envs.terms import Terms
from launch.answering.loading import Settings, load_controller, load_default, run_or_shipped
from launch.answering.policies import Policy, Say
from launch.answering.streaming import OnToken, TextPieces, in_thread

logger = logging.getLogger(__name__)

WARM_UP_IMAGE_SIZE = (1344, 1008)
"""Width and height in pixels of an image that the high tier cuts into all of its crops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, what was chosen for it, and what it cost.

    Attributes:
        text: the answer, without special tokens.
        knobs: the configuration that ran.
        stages_ms: time of each stage on the device clock, in the order in which they run; blocks
            and decode steps are added up.
        latency_ms: the latency that the budget is for, on the device clock.
        wall_ms: the same on the wall clock.
        host_ms: tokenising and image resizing, which is not part of the latency.
        budget_ms: the requested budget.
        price: the price of time that it was chosen for.
        finished: whether the model ended the answer itself, within the token limit.
        num_output_tokens: number of decoded tokens, including the end-of-sequence token.
        num_prompt_tokens: number of vision and text tokens of the prompt.
        clock: the device clock.
        decided_by: what chose the configuration, in words.
    """

    text: str
    knobs: Knobs
    stages_ms: Mapping[str, float]
    latency_ms: float
    wall_ms: float
    host_ms: float
    budget_ms: float
    price: float
    finished: bool
    num_output_tokens: int
    num_prompt_tokens: int
    clock: str
    decided_by: str

    @property
    def within_budget(self) -> bool:
        """Whether the latency is at most the budget."""
        return not is_violation(self.latency_ms, self.budget_ms).item()

    def to_json(self) -> dict[str, Any]:
        """The answer as plain values, times rounded to microseconds: `generate.py --json`."""
        return {
            "answer": self.text,
            "choices": self.knobs.to_json(),
            "decided_by": self.decided_by,
            "stages_ms": {name: round(ms, 3) for name, ms in self.stages_ms.items()},
            "host_ms": round(self.host_ms, 3),
            "latency_ms": round(self.latency_ms, 3),
            "wall_ms": round(self.wall_ms, 3),
            "clock": self.clock,
            "budget_ms": self.budget_ms,
            "price": self.price,
            "within_budget": self.within_budget,
            "finished": self.finished,
        }


class Answerer:
    """A frozen model that is loaded once and answers many questions, one at a time.

    Latencies are those of a device that runs nothing else: do not answer in several threads.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @classmethod
    def load(
        cls,
        run: Path | str | None = None,
        *,
        worker_settings: Settings = None,
        executor_settings: Settings = None,
        say: Say = logger.info,
    ) -> Answerer:
        """Loads model and controller, and warms them up.

        The device of a controller that was trained on measured latencies is probed, here and from
        time to time between questions: its budgets are converted to the device's present speed.

        Args:
            run: a run folder or the folder of a checkpoint, as a path or URI; None takes the
                controller that ships with the small model, or a fixed configuration if
                `worker_settings` ask for another model.
            worker_settings: fields of `WorkerConfig` that replace those of the controller's run,
                or the defaults.
            executor_settings: fields of its `ExecutorConfig`, in the same way.
            say: called with progress messages, here and while answering.

        Raises:
            ValueError: no controller is found, a setting is unusable, or the controller was
                trained on another model.
        """
        settings = (worker_settings, executor_settings)
        run = run_or_shipped(run, worker_settings, say)
        policy: Policy = (
            load_default(*settings) if run is None else load_controller(run, *settings, say)
        )
        say("warming up ...")
        warm_up(policy)
        return cls(policy)

    def answer(
        self,
        question: str,
        *,
        budget_ms: float,
        price: float | None = None,
        image: Image.Image | Path | str | None = None,
    ) -> Answer:
        """Answers one question, after a probe of the device if one is due.

        Args:
            question: the question, in the style of its task.
            budget_ms: latency budget in ms of this device as it is now. A controller chooses as if
                budgets outside the range of its training were the nearest ones within.
            price: price of time, the worth of the time of one full answer in right answers; by
                default the one that the policy was trained to be deployed with.
            image: image or image file, None for a question without an image.

        Raises:
            ValueError: an unusable budget, price, question or image.
        """
        terms, sample = self.terms(budget_ms, price), as_sample(question, image)
        self._policy.follow()
        return self.run(sample, terms)

    def terms(self, budget_ms: float, price: float | None = None) -> Terms:
        """Budget and price of a request, whose price may be the policy's default.

        Raises:
            ValueError: an unusable budget or price.
        """
        price = self._policy.default_price if price is None else price
        return Terms(budget_ms=budget_ms, price=price)

    def stream(
        self,
        question: str,
        *,
        budget_ms: float,
        price: float | None = None,
        image: Image.Image | Path | str | None = None,
    ) -> Iterator[str | Answer]:
        """Answers one question like `answer`: yields pieces of its text, then the answer.

        The question runs in a thread of its own. Even an iterator that is closed early waits for
        its end.

        Raises:
            ValueError: an unusable budget, price, question or image.
        """
        terms, sample = self.terms(budget_ms, price), as_sample(question, image)
        self._policy.follow()
        pieces = self.pieces()
        for report in in_thread(lambda tell: self.run(sample, terms, on_token=tell)):
            if isinstance(report, Answer):
                if rest := pieces.rest(report.text):
                    yield rest
                yield report
            elif piece := pieces.add(report):
                yield piece

    def pieces(self) -> TextPieces:
        """Turns the tokens of one answer into text."""
        executor = self._policy.executor
        return TextPieces(executor.preprocessor.decode, executor.model.config.eos_token_id)

    @property
    def max_new_tokens(self) -> int:
        """Maximum length of an answer, in tokens."""
        return self._policy.executor.config.max_new_tokens

    def run(
        self,
        sample: Sample,
        terms: Terms,
        *,
        max_new_tokens: int | None = None,
        on_token: OnToken | None = None,
    ) -> Answer:
        """Answers at once, without a probe, for callers that run `follow` between questions.

        Args:
            sample: see `as_sample`.
            terms: see `terms`.
            max_new_tokens: maximum length of this answer, if it is to be shorter than others.
            on_token: called with each token as soon as it is decoded.

        Raises:
            ValueError: an unusable question or image.
        """
        decoding = Decoding(max_new_tokens=max_new_tokens, on_token=on_token or _unheard)
        return self._as_answer(self._policy.run(sample, terms, decoding), terms)

    def follow(self) -> None:
        """Probes how fast the device is now, if a probe is due and the policy needs it."""
        self._policy.follow()

    def _as_answer(self, outcome: Outcome, terms: Terms) -> Answer:
        execution = outcome.execution
        return Answer(
            text=execution.answer,
            knobs=execution.knobs,
            stages_ms=grouped(outcome.stages_ms),
            latency_ms=outcome.device_ms,
            wall_ms=outcome.wall_ms,
            host_ms=execution.host_ms,
            budget_ms=terms.budget_ms,
            price=terms.price,
            finished=execution.finished,
            num_output_tokens=execution.num_output_tokens,
            num_prompt_tokens=execution.num_vision_tokens + execution.num_text_tokens,
            clock=self._policy.executor.clock_name,
            decided_by=self._policy.source,
        )


def _unheard(_token_id: int) -> None:
    """Receives the tokens of an answer that nobody reads piece by piece."""


def warm_up(policy: Policy) -> None:
    """Runs questions on a large image and without one, so that no later question runs cold."""
    image = Image.new("RGB", WARM_UP_IMAGE_SIZE, "grey")
    policy.warm_up(as_sample("what is it", image), as_sample("what is it", None))


def as_sample(question: str, image: Image.Image | Path | str | None) -> Sample:
    """The question as a sample; raises ValueError for an unusable prompt or image."""
    check_prompt(question, "the prompt")
    is_file = isinstance(image, Path | str)
    return Sample(
        id=str(image) if is_file else "question",
        task="question",
        image=open_image(Path(image)) if is_file else image,
        prompt=question,
        answers=(),
    )


def open_image(path: Path) -> Image.Image:
    """Opens an image file; raises ValueError naming it if that fails."""
    try:
        with warnings.catch_warnings():
            # Large images are scaled down later; only those beyond Pillow's limit are refused.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: give an image file") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(
            f"{path} is too large: give an image of at most {limit} million pixels"
        ) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"{path} is not an image that can be read ({error}): give another file"
        ) from None


def grouped(stages_ms: Mapping[str, float]) -> dict[str, float]:
    """Stages in the order in which they run, with blocks and decode steps added up."""
    before_text = ("vision_global", "image_feature", "language_feature", "stage1", "vision_crops")
    order = ("copy", *before_text, "projector", "embed", "stage2")
    totals: dict[str, float] = dict.fromkeys((*order, "blocks", "head", "decode"), 0.0)
    for name, elapsed_ms in stages_ms.items():
        kind = {"block": "blocks", "decode": "decode"}.get(name.rpartition("_")[0], name)
        totals[kind] = totals.get(kind, 0.0) + elapsed_ms
    return totals
