"""Asks the same question at several budgets and prices, and shows the answers side by side.

    python launch/tour.py [RUN] [--image PICTURE] [--prompt TEXT] [--out FILE]

Prints a table, and writes a page with the picture and the stages of each answer as bars. Without
RUN, the controller that ships with the small model answers; without a question, it is one that
ships with the project.
"""

import sys

from launch.cluster.signals import stop_quietly

if __name__ == "__main__":
    stop_quietly()

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from envs.checks import check_prompt, check_within
from envs.prices import check_prices
from launch.cluster.console import check_first, check_local_paths
from launch.cluster.usage import options_from
from launch.storage.inputs import check_file, check_run


@dataclass(frozen=True, slots=True, kw_only=True)
class TourConfig:
    """One question and its stops.

    Attributes:
        run: a run folder or the folder of a checkpoint, as a path or URI.
        prompt: the question; by default one about a shipped picture.
        image: image file, for a prompt.
        num_budgets: number of budgets, evenly spaced over the controller's range.
        prices: ascending prices of time.
        out: the HTML file.
    """

    run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    image: Annotated[Path | None, tyro.conf.arg(metavar="PICTURE")] = None
    num_budgets: int = 5
    prices: tuple[float, ...] = (0.0, 0.1, 0.5)
    out: Path = Path("tour.html")

    def __post_init__(self) -> None:
        check_within(self, "num_budgets", low=1)
        check_prices(self.prices, "prices")
        if self.prompt is not None:
            check_prompt(self.prompt, "--prompt")
        elif self.image is not None:
            raise ValueError("--image needs a --prompt: what is to be asked about it?")


def command_line() -> TourConfig:
    """Reads the command line."""
    config = options_from(lambda: tyro.cli(TourConfig, prog="tour.py", description=__doc__))
    check_local_paths(config)
    check_run(config.run, "RUN")
    check_file(config.image, "--image")
    return config


if __name__ == "__main__":
    check_first(command_line)  # before the imports that take seconds

from collections.abc import Callable

import numpy as np
from rich.console import Console

from envs.spec import Sample
from envs.tasks.registry import load_tasks
from launch.answering.answerer import as_sample, warm_up
from launch.answering.loading import load_controller, run_or_shipped
from launch.answering.tour import as_page, as_table, take
from launch.cluster.console import one_clear_error, printable, wide_console
from launch.cluster.waiting import telling
from launch.storage.outputs import writable_file

SHIPPED_TASK, SHIPPED_INDEX = "reading", 0
"""The first test sample of the task whose pictures have the smallest details."""


PARTIAL = "the share of characters that need no edit (ANLS); half or less counts as wrong"
"""How that task scores an answer that is nearly right."""


def question(config: TourConfig) -> tuple[Sample, Callable[[str], float] | None]:
    """The sample, and what scores its answers if that is known."""
    if config.prompt is not None:
        return as_sample(config.prompt, config.image), None
    task = load_tasks((SHIPPED_TASK,))[SHIPPED_TASK]
    sample = task.sample("test", SHIPPED_INDEX)
    return sample, lambda answer: task.score(sample, answer)


def main() -> int:
    """Asks, prints the table and writes the page."""
    config = command_line()
    sample, score = question(config)
    out, progress = writable_file(config.out, "--out"), Console(stderr=True, highlight=False)
    run = run_or_shipped(config.run, None, progress.print)
    assert run is not None, "a controller ships with the small model"
    with telling("the model to load"):
        policy = load_controller(run, None, None, lambda _said: None)
        warm_up(policy)
    low_ms, high_ms = policy.range.low_ms, policy.range.high_ms
    middles_ms = np.linspace(low_ms, high_ms, 2 * config.num_budgets + 1)[1::2]
    budgets_ms = [float(f"{middle_ms:.2g}") for middle_ms in middles_ms]
    tour = take(policy, sample, score, PARTIAL, budgets_ms=budgets_ms, prices=config.prices)
    expected = f" (expected: {' or '.join(sample.answers)})" if score else ""
    console = wide_console()
    console.print(
        f"question            {printable(sample.prompt)}{expected}", markup=False, highlight=False
    )
    full = f"{printable(tour.full.text)}, {tour.full.latency_ms:.1f} ms"
    console.print(f"full configuration  {full}", markup=False, highlight=False)
    console.print(as_table(tour))
    decided_by = f"controller: {config.run or 'the one that ships'}"
    out.write_text(as_page(tour, decided_by), encoding="utf-8")
    console.print(f"page {out}", markup=False, soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
