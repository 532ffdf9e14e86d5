"""The rules of `envs.episode` as a Gymnasium environment, for other people's agents.

The first observation holds what stage 1 sees of prompt and image. Step 1 takes (tier, position) and
returns the latency token as observation; step 2 takes (top_k, num_blocks) and returns the reward.
An action is a pair of choice indices in both steps.

Shapes: G episodes of a group, D d_model, I length of the image feature, O = D + I + 4 values of an
observation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from envs.action_masks import MAX_CHOICES, stage1_mask, stage2_mask
from envs.budgets import BudgetSampler
from envs.calibration import PresentTime, SteadyTime
from envs.episode import EpisodeGroup, Outcome
from envs.prices import FREE, PriceSampler
from envs.reward import RewardFunction
from envs.scoring import score_of
from envs.spec import POSITIONS, Executor, Task
from envs.terms import Terms

INDEX_RANGE = 2**31
"""Samples are drawn by an index below this, which tasks map to the samples they have."""


class LatencyBudgetVectorEnv(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """G episodes of one (sample, budget, price), which share the work they have in common.

    Autoreset is disabled: both steps of all members belong together, so resets are explicit.

    Args:
        executor: the frozen model.
        tasks: source of samples and scores.
        budgets: sampler of latency budgets.
        reward: maps scores and latencies to rewards.
        encode_budget: maps a budget in ms and a price of time to a budget token, float32 [D].
        prices: sampler of prices of time; without one, time within the budget is free.
        group_size: number of episodes, G.
        split: split of the tasks.
        present: present time of the device that the executor runs on. Budgets and latencies of the
            environment are calibrated milliseconds; on a device that does not drift, its own.
        invalid_penalty: reward of an episode that ends with an invalid choice, for which the model
            does not run.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(
        self,
        *,
        executor: Executor,
        tasks: Task,
        budgets: BudgetSampler,
        reward: RewardFunction,
        encode_budget: Callable[[float, float], np.ndarray],
        prices: PriceSampler | None = None,
        group_size: int = 1,
        split: str = "train",
        present: PresentTime | None = None,
        invalid_penalty: float = -1.0,
    ) -> None:
        if group_size < 1:
            raise ValueError(f"group_size is {group_size}: a group has at least one episode")
        self.executor, self.tasks, self.budgets = executor, tasks, budgets
        self.prices, self.reward, self.encode_budget = prices, reward, encode_budget
        self.split, self.invalid_penalty = split, invalid_penalty
        self.present = present or SteadyTime()
        self.num_envs = group_size
        self.single_action_space = spaces.MultiDiscrete([MAX_CHOICES, MAX_CHOICES])
        self.single_observation_space = spaces.Box(
            -np.inf, np.inf, (executor.d_model + executor.image_dim + 4,), dtype=np.float32
        )
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, group_size)
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, group_size
        )
        self._group: EpisodeGroup | None = None

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a group on a sample, a budget and a price, drawn or taken from the options.

        Args:
            seed: seed of the draws.
            options: `sample` (a Sample), `budget_ms`, `price`; each is optional, others are
                refused.

        Returns:
            Observations [G, O]: language feature, image feature, price, normalised budget, step 0,
            position 0.

        Raises:
            ValueError: for an unknown option, a budget that is not positive and finite, a price
                that is negative or not finite, or a sample that cannot be used (named).
        """
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"sample", "budget_ms", "price"}
        if unknown:
            raise ValueError(
                f"unknown reset option {', '.join(sorted(unknown))}: use sample, budget_ms or price"
            )
        index = int(self.np_random.integers(INDEX_RANGE))
        drawn_ms = self.budgets.draw(self.np_random)
        sample = options.get("sample")
        sample = self.tasks.sample(self.split, index) if sample is None else sample
        budget_ms = options.get("budget_ms", drawn_ms)
        drawn = FREE if self.prices is None else self.prices.draw(self.np_random)
        terms = Terms(budget_ms=budget_ms, price=options.get("price", drawn))
        if terms.price and self.prices is None:
            raise ValueError("this environment was made without prices: give it `prices`")
        group = EpisodeGroup(self.executor, sample, terms, self.present)
        features = group.look()
        self._group = group
        features_O = np.concatenate([features.language, features.image])
        features_GO = np.repeat(features_O[None], self.num_envs, axis=0)
        observations = self._observe(group, features_GO, np.zeros(self.num_envs))
        return observations, _info(group, action_mask=[stage1_mask()] * self.num_envs)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes one pair of choice indices per member: [G, 2].

        An invalid choice ends its episode with `invalid_penalty` and `info["invalid_action"]`.
        """
        if self._group is None:
            raise ValueError("call reset before step: no sample is in flight")
        actions_G2 = np.asarray(actions).reshape(self.num_envs, 2)
        never_G = np.zeros(self.num_envs, dtype=bool)
        if self._group.has_begun:
            observations, rewards_G, info = self._step_stage2(self._group, actions_G2)
            self._group, done_G = None, ~never_G
        else:
            observations, rewards_G, info = self._step_stage1(self._group, actions_G2)
            done_G = info["invalid_action"].copy()
        return observations, rewards_G, done_G, never_G, info

    def _step_stage1(self, group: EpisodeGroup, actions_G2: np.ndarray):
        tokens_GD = group.begin(
            actions_G2, self.encode_budget(group.terms.budget_ms, group.terms.price)
        )
        invalid_G = ~group.running_G
        masks = [stage2_mask(p) if p else stage1_mask() for p in group.positions_G.tolist()]
        info = _info(group, invalid_action=invalid_G, action_mask=masks)
        observations = self._observe(group, tokens_GD, group.positions_G)
        return observations, self.invalid_penalty * invalid_G, info

    def _step_stage2(self, group: EpisodeGroup, actions_G2: np.ndarray):
        outcomes = group.finish(actions_G2)
        is_feasible = group.is_feasible()
        ended = [{} if o is None else self._rewarded(group, o, is_feasible) for o in outcomes]
        invalid_G = group.running_G & np.array([outcome is None for outcome in outcomes])
        rewards_G = np.array([end.get("reward", 0.0) for end in ended])
        nothing = np.zeros((self.num_envs, 0), np.float32)
        masks = [stage1_mask()] * self.num_envs
        info = _info(group, invalid_action=invalid_G, action_mask=masks, outcome=ended)
        observations = self._observe(group, nothing, np.zeros(self.num_envs))
        return observations, rewards_G + self.invalid_penalty * invalid_G, info

    def _rewarded(self, group: EpisodeGroup, outcome: Outcome, is_feasible: bool) -> dict[str, Any]:
        """One member's entry in the last step's info."""
        execution = outcome.execution
        score = score_of(self.tasks, group.sample, execution.answer)
        reward = self.reward(
            [score],
            [outcome.latency_ms],
            [group.terms.budget_ms],
            [execution.knobs],
            is_feasible,
            [group.terms.price],
        )
        return {
            "knobs": execution.knobs,
            "answer": execution.answer,
            "score": score,
            "latency_ms": outcome.latency_ms,
            "device_ms": outcome.device_ms,
            "stages_ms": outcome.stages_ms,
            "feasible": is_feasible,
            "reward": float(reward.total[0]),
            "reward_components": {k: float(v[0]) for k, v in reward.components.items()},
        }

    def _observe(
        self, group: EpisodeGroup, values_GO: np.ndarray, positions_G: np.ndarray
    ) -> np.ndarray:
        """Observations that begin with some values; the rest is zero."""
        observations = np.zeros(self.observation_space.shape or (), np.float32)
        observations[:, : values_GO.shape[1]] = values_GO
        observations[:, -4] = group.terms.price
        observations[:, -3] = self.budgets.range.normalise(group.terms.budget_ms)
        observations[:, -2] = positions_G > 0
        observations[:, -1] = positions_G / len(POSITIONS)
        return observations


