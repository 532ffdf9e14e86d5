"""Recipes: each is a function that returns the complete configuration of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from envs.budgets import BudgetSampler
from envs.checks import check_within
from envs.prices import FREE, PriceRange, PriceSampler, check_prices
from envs.spec import all_knobs
from launch.cluster.config import ClusterConfig, FaultConfig
from launch.tracking.names import TrackerName
from learner.config import EntropySchedule, LearnerConfig, ReplayConfig
from learner.lambda_control import PIDConfig
from rollout.executor_config import ExecutorConfig
from rollout.worker_config import EMBEDDED, WorkerConfig

SHIPPED_PROFILE = EMBEDDED / "profile.npz"
"""Profile of all 225 configurations of the embedded model on 400 validation samples."""

EPOCH_SAMPLES = 1000
"""Samples that count as one epoch for tasks that render samples without end."""


MIN_GROUPS, GROUPS_PER_ACTOR = 24, 6
"""Groups of a step where the configuration leaves them to the number of actors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """Latency budgets that training draws from.

    Attributes:
        low_ms: smallest budget in ms; by default the cheapest configuration's median latency,
            measured on the actors' devices.
        high_ms: largest budget in ms; by default the full configuration's 95th percentile.
        share_below: share of budgets that are drawn below the smallest one, down to 0.8 times it.
        num_samples: number of samples on which latencies are measured before training.
    """

    low_ms: float | None = None
    high_ms: float | None = None
    share_below: float = 0.05
    num_samples: int = 64

    def __post_init__(self) -> None:
        check_within(self, "low_ms", "high_ms", low=0, above=True)
        check_within(self, "share_below", low=0, high=1)
        check_within(self, "num_samples", low=1)

    def fixed(self) -> BudgetSampler | None:
        """The budgets given in the configuration, or None if they are to be measured.

        Raises:
            ValueError: only one of `low_ms` and `high_ms` is given.
        """
        given = (self.low_ms, self.high_ms)
        if given == (None, None):
            return None
        if self.low_ms is None or self.high_ms is None:
            raise ValueError("give both budget.low-ms and budget.high-ms, or neither")
        return BudgetSampler.between(self.low_ms, self.high_ms, share_below=self.share_below)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceConfig:
    """Prices of time that training draws from: the worth of one full answer's time, in answers.

    Attributes:
        low: smallest price above zero; None, like `high`, if time within the budget is free.
        high: largest price. At 2, the time of a full answer is worth two right answers, as it is
            about on a saturated server.
        share_free: share of groups whose price is zero.
        default: price of requests that state none, at which the run is evaluated while it trains.
    """

    low: float | None = 0.01
    high: float | None = 2.0
    share_free: float = 0.2
    default: float = 0.02

    def __post_init__(self) -> None:
        check_within(self, "low", "high", low=0, above=True)
        check_within(self, "share_free", low=0, high=1)
        check_within(self, "default", low=0)
        self.check_known((self.default,), "price.default")

    def check_known(self, prices: Iterable[float], name: str) -> None:
        """Raises ValueError for prices above zero that training does not draw from."""
        drawn = self.sampler()
        if drawn is None:
            return
        for price in prices:
            if price and not drawn.range.low <= price <= drawn.range.high:
                raise ValueError(
                    f"{name} has {price:g}, and training draws prices of 0 and {drawn.range.low:g} "
                    f"to {drawn.range.high:g}: give one of these"
                )

    def sampler(self) -> PriceSampler | None:
        """Draws the prices; None if time is free.

        Raises:
            ValueError: only one of `low` and `high` is given, or the range is empty.
        """
        if self.low is None and self.high is None:
            return None
        if self.low is None or self.high is None:
            raise ValueError("give both price.low and price.high, or None for both")
        return PriceSampler(
            range=PriceRange(low=self.low, high=self.high), share_free=self.share_free
        )

    @property
    def deployed(self) -> float:
        """The price of requests that state none."""
        return self.default if self.sampler() else FREE


