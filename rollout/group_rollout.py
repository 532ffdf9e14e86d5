"""The record of one group's episodes, the unit of work between rollout and learner.

Shapes: G episodes of the group, E configurations scored off the clock, D d_model, I length of the
image feature, 4 heads in the order of `envs.spec.HEADS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from envs.spec import HEAD_SIZES, HEADS


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRollout:
    """G episodes of one (sample, budget, price), run by one actor; plain arrays, safe to send.

    Attributes:
        group_id: number of the group in the run, unique.
        split: of the tasks.
        index: of the sample in the split.
        sample_id: id of the sample.
        task: task type of the sample.
        budget_ms: latency budget of every episode of the group, in calibrated ms.
        price: price of time of every episode.
        policy_version: version of the weights that chose the actions.
        policy_sha256: hash of those weights.
        budget_token: float32 [D], the budget token of those weights, as it entered block 0.
        language_feature: float32 [D], mean word embedding of the prompt.
        image_feature: float32 [I], pooled global crop, sizes and a flag; I = 0 if stage 1 does not
            see the image.
        actions: int64 [G, 4], choice indices (`Knobs.from_indices`).
        log_probs: float32 [G, 4], the log-probability of each head's choice when it was made.
        latency_tokens: float32 [G, D], the budget token's hidden state after block p.
        scores: float32 [G], answer scores in [0, 1].
        latencies_ms: float64 [G], latency of each episode, in calibrated ms like the budget.
        feasible: whether the cheapest configuration would have met the budget on this sample.
        clock: the clock that measured.
        device_budget_ms: the budget in ms of the device when the group ran.
        device_ms: float64 [G], the latencies as the clock measured them.
        wall_ms: float64 [G], the same on the wall clock.
        num_text_tokens: text tokens of the prompt.
        num_vision_tokens: int64 [G], vision tokens at each episode's tier.
        num_output_tokens: int64 [G], decoded tokens of each answer.
        tilings: rows and columns of the image's crops at each episode's tier; (0, 0) without one.
        answers: G decoded answers.
        stages_ms: G mappings from stage name to ms, as the clock measured them.
        actor: name of the actor that ran the group.
        incarnation: how many times that actor had been restarted.
        scored_actions: int64 [E, 4], choice indices of further configurations of the sample, which
            were answered off the clock.
        scored: float32 [E], their scores.
    """

    group_id: int
    split: str
    index: int
    sample_id: str
    task: str
    budget_ms: float
    price: float
    policy_version: int
    policy_sha256: str
    budget_token: np.ndarray
    language_feature: np.ndarray
    image_feature: np.ndarray
    actions: np.ndarray
    log_probs: np.ndarray
    latency_tokens: np.ndarray
    scores: np.ndarray
    latencies_ms: np.ndarray
    feasible: bool
    clock: str
    device_budget_ms: float
    device_ms: np.ndarray
    wall_ms: np.ndarray
    num_text_tokens: int
    num_vision_tokens: np.ndarray
    num_output_tokens: np.ndarray
    tilings: tuple[tuple[int, int], ...]
    answers: tuple[str, ...]
    stages_ms: tuple[Mapping[str, float], ...]
    actor: str
    incarnation: int
    scored_actions: np.ndarray = field(default_factory=lambda: np.zeros((0, len(HEADS)), np.int64))
    scored: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        size, width = len(self.actions), len(self.language_feature)
        if size == 0:
            raise ValueError(f"group {self.group_id} has no episode: run at least one")
        self._check_array("language_feature", (width,), np.float32)
        self._check_array("image_feature", (self.image_feature.size,), np.float32)
        self._check_array("budget_token", (width,), np.float32)
        self._check_array("actions", (size, len(HEADS)), np.int64)
        self._check_array("log_probs", (size, len(HEADS)), np.float32)
        self._check_array("latency_tokens", (size, width), np.float32)
        self._check_array("scores", (size,), np.float32)
        for name in ("latencies_ms", "device_ms", "wall_ms"):
            self._check_array(name, (size,), np.float64)
        for name in ("num_vision_tokens", "num_output_tokens"):
            self._check_array(name, (size,), np.int64)
        num_scored = len(self.scored)
        self._check_array("scored", (num_scored,), np.float32)
        self._check_array("scored_actions", (num_scored, len(HEADS)), np.int64)
        all_actions = np.concatenate((self.actions, self.scored_actions))
        if (all_actions < 0).any() or (all_actions >= HEAD_SIZES).any():
            raise ValueError(
                f"group {self.group_id} has actions outside the heads' sizes {HEAD_SIZES}: give "
                "choice indices, not knob values"
            )
        for name in ("answers", "stages_ms", "tilings"):
            if len(getattr(self, name)) != size:
                raise ValueError(
                    f"group {self.group_id} has {len(getattr(self, name))} {name} for {size} "
                    "episodes: give one each"
                )

    def _check_array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        array = getattr(self, name)
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"group {self.group_id}: {name} is {array.dtype} {list(array.shape)}, expected "
                f"{np.dtype(dtype)} {list(shape)}"
            )

    @property
    def group_size(self) -> int:
        """Number of episodes, G."""
        return len(self.actions)
