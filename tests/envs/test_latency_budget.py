"""The environment, as Gymnasium and a foreign agent see it."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.action_masks import stage2_mask
from envs.latency_budget import LatencyBudgetEnv, LatencyBudgetVectorEnv
from envs.prices import PriceRange, PriceSampler
from envs.reward import BudgetReward
from envs.spec import Tier
from rollout.executor import MolmoEExecutor
from rollout.group_sharing import GroupExecutor, MolmoEGroupSession
from tests.rollout import rig


def encode(budget_ms, price):
    return np.full(32, budget_ms / 100 + price, dtype=np.float32)


@pytest.fixture(scope="module")
def env():
    return LatencyBudgetEnv(
        executor=GroupExecutor(rig.executor()), encode_budget=encode, **rig.env_arguments()
    )


def test_gymnasium_check(env):
    check_env(env, skip_render_check=True)
    assert env.spec.nondeterministic, "measured latencies differ from run to run"


def test_an_episode_is_two_steps(env):
    observation, info = env.reset(seed=3)
    assert env.observation_space.contains(observation)
    language, image, (price, _, step, position) = np.split(observation, [32, -4])
    sample = rig.NoiseTask().sample("train", int(info["sample_id"].rpartition("/")[2]))
    features, _ = env.group.executor.open(sample).features()
    assert np.array_equal(language, features.language)
    assert np.array_equal(image, features.image)
    assert image.any()
    assert (price, step, position) == (0, 0, 0)
    action = env.action_space.sample(mask=info["action_mask"])
    latency_token, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (0, False, False)
    assert latency_token[:32].any()
    assert not latency_token[32:-4].any()
    assert not np.array_equal(latency_token, observation)
    action = env.action_space.sample(mask=info["action_mask"])
    _, reward, terminated, _, info = env.step(action)
    assert terminated
    assert info["latency_ms"] == pytest.approx(sum(info["stages_ms"].values()))
    assert reward == pytest.approx(sum(info["reward_components"].values()))
    assert 0 <= info["score"] <= 1
    assert isinstance(info["answer"], str)


def test_the_cheapest_configuration_runs_only_where_no_member_met_the_budget():
    executor = rig.executor()
    ran = []

    class Watched(GroupExecutor):
        def open(self, sample):
            session = super().open(sample)
            measure = session.cheapest_latency_ms
            session.cheapest_latency_ms = lambda: ran.append(measure()) or ran[-1]
            return session

    env = LatencyBudgetVectorEnv(
        executor=Watched(executor), encode_budget=encode, group_size=2, **rig.env_arguments()
    )
    for budget_ms, is_feasible in ((1e6, True), (1e-3, False)):
        env.reset(seed=0, options={"budget_ms": budget_ms})
        env.step(np.array([[2, 4], [1, 0]]))
        *_, rewards, _, _, info = env.step(np.array([[4, 4], [4, 4]]))
        assert [outcome["feasible"] for outcome in info["outcome"]] == [is_feasible] * 2
        assert len(ran) == (not is_feasible)
    assert 0 < ran[0] < min(outcome["device_ms"] for outcome in info["outcome"])
    assert rewards.tolist() == [-0.5, -0.5], "neither score nor lambda counts"


def test_masked_random_agent_never_errs(env):
    rng_env = env
    for seed in range(20):
        _, info = rng_env.reset(seed=seed)
        for _ in range(2):
            action = rng_env.action_space.sample(mask=info["action_mask"])
            *_, info = rng_env.step(action)
            assert not info["invalid_action"]


@pytest.mark.parametrize("first", [(3, 0), (4, 4)])
def test_invalid_stage1_ends_the_episode_without_running_the_model(env, monkeypatch, first):
    env.reset(seed=0)
    monkeypatch.setattr(MolmoEGroupSession, "begin", None)
    _, reward, terminated, _, info = env.step(np.array(first))
    assert (reward, terminated, info["invalid_action"]) == (-1.0, True, True)


def test_invalid_stage2_ends_the_episode_without_running_the_rest(env, monkeypatch):
    env.reset(seed=0)
    *_, info = env.step(np.array([0, 4]))
    assert info["action_mask"][1].tolist() == [0, 0, 0, 0, 1] == stage2_mask(5)[1].tolist()
    monkeypatch.setattr(MolmoEExecutor, "advance", None)
    _, reward, terminated, _, info = env.step(np.array([0, 0]))
    assert (reward, terminated, info["invalid_action"]) == (-1.0, True, True)
    assert "score" not in info


def test_an_invalid_member_does_not_disturb_its_group():
    env = LatencyBudgetVectorEnv(
        executor=GroupExecutor(rig.executor()),
        encode_budget=encode,
        group_size=3,
        **rig.env_arguments(),
    )
    env.reset(seed=1)
    _, rewards, done, _, info = env.step(np.array([[0, 0], [4, 0], [2, 4]]))
    assert rewards.tolist() == [0, -1, 0]
    assert done.tolist() == [False, True, False]
    _, rewards, done, _, info = env.step(np.array([[0, 0], [0, 0], [0, 0]]))
    assert done.all()
    assert info["invalid_action"].tolist() == [False, False, True]
    assert (rewards[1], rewards[2]) == (0, -1)
    assert info["outcome"][0]["knobs"].tier is Tier.LOW
    assert info["outcome"][1] == info["outcome"][2] == {}


def test_seeds_and_options(env):
    first, info = env.reset(seed=11)
    again, info_again = env.reset(seed=11)
    assert np.array_equal(first, again)
    assert info["budget_ms"] == info_again["budget_ms"]
    sample = rig.NoiseTask().sample("train", 5)
    _, info = env.reset(options={"sample": sample, "budget_ms": 33})
    assert (info["sample_id"], info["budget_ms"]) == ("noise/train/5", 33)
    with pytest.raises(ValueError, match="unknown reset option bugdet"):
        env.reset(options={"bugdet": 1})


@pytest.mark.parametrize("budget_ms", [0, -3, float("nan"), float("inf")])
def test_unusable_budgets_are_refused(env, budget_ms):
    with pytest.raises(ValueError, match="positive, finite"):
        env.reset(options={"budget_ms": budget_ms})


@pytest.mark.parametrize("price", [-0.1, float("nan"), float("inf")])
def test_unusable_prices_are_refused(env, price):
    with pytest.raises(ValueError, match="finite number of at least 0"):
        env.reset(options={"price": price})


def priced_env():
    """Full answers take 200 ms; the price also shows in the token."""
    return LatencyBudgetEnv(
        executor=GroupExecutor(rig.executor()),
        encode_budget=encode,
        prices=PriceSampler(range=PriceRange(low=0.01, high=2.0), share_free=0.5),
        **rig.env_arguments() | {"reward": BudgetReward(full_ms=200.0)},
    )


def test_prices_are_drawn_seen_and_paid():
    env = priced_env()
    drawn = []
    for seed in range(12):
        observation, info = env.reset(seed=seed)
        assert observation[-4] == np.float32(info["price"])
        drawn.append(info["price"])
    again = [env.reset(seed=seed)[1]["price"] for seed in range(12)]
    assert again == drawn
    assert 0 < drawn.count(0.0) < 12
    tokens, rewards = [], []
    for price in (0.0, 1.5):
        env.reset(seed=0, options={"price": price, "budget_ms": 1e6})
        token, *_, info = env.step(np.array([1, 2]))
        assert (token[-4], info["price"]) == (price, price)
        tokens.append(token)
        _, reward, _, _, info = env.step(np.array([3, 4]))
        assert info["reward_components"]["time"] == pytest.approx(-price * info["latency_ms"] / 200)
        assert reward == pytest.approx(info["score"] - price * info["latency_ms"] / 200)
        rewards.append(reward)
    assert not np.array_equal(tokens[0][:32], tokens[1][:32]), "the budget token has the price"
    assert rewards[1] < rewards[0]


def test_without_prices_time_is_free_and_draws_are_the_same(env):
    _, info = env.reset(seed=7)
    _, priced = priced_env().reset(seed=7)
    assert info["price"] == 0.0
    assert (info["sample_id"], info["budget_ms"]) == (priced["sample_id"], priced["budget_ms"])


def test_step_before_reset_is_refused():
    env = LatencyBudgetEnv(
        executor=GroupExecutor(rig.executor()), encode_budget=encode, **rig.env_arguments()
    )
    with pytest.raises(ValueError, match="call reset"):
        env.step(np.array([0, 0]))
