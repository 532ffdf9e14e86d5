"""Measures block importance: the accuracy lost when one block is skipped and all others run.

    python launch/block_importance.py OUT.json --worker.model MODEL [--check]

Writes one score per block as JSON. With `--check` it also compares three ways to choose which
blocks to keep, on other samples: by importance, the first ones, and at random.
"""

import sys

from launch.cluster.signals import stop_quietly

if __name__ == "__main__":
    stop_quietly()

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from envs.checks import check_within
from envs.tasks.scene import check_split
from launch.cluster.console import check_first, check_local_paths
from launch.cluster.usage import options_from
from rollout.worker_config import WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceConfig:
    """One measurement of block importance.

    Attributes:
        output: JSON file for the scores by block.
        split: split of the tasks: train, validation or test.
        num_samples: number of samples; each is run with every block skipped once.
        first_index: index of the first sample.
        check: also compares, on as many other samples, which 12 and 14 blocks to keep: the most
            important ones, the first ones, or random ones.
        worker: the frozen model and its tasks.
    """

    output: Annotated[Path, tyro.conf.Positional]
    split: str = "validation"
    num_samples: int = 200
    first_index: int = 10_000
    check: bool = False
    worker: WorkerConfig = field(default_factory=WorkerConfig)

    def __post_init__(self) -> None:
        check_within(self, "num_samples", low=1)
        check_within(self, "first_index", low=0)
        check_split(self.split)


def command_line() -> ImportanceConfig:
    """Reads the command line."""
    config = options_from(
        lambda: tyro.cli(ImportanceConfig, prog="block_importance.py", description=__doc__)
    )
    check_local_paths(config)
    return config


if __name__ == "__main__":
    check_first(command_line)  # before the imports that take seconds

import json
import logging
from collections.abc import Collection

import numpy as np
from rich.table import Table

from envs.scoring import score_of
from envs.spec import Sample, Tier
from launch.analysis.statistics import Interval
from launch.cluster.console import one_clear_error, wide_console
from launch.cluster.progress import counted
from launch.cluster.waiting import telling
from launch.storage.outputs import writable_file
from rollout.block_skipping import BlockImportance
from rollout.build import load_frozen_model
from rollout.fleet import MAX_REPLACEMENTS
from rollout.molmoe import ModelInputs, generate


class Scorer:
    """Scores the frozen model's answers with some blocks skipped, at the highest tier."""

    def __init__(self, config: ImportanceConfig) -> None:
        with telling("the model to load"):
            self.model, self.preprocessor = load_frozen_model(config.worker)
        self.tasks = config.worker.build_tasks()
        self.config = config

    def samples(self, first_index: int) -> list[tuple[Sample, ModelInputs]]:
        """Samples with their inputs; an unusable one is logged and another one taken."""
        found, index, num_unusable = [], first_index, 0
        while len(found) < self.config.num_samples:
            try:
                sample = self.tasks.sample(self.config.split, index)
                inputs = self.preprocessor(sample.image, sample.prompt, Tier.HIGH.max_crops)
            except ValueError as error:
                num_unusable += 1
                if num_unusable > MAX_REPLACEMENTS:
                    raise
                logging.warning("left out: %s", error)
            else:
                found.append((sample, inputs.to(self.model.device)))
            index += 1
        return found

    def score(self, sample: Sample, inputs: ModelInputs, skipped: Collection[int]) -> float:
        """Score of the answer without these blocks."""
        limit = self.config.worker.executor.max_new_tokens
        generation = generate(self.model, inputs, max_new_tokens=limit, skipped=skipped)
        return score_of(self.tasks, sample, self.preprocessor.decode(generation.token_ids))


def measure(scorer: Scorer, first_index: int) -> tuple[float, dict[str, float]]:
    """Accuracy of the whole model, and its fall by block."""
    num_blocks = scorer.model.config.n_layers
    scores = np.zeros((num_blocks + 1, scorer.config.num_samples))
    for column, (sample, inputs) in enumerate(
        counted(scorer.samples(first_index), "samples with blocks skipped one by one")
    ):
        for block in range(num_blocks):
            scores[block, column] = scorer.score(sample, inputs, (block,))
        scores[-1, column] = scorer.score(sample, inputs, ())
    full = scores[-1].mean()
    return float(full), {
        str(b): round(float(full - scores[b].mean()), 4) for b in range(num_blocks)
    }


def check(scorer: Scorer, importance: BlockImportance, first_index: int) -> Table:
    """Accuracy with 12 and 14 blocks kept by three rules, with 95 % intervals."""
    rng = np.random.default_rng(0)
    num_blocks = scorer.model.config.n_layers
    table = Table("blocks", "by importance", "by prefix", "at random")
    samples = scorer.samples(first_index)
    for count in (12, 14):
        others = np.arange(1, num_blocks)
        draws = [rng.choice(others, num_blocks - count, replace=False) for _ in samples]
        rules = {
            "importance": [importance.skipped(1, count)] * len(samples),
            "prefix": [frozenset(range(count, num_blocks))] * len(samples),
            "random": [frozenset(draw.tolist()) for draw in draws],
        }
        cells = []
        for name, skips in rules.items():
            pairs = counted(list(zip(samples, skips, strict=True)), f"{count} blocks by {name}")
            scores = np.array([scorer.score(*sample, skipped) for sample, skipped in pairs])
            cells.append(str(Interval.of(scores)))
        table.add_row(str(count), *cells)
    return table


def main() -> int:
    """Measures, prints and writes."""
    config = command_line()
    writable_file(config.output, "OUT.json")
    scorer, console = Scorer(config), wide_console()
    full, scores = measure(scorer, config.first_index)
    table = Table("block", "accuracy lost without it")
    for block, lost in scores.items():
        table.add_row(block, f"{lost:+.4f}")
    console.print(table)
    console.print(f"all blocks: {full:.3f} on {config.num_samples} samples of {config.split}")
    config.output.write_text(json.dumps(scores, indent=1) + "\n")
    if config.check:
        importance = BlockImportance.from_mapping(scores, len(scores))
        console.print(check(scorer, importance, config.first_index + config.num_samples))
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