EARLY_EVALUATIONS = frozenset(5 * 2**power for power in range(20))
"""Numbers of steps after which a run is evaluated while it learns fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Greedy evaluation on held-out samples, while training and at its end.

    Attributes:
        every: steps between two evaluations. The first and the last step are always evaluated, and
            those in between after 5, 10, 20, 40, ... steps, because learning is fast at first.
        first_index: index of the first validation sample. The samples of the shipped profile, of
            calibration and of block importance lie below it, so that none of them is used twice.
        num_samples: number of held-out samples; each is run at every budget.
        num_test_samples: number of test samples on which the finished controller is compared with
            its rivals, each at every budget and price.
        num_budgets: number of budgets, evenly spaced over the range.
        prices: prices at which the finished controller is compared with its rivals.
    """

    every: int = 50
    first_index: int = 20_000
    num_samples: int = 24
    num_test_samples: int = 48
    num_budgets: int = 5
    prices: tuple[float, ...] = (0.0, 0.02, 0.1, 0.2, 0.3, 1.0)

    def __post_init__(self) -> None:
        check_within(self, "every", "num_samples", "num_test_samples", "num_budgets", low=1)
        check_within(self, "first_index", low=0)
        check_prices(self.prices, "evaluation.prices")

    def is_due(self, step: int) -> bool:
        """Whether the weights after this many steps are evaluated, besides the last ones."""
        return step % self.every == 0 or (step < self.every and step in EARLY_EVALUATIONS)

    @property
    def indices(self) -> range:
        """Places of the held-out samples in the validation split."""
        return range(self.first_index, self.first_index + self.num_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class JointGRPOConfig:
    """One run of joint GRPO.

    Attributes:
        recipe: name of the recipe that this configuration is based on.
        run_dir: folder for checkpoints, logs and evaluations: an absolute path, or a URI such as
            s3://bucket/run. A folder that holds a checkpoint is resumed. By default a new folder
            under runs/.
        seed: seed of all random number generators.
        steps: number of updates.
        epochs: number of passes through the training samples, which sets `steps`; 0 leaves `steps`
            as given.
        groups_per_step: number of groups in a batch, one sample each; 0 means six per rollout
            actor, but at least 24.
        group_size: number of episodes in a group.
        num_scored: number of further configurations of each group's sample that are answered and
            scored off the clock; they teach the outcome model of replay, which it needs.
        max_staleness: number of batches that may be collected ahead of the update, so that the
            actors work while the learner does; 0 is synchronous.
        reward: `budget` is score minus lambda times violation; `reference` is the reward of this
            project's first version, kept for comparison.
        checkpoint_every: steps between two checkpoints. A killed driver resumes from the last one;
            a killed learner does not need it.
        keep_last: number of most recent checkpoints to keep; the best one is kept as well.
        sees_image: whether stage 1 sees the image, at low resolution, in addition to prompt and
            budget.
        warm_start_profile: profile table (.npz) from which both stages are trained before the
            first step; none starts from scratch.
        comparison_profile: profile table (.npz) of the validation split, whose best tables and
            static configuration the run is compared with; by default the warm start's. Without
            either the run is compared with nothing.
        simulated_latency: JSON file of latencies by configuration that REPLACES the clock; for
            tests and dry runs.
        dry_run: validates everything, runs one real step and stops.
        print_config: prints the whole configuration and stops.
        trackers: where scalars go besides the run's folder; others than TensorBoard need the extra
            of their name (pip install -e '.[wandb]') and get each step once it is in a checkpoint.
        worker: the frozen model and its tasks.
        budget: latency budgets.
        price: prices of time.
        pid: how lambda follows the violation rate.
        learner: optimizer and loss.
        evaluation: evaluation during training.
        cluster: rollout actors and time limits.
        faults: faults on purpose, to try a cluster.
    """

    recipe: str
    run_dir: str = ""
    seed: int = 42
    steps: int = 400
    epochs: int = 0
    groups_per_step: int = 0
    group_size: int = 8
    num_scored: int = 0
    max_staleness: int = 0
    reward: Literal["budget", "reference"] = "budget"
    checkpoint_every: int = 1
    keep_last: int = 3
    sees_image: bool = True
    warm_start_profile: Path | None = None
    comparison_profile: Path | None = None
    simulated_latency: Path | None = None
    dry_run: bool = False
    print_config: bool = False
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    price: PriceConfig = field(default_factory=PriceConfig)
    pid: PIDConfig = field(default_factory=PIDConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    faults: FaultConfig = field(default_factory=FaultConfig)

    def __post_init__(self) -> None:
        minimum = {
            "steps": 1,
            "epochs": 0,
            "groups_per_step": 0,
            "group_size": 2,
            "max_staleness": 0,
        }
        for name, least in {**minimum, "checkpoint_every": 1, "keep_last": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least {least}")
        check_within(self, "seed", low=0)
        self.budget.fixed()
        self.price.check_known(self.evaluation.prices, "evaluation.prices")
        if self.reward == "reference" and self.learner.replay is not None:
            raise ValueError(
                "replay predicts the default reward: with the reference reward, turn replay off"
            )
        if self.num_scored and self.learner.replay is None:
            raise ValueError(
                f"num_scored is {self.num_scored}, and only the outcome model of replay learns "
                "from scores: turn replay on, or set num_scored to 0"
            )
        check_within(self, "num_scored", low=0, high=len(list(all_knobs())) - self.group_size)
        if self.reward == "reference" and self.price.sampler() is not None:
            raise ValueError(
                "the reference reward knows no price of time: set price.low and price.high to None"
            )
        profiled, own = WorkerConfig(), self.worker
        if self.warm_start_profile == SHIPPED_PROFILE and (own.model, own.tasks) != (
            profiled.model,
            profiled.tasks,
        ):
            raise ValueError(
                f"the shipped profile was measured with {profiled.model} on all tasks, not with "
                f"{own.model} on {', '.join(own.tasks) or 'all'}: use another recipe, such as "
                "embedded, or another warm_start_profile"
            )

    def sized_for(self, num_actors: int, epoch_samples: int = 0) -> JointGRPOConfig:
        """The configuration with `groups_per_step` and `steps` set.

        Args:
            num_actors: number of rollout actors.
            epoch_samples: training samples of all data sets; 0 for tasks that render theirs.
        """
        groups = self.groups_per_step or max(MIN_GROUPS, GROUPS_PER_ACTOR * num_actors)
        samples = self.epochs * (epoch_samples or EPOCH_SAMPLES)
        steps = -(-samples // groups) if self.epochs else self.steps
        return replace(self, groups_per_step=groups, steps=steps)


def to_json(config: JointGRPOConfig) -> dict[str, Any]:
    """The whole configuration as plain JSON values."""
    return TypeAdapter(JointGRPOConfig).dump_python(config, mode="json")


def from_json(data: Mapping[str, Any]) -> JointGRPOConfig:
    """The configuration that `to_json` wrote; settings that are no longer known are left out."""
    return TypeAdapter(JointGRPOConfig).validate_python(data)


def _annealed(
    steps: int,
    *,
    learning_rate: float,
    epochs: int,
    entropy: tuple[float, float],
    replay: ReplayConfig | None = None,
) -> LearnerConfig:
    """Learning rate and entropy bonus fall over the whole run."""
    return LearnerConfig(
        learning_rate=learning_rate,
        final_lr_ratio=0.1,
        lr_steps=steps,
        epochs=epochs,
        entropy=EntropySchedule(start=entropy[0], end=entropy[1], steps=steps),
        replay=replay,
    )


def embedded() -> JointGRPOConfig:
    """The small MolmoE and its tasks, on a laptop; the controller starts from nothing.

    Many small groups, because another question teaches more than another try at the same one.
    """
    return JointGRPOConfig(
        recipe="embedded",
        steps=150,
        groups_per_step=24,
        group_size=2,
        num_scored=4,
        comparison_profile=SHIPPED_PROFILE,
        worker=WorkerConfig(device="cpu", dtype="float32"),
        pid=PIDConfig(
            kp=0.2,
            ki=0.2,
            smoothing=0.8,
            initial=0.7,
            minimum=0.7,
            maximum=1.0,
            bins=8,
        ),
        learner=replace(
            _annealed(
                150, learning_rate=5e-3, epochs=1, entropy=(0.05, 0.002), replay=ReplayConfig()
            ),
            # Replay stores latency tokens, which a fast-changing encoder would soon make stale.
            budget_lr_ratio=0.002,
        ),
        evaluation=EvaluationConfig(num_samples=48),
    )


def embedded_warm() -> JointGRPOConfig:
    """As `embedded`, but the shipped profile is known before the first step.

    Half the steps are enough, and less entropy: the first choices are good ones.
    """
    base, steps = embedded(), 75
    return replace(
        base,
        recipe="embedded-warm",
        steps=steps,
        warm_start_profile=SHIPPED_PROFILE,
        learner=replace(
            base.learner,
            lr_steps=steps,
            entropy=EntropySchedule(start=0.01, end=0.002, steps=steps),
        ),
    )


def embedded_grpo() -> JointGRPOConfig:
    """As `embedded`, but plain GRPO: every episode against its group, and no outcome model.

    For comparison: it needs many times as many episodes.
    """
    base = embedded()
    learner = _annealed(base.steps, learning_rate=1e-3, epochs=4, entropy=(0.05, 0.002))
    return replace(
        base,
        recipe="embedded-grpo",
        groups_per_step=12,
        group_size=4,
        num_scored=0,
        learner=replace(learner, budget_lr_ratio=0.1),
    )


def molmoe_h100() -> JointGRPOConfig:
    """MolmoE-1B-0924 in bfloat16 on three public data sets, one rollout actor per GPU.

    It learns as `embedded` does; model, data and sizes differ. Batches are collected one step
    ahead, budgets are measured on the GPUs, and each actor prepares its next samples while its
    device computes. The embedded tasks are of no use here: their images are so small that all tiers
    of this model cut them into the same crops.
    """
    base, steps = embedded(), 2000
    return replace(
        base,
        recipe="molmoe-h100",
        steps=steps,
        groups_per_step=0,
        max_staleness=1,
        # A checkpoint writes 62 MB at this width, most of it the optimizer's state.
        checkpoint_every=10,
        comparison_profile=None,
        worker=WorkerConfig(
            model="allenai/MolmoE-1B-0924",
            dtype="bfloat16",
            device="cuda",
            tasks=("text_vqa", "coco_2014_vqa", "okvqa"),
            loader_threads=4,
            executor=ExecutorConfig(max_new_tokens=64),
        ),
        learner=replace(
            base.learner, lr_steps=steps, entropy=replace(base.learner.entropy, steps=steps)
        ),
    )


def earlier() -> JointGRPOConfig:
    """The first version of this project, for comparison: its reward and hyperparameters.

    Groups of 5 with standardised advantages, and 100 epochs of the data sets of molmoe-h100.
    """
    base = molmoe_h100()
    return JointGRPOConfig(
        recipe="earlier",
        seed=42,
        epochs=100,
        groups_per_step=8,
        group_size=5,
        reward="reference",
        worker=base.worker,
        budget=BudgetConfig(low_ms=170.0, high_ms=380.0, share_below=0.0),
        price=PriceConfig(low=None, high=None),
        learner=LearnerConfig(
            learning_rate=1e-4, weight_decay=1e-5, advantage="group_standardised"
        ),
    )


RECIPES = {
    "embedded": embedded,
    "embedded-warm": embedded_warm,
    "embedded-grpo": embedded_grpo,
    "molmoe-h100": molmoe_h100,
    "earlier": earlier,
}