def _info(group: EpisodeGroup, **entries: Any) -> dict[str, Any]:
    asked = {"budget_ms": group.terms.budget_ms, "price": group.terms.price}
    return {"sample_id": group.sample.id, **asked, **entries}


class LatencyBudgetEnv(gym.Env[np.ndarray, np.ndarray]):
    """One episode at a time: a group environment with a single member.

    The last step's `info` holds `latency_ms`, `stages_ms`, `answer`, `score`, `feasible` and
    `reward_components`; every `info` holds `action_mask`, in the form that
    `action_space.sample(mask)` takes.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, **arguments: Any) -> None:
        """Takes the arguments of `LatencyBudgetVectorEnv` except `group_size`."""
        self.group = LatencyBudgetVectorEnv(**arguments, group_size=1)
        self.spec = EnvSpec(
            "LatencyBudget-v0",
            entry_point=lambda **_: LatencyBudgetEnv(**arguments),
            nondeterministic=True,  # latencies are measured
        )
        self.action_space = self.group.single_action_space
        self.observation_space = self.group.single_observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """See `LatencyBudgetVectorEnv.reset`."""
        super().reset(seed=seed)
        observations, info = self.group.reset(seed=seed, options=options)
        return observations[0], {**info, "action_mask": info["action_mask"][0]}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See `LatencyBudgetVectorEnv.step`."""
        observations, rewards, done, truncated, info = self.group.step(np.asarray(action)[None])
        info["action_mask"] = info["action_mask"][0]
        info["invalid_action"] = bool(info["invalid_action"][0])
        info.update(info.pop("outcome", [{}])[0])
        return observations[0], float(rewards[0]), bool(done[0]), bool(truncated[0]), info
