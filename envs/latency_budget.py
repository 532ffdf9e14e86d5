"""The Gymnasium environment: one episode is stage 1, then stage 2, then the reward.

The first observation holds what stage 1 sees of prompt and image. Step 1 takes (tier, position) and
returns the latency token as observation; step 2 takes (top_k, num_blocks) and returns the reward.
An action is a pair of choice indices in both steps.

Shapes: G episodes of a group, D d_model, I length of the image feature, O = D + I + 3 values of an
observation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from envs.action_masks import MAX_CHOICES, is_allowed, stage1_mask, stage2_mask
from envs.calibration import PresentTime, SteadyTime
from envs.reward import RewardFunction, is_violation
from envs.scoring import score_of
from envs.spec import (
    NUM_BLOCKS,
    POSITIONS,
    TIERS,
    TOP_KS,
    BudgetSampler,
    Execution,
    Executor,
    GroupSession,
    Sample,
    Task,
    check_budget_ms,
)

INDEX_RANGE = 2**31
"""Samples are drawn by an index below this, which tasks map to the samples they have."""


class LatencyBudgetVectorEnv(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """G episodes of one (sample, budget), which share the work they have in common.

    Autoreset is disabled: both steps of all members belong together, so resets are explicit.

    Args:
        executor: the frozen model.
        tasks: source of samples and scores.
        budgets: sampler of latency budgets.
        reward: maps scores and latencies to rewards.
        encode_budget: maps a budget in ms to a budget token [D]. Who has the token already sets
            `budget_token` between `reset` and the first step.
        group_size: number of episodes, G.
        split: split of the tasks.
        present: present time of the device that the executor runs on. Budgets and latencies of the
            environment are calibrated milliseconds; on a device that does not drift, its own.
        invalid_penalty: reward of an episode that ends with an invalid choice, for which the model
            does not run.
        cheapest_ms: latency of the cheapest configuration on a group's sample, in ms of the device,
            which tells whether a budget was feasible if no member met it. By default it runs.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(
        self,
        *,
        executor: Executor,
        tasks: Task,
        budgets: BudgetSampler,
        reward: RewardFunction,
        encode_budget: Callable[[float], np.ndarray],
        group_size: int = 1,
        split: str = "train",
        present: PresentTime | None = None,
        invalid_penalty: float = -1.0,
        cheapest_ms: Callable[[GroupSession], float] = lambda session: (
            session.cheapest_latency_ms()
        ),
    ) -> None:
        if group_size < 1:
            raise ValueError(f"group_size is {group_size}: a group has at least one episode")
        self.executor, self.tasks, self.budgets = executor, tasks, budgets
        self.reward, self.encode_budget = reward, encode_budget
        self.split, self.invalid_penalty = split, invalid_penalty
        self.cheapest_ms = cheapest_ms
        self.present = present or SteadyTime()
        self.num_envs = group_size
        self.single_action_space = spaces.MultiDiscrete([MAX_CHOICES, MAX_CHOICES])
        self.single_observation_space = spaces.Box(
            -np.inf, np.inf, (executor.d_model + executor.image_dim + 3,), dtype=np.float32
        )
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, group_size)
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, group_size
        )
        self.session: GroupSession | None = None

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a group on a sample and a budget, drawn or taken from the options.

        Args:
            seed: seed of the draws.
            options: `sample` (a Sample), `budget_ms`; each is optional, others are refused.

        Returns:
            Observations [G, O]: language feature, image feature, normalised budget, step 0,
            position 0.

        Raises:
            ValueError: for an unknown option, a budget that is not positive and finite, or a
                sample that cannot be used (named).
        """
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"sample", "budget_ms"}
        if unknown:
            raise ValueError(
                f"unknown reset option {', '.join(sorted(unknown))}: use sample or budget_ms"
            )
        index = int(self.np_random.integers(INDEX_RANGE))
        drawn_ms = self.budgets.draw(self.np_random)
        sample = options.get("sample")
        self.sample: Sample = self.tasks.sample(self.split, index) if sample is None else sample
        self.budget_ms = check_budget_ms(options.get("budget_ms", drawn_ms))
        self.budget_token: np.ndarray | None = None
        self.device_budget_ms = self.present.to_present(self.budget_ms)
        self.session = self.executor.open(self.sample, self.device_budget_ms)
        self.stage1: np.ndarray | None = None
        self.done = np.zeros(self.num_envs, dtype=bool)
        self.charged: list[Mapping[str, float]] = [{} for _ in range(self.num_envs)]
        self.charged_wall_ms = np.zeros(self.num_envs)
        self.features = self.session.features()
        features_O = np.concatenate([self.features.language, self.features.image])
        features_GO = np.repeat(features_O[None], self.num_envs, axis=0)
        masks = [stage1_mask()] * self.num_envs
        return self._observe(features_GO, np.zeros(self.num_envs)), self._info(action_mask=masks)

    def charge(
        self, stages_ms: Sequence[Mapping[str, float]], wall_ms: Sequence[float] | np.ndarray
    ) -> None:
        """Adds the controller's own stages to each member's latency, and their time on the wall."""
        self.charged = [{**old, **new} for old, new in zip(self.charged, stages_ms, strict=True)]
        self.charged_wall_ms += wall_ms

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes one pair of choice indices per member: [G, 2].

        An invalid choice ends its episode with `invalid_penalty` and `info["invalid_action"]`;
        it is not repaired, and the model does not run for it.
        """
        if self.session is None:
            raise ValueError("call reset before step: no sample is in flight")
        actions = np.asarray(actions).reshape(self.num_envs, 2)
        if self.stage1 is None:
            return self._step_stage1(self.session, actions)
        return self._step_stage2(self.session, actions)

    def _step_stage1(self, session: GroupSession, actions: np.ndarray):
        valid = np.array([is_allowed(action, stage1_mask()) for action in actions])
        self.done = ~valid
        self.stage1 = actions.copy()
        tokens = np.zeros((self.num_envs, self.executor.d_model), dtype=np.float32)
        if valid.any():
            choices = [(TIERS[t], POSITIONS[p]) for t, p in actions[valid]]
            token = self.budget_token
            if token is None:
                token = self.encode_budget(self.budget_ms)
            tokens[valid] = session.begin(choices, token)
        positions = np.where(valid, actions[:, 1] + 1, 0)
        masks = [
            stage2_mask(POSITIONS[p]) if ok else stage1_mask()
            for ok, p in zip(valid, actions[:, 1], strict=True)
        ]
        rewards = np.where(valid, 0.0, self.invalid_penalty)
        return self._result(
            self._observe(tokens, positions), rewards, invalid=~valid, action_mask=masks
        )

    def _step_stage2(self, session: GroupSession, actions: np.ndarray):
        assert self.stage1 is not None
        running = ~self.done
        valid = np.array(
            [
                ok and is_allowed(action, stage2_mask(POSITIONS[p]))
                for ok, p, action in zip(running, self.stage1[:, 1], actions, strict=True)
            ]
        )
        chosen = [
            (TOP_KS[k], NUM_BLOCKS[n]) if ok else None
            for ok, (k, n) in zip(valid[running], actions[running], strict=True)
        ]
        executions = iter(session.finish(chosen))
        done = [next(executions) if run else None for run in running]
        rewards = np.where(running & ~valid, self.invalid_penalty, 0.0)
        outcomes = [self._outcome(member, execution) for member, execution in enumerate(done)]
        feasible = self._is_feasible(session, outcomes)
        for member, outcome in enumerate(outcomes):
            if outcome:
                outcome |= self._rewarded(outcome, feasible)
                rewards[member] += outcome["reward"]
        self.done = np.ones(self.num_envs, dtype=bool)
        self.session = None
        masks = [stage1_mask()] * self.num_envs
        observations = self._observe(
            np.zeros((self.num_envs, 0), np.float32), np.zeros(self.num_envs)
        )
        return self._result(
            observations, rewards, invalid=running & ~valid, action_mask=masks, outcome=outcomes
        )

    def _outcome(self, member: int, execution: Execution | None) -> dict[str, Any]:
        """One member's entry in the last step's info; empty if the model did not run for it."""
        if execution is None:
            return {}
        charged = self.charged[member]
        device_ms = execution.latency_ms + sum(charged.values())
        return {
            "knobs": execution.knobs,
            "latency_ms": self.present.to_calibrated(device_ms),
            "device_ms": device_ms,
            "device_budget_ms": self.device_budget_ms,
            "wall_ms": execution.wall_ms + float(self.charged_wall_ms[member]),
            "stages_ms": {**charged, **execution.stages_ms},
            "host_ms": execution.host_ms,
            "answer": execution.answer,
            "finished": execution.finished,
            "num_output_tokens": execution.num_output_tokens,
            "num_prompt_tokens": execution.num_vision_tokens + execution.num_text_tokens,
            "score": score_of(self.tasks, self.sample, execution.answer),
        }

    def _is_feasible(self, session: GroupSession, outcomes: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the cheapest configuration would have met the budget on this sample.

        It would if any member did. Otherwise it runs, and its latency decides.
        """
        latencies_ms = [outcome["latency_ms"] for outcome in outcomes if outcome]
        if not latencies_ms or not is_violation(latencies_ms, self.budget_ms).all():
            return True
        return not is_violation(self.cheapest_ms(session), self.device_budget_ms)

    def _rewarded(self, outcome: Mapping[str, Any], feasible: bool) -> dict[str, Any]:
        reward = self.reward(
            [outcome["score"]],
            [outcome["latency_ms"]],
            [self.budget_ms],
            [outcome["knobs"]],
            feasible,
        )
        return {
            "feasible": feasible,
            "reward": float(reward.total[0]),
            "reward_components": {k: float(v[0]) for k, v in reward.components.items()},
        }

    def _observe(self, values_GO: np.ndarray, positions_G: np.ndarray) -> np.ndarray:
        """Observations that begin with some values; what they leave out is zero."""
        observations = np.zeros(self.observation_space.shape or (), np.float32)
        observations[:, : values_GO.shape[1]] = values_GO
        observations[:, -3] = self.budgets.range.normalise(self.budget_ms)
        observations[:, -2] = positions_G > 0
        observations[:, -1] = positions_G / len(POSITIONS)
        return observations

    def _info(self, **entries: Any) -> dict[str, Any]:
        return {"sample_id": self.sample.id, "budget_ms": self.budget_ms, **entries}

    def _result(
        self, observations: np.ndarray, rewards: np.ndarray, *, invalid: np.ndarray, **entries: Any
    ):
        info = self._info(invalid_action=invalid, **entries)
        never = np.zeros(self.num_envs, dtype=bool)
        return observations, rewards.astype(np.float64), self.done.copy(), never, info


class LatencyBudgetEnv(gym.Env[np.ndarray, np.ndarray]):
    """One episode at a time: a group environment with a single member.

    The last step's `info` holds `latency_ms`, `stages_ms`, `answer`, `score`, `feasible` and
    `reward_components`; every `info` holds `action_mask`, in the form that
    `action_space.sample(mask)` takes.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, **arguments: Any) -> None:
        """Takes the arguments of `LatencyBudgetVectorEnv`, `group_size` left out."""
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
