"""An agent of another library trains on the environment unchanged."""

import numpy as np
import pytest

from envs.latency_budget import LatencyBudgetEnv
from rollout.group_sharing import GroupExecutor
from tests.rollout import rig

sb3 = pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")


@pytest.mark.slow
def test_ppo_of_stable_baselines3_trains_and_predicts():
    env = LatencyBudgetEnv(
        executor=GroupExecutor(rig.executor()),
        encode_budget=lambda ms, _price: np.full(32, ms / 100, dtype=np.float32),
        **rig.env_arguments(),
    )
    agent = sb3.PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
    before = [p.detach().clone() for p in agent.policy.parameters()]
    agent.learn(total_timesteps=32)
    after = list(agent.policy.parameters())
    assert any(not np.array_equal(a, b.detach()) for a, b in zip(before, after, strict=True))
    observation, _ = env.reset(seed=1)
    action, _ = agent.predict(observation, deterministic=True)
    assert env.action_space.contains(action)
