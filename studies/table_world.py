"""Trains recipes on a table of real outcomes and scores them on samples that they never saw.

    python -m studies.outcomes O/train --num-samples 1152
    python -m studies.outcomes O/test --split test --num-samples 384
    python -m studies.table_world O --seeds 0 1 2
    python -m studies.table_world O --seeds 0 1 2 --no-image
    python -m studies.table_world O --recipe embedded-warm --steps 1
    python -m studies.table_world O --seeds 0 1 2 --shuffle prompts
    python -m studies.table_world O --seeds 0 1 2 --recipe molmoe-h100 --width 2048 --steps 208

A run takes one minute instead of ten. Scores are the model's own, as are both features. Each sample
takes the latencies of a sample of the shipped profile, of the same task and with as many tokens,
from its first half in training and from its second half in the test; sample and measurement scatter
on top. Latency tokens come from a fixed random network. A larger width carries the features there
by a fixed random map; a recipe without a number of groups has that of eight actors. The rivals are
chosen on the whole profile, the best per task in hindsight on the test samples themselves; a
supervised model is fitted to all outcomes of the training samples. `--quick` takes a few samples of
the shipped profile for both.

Shapes: S samples, C configurations, K budgets.
"""

import contextlib
import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from benchmarks.options import needed, read_options
from envs.spec import NUM_SIZES, Sample, all_knobs
from envs.tasks import build_tasks
from launch.analysis.greedy_sweep import greedy_sweeps
from launch.analysis.outcomes import Outcome, outcome, outcome_on
from launch.analysis.rivals import choose_rivals
from launch.analysis.statistics import Interval
from launch.cluster.console import one_clear_error
from launch.joint_grpo import train
from launch.pretraining.batches import Encoder
from launch.run.recipes import RECIPES, SHIPPED_PROFILE, JointGRPOConfig, PriceConfig
from launch.run.warm_start import warm_start_from_profile
from learner.learner import Learner
from policy.controller import Controller
from rollout.build import build_executor
from rollout.group_sharing import MolmoEGroupSession
from rollout.profiling.conversion import sample_place
from rollout.profiling.profile_table import ProfileTable
from rollout.simulation.stand_in_blocks import StandInBlocks
from rollout.simulation.table_fleet import TableFleet
from rollout.simulation.table_samples import TableSamples, budgets_of, calibration_of
from rollout.worker_config import WorkerConfig
from studies import supervised
from studies.known_outcomes import Outcomes
from studies.table_run import quiet_settings, table_run

NUM_BUDGETS = 8
NUM_ACTORS = 8
"""Of recipes that have as many groups per step as their actors can run."""

NUM_QUICK = 100
SAMPLE_SCATTER, SCATTER = 0.03, 0.045
"""Standard deviations of log latency: between equal samples, and between repeats of one."""

