"""Invalid configurations are rejected at construction."""

import math
from dataclasses import replace

import pytest

from launch.analysis.settings import differing
from launch.cluster.config import ClusterConfig
from launch.run.recipes import (
    RECIPES,
    BudgetConfig,
    EvaluationConfig,
    JointGRPOConfig,
    PriceConfig,
    embedded,
    molmoe_h100,
    to_json,
)
from learner.config import EntropySchedule, LearnerConfig, LossConfig
from learner.imitation import WarmStartConfig
from learner.lambda_control import PIDConfig
from rollout.executor_config import ExecutorConfig
from rollout.worker_config import WorkerConfig

NAN, INF = math.nan, math.inf
REFUSED = [
    (EvaluationConfig, {"every": (0, -1), "num_samples": (0,), "num_budgets": (0,)}),
    (BudgetConfig, {"share_below": (2.0, -0.1, NAN), "num_samples": (0,)}),
    (BudgetConfig, {"low_ms": (0.0, -1.0, NAN, INF), "high_ms": (NAN, INF)}),
    (EvaluationConfig, {"prices": ((), (0.1, 0.0), (0.1, 0.1), (-0.1, 0.0), (0.0, NAN), (INF,))}),
    (PriceConfig, {"low": (0.0, -1.0, NAN), "high": (0.0, INF, NAN), "default": (-1.0, NAN, INF)}),
    (PriceConfig, {"share_free": (-0.1, 1.1, NAN)}),
    (PIDConfig, {"target": (NAN, -0.1, 1.5), "smoothing": (NAN, 1.1), "maximum": (NAN, INF)}),
    (PIDConfig, {"kp": (NAN, -1.0, INF), "ki": (NAN, -1.0), "kd": (NAN, INF), "bins": (0,)}),
    (PIDConfig, {"initial": (NAN, 9.0), "minimum": (NAN, -1.0)}),
    (ClusterConfig, {"num_actors": (-3,), "min_actors": (0, -1), "max_restarts": (-1,)}),
    (ClusterConfig, {"group_timeout_s": (NAN, 0.0, -1.0, INF), "start_timeout_s": (NAN, 0.0)}),
    (ClusterConfig, {"step_timeout_s": (NAN, 0.0), "learner_timeout_s": (INF, 0.0)}),
    (ClusterConfig, {"latency_tolerance": (NAN, 0.0)}),
    (ExecutorConfig, {"repeat_band": (NAN, -0.1, INF), "repeats": (0, 2), "max_new_tokens": (0,)}),
    (WorkerConfig, {"num_threads": (0, -1, 100_000)}),
    (LearnerConfig, {"learning_rate": (NAN, 0.0, INF), "weight_decay": (NAN, -1.0)}),
    (LearnerConfig, {"grad_clip": (NAN, 0.0), "stage1_lr_ratio": (INF,), "epochs": (0,)}),
    (LearnerConfig, {"budget_lr_ratio": (NAN,), "final_lr_ratio": (NAN, 2.0), "lr_steps": (0,)}),
    (LossConfig, {"clip_eps_low": (NAN, 0.0, 1.0), "clip_eps_high": (NAN, 0.0, INF)}),
    (LossConfig, {"importance_cap": (NAN, 0.5), "kl_coef": (NAN, -1.0)}),
    (LossConfig, {"entropy_head_weights": ((1.0, 1.0, 1.0, NAN), (1.0, 1.0, 1.0, -1.0))}),
    (EntropySchedule, {"start": (NAN, -1.0), "end": (NAN,), "steps": (0,)}),
    (WarmStartConfig, {"steps": (0,), "batch_size": (0,), "learning_rate": (NAN,), "seed": (-1,)}),
    (WarmStartConfig, {"first_temperature": (0.0,), "last_temperature": (NAN,)}),
    (JointGRPOConfig, {"seed": (-1,), "steps": (0,), "group_size": (1,), "keep_last": (0,)}),
]
CASES = [
    pytest.param(kind, name, value, id=f"{kind.__name__}.{name}={value}")
    for kind, fields in REFUSED
    for name, values in fields.items()
    for value in values
]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_senseless_values_are_refused_by_name(kind, name, value):
    given = {"recipe": "test"} if kind is JointGRPOConfig else {}
    names = {"clip_eps_low": "clip range", "clip_eps_high": "clip"}
    with pytest.raises(ValueError, match=rf"{names.get(name, name)}.*give"):
        kind(**given, **{name: value})


def test_replay_is_refused_with_a_reward_that_it_does_not_predict():
    with pytest.raises(ValueError, match="turn replay off"):
        replace(RECIPES["embedded"](), reward="reference")


def test_a_range_of_prices_has_two_ends():
    for half in ({"low": None}, {"high": None}):
        with pytest.raises(ValueError, match=r"give both price\.low and price\.high"):
            PriceConfig(**half)
    with pytest.raises(ValueError, match="give 0 < low < high"):
        PriceConfig(low=1.0, high=0.5)
    free = PriceConfig(low=None, high=None)
    assert free.sampler() is None
    assert free.deployed == 0, "without prices, time is free whatever the default"
    assert PriceConfig(default=0.1).deployed == 0.1


def test_prices_are_refused_with_a_reward_that_knows_none():
    earlier = RECIPES["earlier"]()
    assert earlier.reward == "reference"
    with pytest.raises(ValueError, match=r"set price\.low and price\.high to None"):
        replace(earlier, price=PriceConfig())


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_recipes_make_sense(recipe):
    assert recipe().steps > 0


def test_the_recipe_for_clusters_learns_as_the_default_one():
    """They differ in model, data, sizes and overlap, and in nothing of the method."""
    small, large = (to_json(recipe()) for recipe in (embedded, molmoe_h100))
    names = set(differing([small, large]))
    assert {name.partition(".")[0] for name in names} <= {
        *("recipe", "steps", "groups_per_step", "max_staleness", "checkpoint_every"),
        *("comparison_profile", "worker", "learner"),
    }
    assert {name for name in names if name.startswith("learner.")} == {
        "learner.lr_steps",
        "learner.entropy.steps",
    }