ANSWER_TOKEN_WEIGHT = 2
"""Weight of an answer's token against a prompt's in the search for a sample of similar latency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableWorldConfig:
    """One study.

    Attributes:
        quick: few steps on few samples of the shipped profile; their figures say nothing.
        outcomes: folder with the outcomes of both splits, in `train` and `test`.
        recipe: the recipe that is trained.
        width: d_model of the controller, instead of the small model's.
        no_image: the controller does not see the image.
        shuffle: takes each sample's prompt or image from another sample, or tells the controller
            other budgets than those that count.
        groups: groups per step and their size, instead of the recipe's.
        steps: steps instead of the recipe's.
        residual_weight: weight of the measured residual, instead of the recipe's.
        model_updates: updates of the outcome model per step, instead of the recipe's.
        policy_updates: updates of the policy per step, instead of the recipe's.
        num_scored: configurations of each group that are scored off the clock, instead of the
            recipe's.
        num_train: uses only the first training samples.
        seeds: seeds of the runs.
        supervised_steps: steps in which the supervised model is fitted.
        prices: prices at which all are compared.
        free: trains without prices, as if time within the budget were free.
        no_sizes: the controller does not see the sizes of image and prompt.
        no_tasks: training does not know of which task a sample is.
    """

    quick: bool = False
    outcomes: Annotated[Path | None, tyro.conf.Positional] = None
    recipe: Literal["embedded", "embedded-warm", "embedded-grpo", "molmoe-h100"] = "embedded"
    width: int | None = None
    no_image: bool = False
    shuffle: Literal["prompts", "images", "budgets"] | None = None
    groups: tuple[int, int] | None = None
    steps: int | None = None
    seeds: tuple[int, ...] = (0,)
    supervised_steps: int = 3000
    residual_weight: float | None = None
    model_updates: int | None = None
    policy_updates: int | None = None
    num_scored: int | None = None
    num_train: int | None = None
    prices: tuple[float, ...] = (0.0, 0.02, 0.1, 0.2, 0.3, 0.5, 1.0)
    free: bool = False
    no_sizes: bool = False
    no_tasks: bool = False


QUICK = TableWorldConfig(quick=True, groups=(4, 2), steps=2, supervised_steps=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of samples without running a configuration: features and token counts."""

    language_SD: np.ndarray
    image_SI: np.ndarray
    tokens_S2: np.ndarray

    @classmethod
    def of(cls, samples: list[Sample]) -> "Seen":
        """What the embedded model makes of them."""
        executor = build_executor(WorkerConfig(device="cpu", dtype="float32"))
        encoder, language, image, tokens = Encoder(), [], [], []
        for sample in samples:
            features, _ = MolmoEGroupSession(executor, sample).features()
            language.append(features.language)
            image.append(features.image)
            answer = encoder.answer_ids(sample.task, sample.answers[0])
            tokens.append((len(encoder.tokenizer.encode(sample.prompt).ids), len(answer)))
        return cls(
            language_SD=np.array(language, np.float32),
            image_SI=np.array(image, np.float32),
            tokens_S2=np.array(tokens),
        )

    def rows(self, rows: np.ndarray) -> "Seen":
        """Some of the samples."""
        return Seen(
            language_SD=self.language_SD[rows],
            image_SI=self.image_SI[rows],
            tokens_S2=self.tokens_S2[rows],
        )

    def shuffled(self, what: str) -> "Seen":
        """With each sample's prompt, or image, taken from another sample."""
        rows_S = np.random.default_rng(0).permutation(len(self.tokens_S2))
        if what == "prompts":
            return replace(self, language_SD=self.language_SD[rows_S])
        return replace(self, image_SI=self.image_SI[rows_S])

    def carried_to(self, width: int) -> "Seen":
        """With features of another width that say the same, but for the sizes, which stay."""
        end = self.image_SI.shape[1] - 1 - NUM_SIZES
        image_SI = np.concatenate(
            (_carried(self.image_SI[:, :end], width), self.image_SI[:, end:]), 1
        )
        return replace(self, language_SD=_carried(self.language_SD, width), image_SI=image_SI)

    def without_sizes(self) -> "Seen":
        """With sizes of zero."""
        image_SI = self.image_SI.copy()
        image_SI[:, -1 - NUM_SIZES : -1] = 0
        return replace(self, image_SI=image_SI)

    def samples(self, table: ProfileTable, *, image: bool) -> TableSamples:
        """A table with these features, or without those of the image."""
        image_SI = self.image_SI if image else self.image_SI[:, :0]
        return TableSamples(
            table=table, language_feature_SD=self.language_SD, image_feature_SI=image_SI
        )


def _carried(features_SD: np.ndarray, width: int) -> np.ndarray:
    """Features times a fixed random matrix that keeps lengths on average, [S, width]."""
    num_features = features_SD.shape[1]
    shape = num_features, width
    matrix_DW = np.random.default_rng(num_features).normal(0, num_features**-0.5, shape)
    return (features_SD @ matrix_DW).astype(np.float32)


def split_table(
    outcomes: Outcomes, profile: ProfileTable, profile_seen: Seen, rows: range
) -> tuple[ProfileTable, Seen]:
    """The samples of one split, with latencies like those of some rows of the profile."""
    samples, scores = outcomes.samples(), outcomes.scores_SC
    seen, rng = Seen.of(samples), np.random.default_rng(len(rows) + rows.start)
    steady, kinds = profile.denoised(), np.array(profile.tasks)[rows]
    weights = np.array([1, ANSWER_TOKEN_WEIGHT])
    alike = []
    for sample, tokens in zip(samples, seen.tokens_S2, strict=True):
        distance = np.abs(profile_seen.tokens_S2[rows] - tokens) @ weights
        distance = np.where(kinds == sample.task, distance, np.inf)
        alike.append(rows.start + rng.choice(np.flatnonzero(distance == distance.min())))
    columns = [profile.column(knobs) for knobs in all_knobs()]
    own = SAMPLE_SCATTER * rng.normal(size=(len(samples), 1))
    noise = own + SCATTER * rng.normal(size=scores.shape)
    table = ProfileTable(
        configurations=tuple(all_knobs()),
        sample_ids=tuple(sample.id for sample in samples),
        tasks=tuple(sample.task for sample in samples),
        prompts=tuple(sample.prompt for sample in samples),
        scores=scores,
        latencies_ms=(steady.latencies_ms[alike][:, columns] * np.exp(noise)).astype(np.float32),
        cheapest_ms=(profile.cheapest_ms[alike] * np.exp(own[:, 0])).astype(np.float32),
    )
    return table, seen


class MisledController(Controller):
    """A controller that sees budgets unrelated to those that count."""

    def budget_tokens(
        self, budgets_ms_B: torch.Tensor, prices_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The tokens of other budgets, the same ones for equal budgets."""
        told = self.config.budget_range
        chaos_B = (budgets_ms_B.double() * 12345.678).frac()
        told_ms_B = told.low_ms + (told.high_ms - told.low_ms) * chaos_B
        return super().budget_tokens(told_ms_B, prices_B)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Training and test samples, and the profile for rivals and warm starts.

    Attributes:
        splits: samples by split, with what is seen of them.
        image: whether the controller sees the image.
        has_tasks: whether training knows the samples' tasks.
        controller_class: the controller that is trained.
    """

    splits: Mapping[str, tuple[ProfileTable, Seen]]
    image: bool = True
    has_tasks: bool = True
    controller_class: type[Controller] = Controller

    @classmethod
    def of(cls, train: Outcomes, test: Outcomes, profile: ProfileTable) -> "World":
        """Gives the outcomes latencies like those of a profile."""
        tasks = build_tasks()
        seen = Seen.of([tasks.sample(*sample_place(name)) for name in profile.sample_ids])
        half, end = len(profile.sample_ids) // 2, len(profile.sample_ids)
        return cls(
            splits={
                "train": split_table(train, profile, seen, range(half)),
                "test": split_table(test, profile, seen, range(half, end)),
                "validation": (profile, seen),
            }
        )

    def samples(self) -> dict[str, TableSamples]:
        """The splits as the fleet has them."""
        return {
            name: seen.samples(
                table if self.has_tasks else replace(table, tasks=("any",) * len(table.tasks)),
                image=self.image,
            )
            for name, (table, seen) in self.splits.items()
        }

    def run(
        self, base: JointGRPOConfig, budgets_ms: np.ndarray, prices: Sequence[float]
    ) -> dict[float, Outcome]:
        """Trains one controller and scores it on the test samples at each price."""
        splits = self.samples()
        blocks = StandInBlocks(splits["test"].language_feature_SD.shape[1])
        fleet = TableFleet(splits, blocks, self.controller_class)
        validation = splits["validation"].table
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            run = table_run(Path(folder) / "run", quiet_settings(base), fleet)
            if base.warm_start_profile:
                assert isinstance(run.learner, Learner)
                full_ms = run.calibration.full_ms
                warm_start_from_profile(run.learner, validation, run.setup, fleet, full_ms=full_ms)
            train(run)
            sweeps = greedy_sweeps(
                fleet,
                run.setup,
                run.learner.weights(),
                split="test",
                indices=range(len(splits["test"].table.sample_ids)),
                budgets_ms=budgets_ms.tolist(),
                prices=prices,
            )
        return {
            sweep.price: outcome(sweep.scores, sweep.latencies_ms, sweep.budgets_ms, sweep.feasible)
            for sweep in sweeps
        }

    def supervised(
        self, budgets_ms: np.ndarray, prices: Sequence[float], steps: int
    ) -> dict[float, Outcome]:
        """The choices of a model that was fitted to everything known of the training samples."""
        splits = self.samples()
        model = supervised.fit(splits["train"], splits["validation"], steps)
        full_ms = calibration_of(splits["train"].table).full_ms
        return {
            price: supervised.choices(model, splits["test"], budgets_ms, price, full_ms)
            for price in prices
        }


def world_of(options: TableWorldConfig) -> World:
    """The requested world."""
    profile = ProfileTable.load(SHIPPED_PROFILE)
    if options.quick and options.outcomes is None:
        train, test = Outcomes.shipped(range(40)), Outcomes.shipped(range(40, 60))
        world = World.of(train, test, profile.rows(range(NUM_QUICK)))
    else:
        folder = needed(options.outcomes, "OUTCOMES, the folder of studies.outcomes,")
        train, test = (Outcomes.load(folder / name, name) for name in ("train", "test"))
        world = World.of(train, test, profile)
    world = replace(world, image=not options.no_image, has_tasks=not options.no_tasks)
    if options.num_train is not None:
        splits = dict(world.splits)
        table, seen = splits["train"]
        rows = np.arange(min(options.num_train, len(table.sample_ids)))
        splits["train"] = table.rows(rows), seen.rows(rows)
        world = replace(world, splits=splits)
    if options.width is not None:
        width = options.width
        wide = {name: (t, seen.carried_to(width)) for name, (t, seen) in world.splits.items()}
        world = replace(world, splits=wide)
    if options.no_sizes:
        blind = {name: (t, seen.without_sizes()) for name, (t, seen) in world.splits.items()}
        world = replace(world, splits=blind)
    if options.shuffle == "budgets":
        return replace(world, controller_class=MisledController)
    if options.shuffle is None:
        return world
    shuffled = {n: (t, s.shuffled(options.shuffle)) for n, (t, s) in world.splits.items()}
    return replace(world, splits=shuffled)


def recipe_of(options: TableWorldConfig) -> JointGRPOConfig:
    """The recipe with the requested groups and steps."""
    base = RECIPES[options.recipe]().sized_for(NUM_ACTORS)
    if options.groups:
        groups, size = options.groups
        base = replace(base, groups_per_step=groups, group_size=size)
    replay = base.learner.replay
    names = ("residual_weight", "model_updates", "policy_updates")
    changes = {n: v for n in names if (v := getattr(options, n)) is not None}
    if changes:
        if replay is None:
            raise ValueError(
                f"the recipe {options.recipe} has no replay: leave {', '.join(changes)} out"
            )
        base = replace(base, learner=replace(base.learner, replay=replace(replay, **changes)))
    if options.num_scored is not None:
        base = replace(base, num_scored=options.num_scored)
    if options.free:
        base = replace(base, price=PriceConfig(low=None, high=None))
    if options.steps:
        schedule = replace(base.learner.entropy, steps=options.steps)
        learner = replace(base.learner, lr_steps=options.steps, entropy=schedule)
        base = replace(base, steps=options.steps, learner=learner)
    return base


def mean_outcome(rows: Sequence[Outcome]) -> Outcome:
    """The mean of several runs' outcomes."""
    arrays = ("in_budget_accuracy", "ci", "violation", "by_sample", "ms_by_sample")
    means = {name: np.mean([getattr(row, name) for row in rows], 0) for name in arrays}
    rate = float(np.mean([row.violation_rate for row in rows]))
    return Outcome(**means, violation_rate=rate, names=())


def report(
    runs: Sequence[Mapping[float, Outcome]],
    others: Mapping[str, Mapping[float, Outcome]],
    budgets_ms: np.ndarray,
    full_ms: float,
) -> None:
    """Prints the runs next to their rivals: by price, by budget, and what they are worth."""
    prices = list(runs[0])
    mean = {price: mean_outcome([run[price] for run in runs]) for price in prices}
    rows = {"controller": mean, **others}
    print("accuracy within budget, mean device time, violations at each price:")
    print(" " * 23, "  ".join(f"{price:<22g}" for price in prices))
    for name, by_price in rows.items():
        cells = [
            f"{row.accuracy:.4f} {row.mean_ms:.2f} ms {row.violation_rate:4.1%}"
            for row in by_price.values()
        ]
        print(f"{name:>23}  {'  '.join(f'{cell:<22}' for cell in cells)}")
    print("the controller's lead, accuracy less price * time, paired by sample:")
    for name, by_price in others.items():
        cells = [
            Interval.of(_worth_S(mean[p], p / full_ms) - _worth_S(by_price[p], p / full_ms))
            for p in prices
        ]
        print(f"{name:>23}  {'  '.join(f'{cell.signed():<22}' for cell in cells)}")
    print("accuracy and violations at price", prices[0], "by budget:")
    print(" " * 23, "  ".join(f"{budget_ms:.0f} ms" for budget_ms in budgets_ms))
    for name, by_price in rows.items():
        row = by_price[prices[0]]
        pairs = zip(row.in_budget_accuracy, row.violation, strict=True)
        print(f"{name:>23}  {'  '.join(f'{a:.3f} {v:4.1%}' for a, v in pairs)}")


def _worth_S(row: Outcome, cost_per_ms: float) -> np.ndarray:
    return row.by_sample - cost_per_ms * row.ms_by_sample


def main() -> int:
    """Trains one controller per seed, and prints it next to its rivals."""
    options = read_options(QUICK, __doc__)
    torch.set_num_threads(1)
    base, world = recipe_of(options), world_of(options)
    validation, test = world.splits["validation"][0], world.splits["test"][0]
    budgets_ms, prices = budgets_of(validation).evenly(NUM_BUDGETS), options.prices
    full_ms = calibration_of(world.splits["train"][0]).full_ms
    found = choose_rivals(validation, budgets_ms, prices, full_ms)
    hindsight = choose_rivals(test, budgets_ms, prices, full_ms)["lookup by task"]
    tables = {name: found[name] for name in ("lookup", "lookup by task", "static")}
    others = {
        name: {price: outcome_on(test, table, budgets_ms, price) for price in prices}
        for name, table in {**tables, "per task, in hindsight": hindsight}.items()
    }
    others["supervised"] = world.supervised(budgets_ms, prices, options.supervised_steps)
    runs = []
    for seed in options.seeds:
        row = world.run(replace(base, seed=seed), budgets_ms, prices)
        runs.append(row)
        cells = [f"{o.accuracy:.4f} {o.mean_ms:.2f} ms" for o in row.values()]
        print(f"seed {seed}: {'  '.join(cells)}", flush=True)
    report(runs, others, budgets_ms, full_ms)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
