"""The outcome model: score and latency of every configuration, from what stage 1 sees.

It is fitted to all remembered episodes, and tells the policy the expected reward of configurations
that nobody ran on a sample. The spread of its latencies is measured on each step's groups before it
learns from them, so that training error is not mistaken for test error.

Shapes: B samples, G episodes of a sample, D d_model, I length of the image feature, A = 3 tiers,
P = 5 positions, K = 5 top_ks, N = 5 num_blocks, T = MAX_TASKS, O outputs of a network.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from envs.action_masks import masked_configurations
from envs.reward import BudgetReward, ExpectedOutcome
from envs.spec import CHEAPEST_KNOBS, HEAD_SIZES
from learner.config import OutcomeModelConfig
from learner.replay_buffer import MAX_TASKS, Episodes

NUM_TIERS, *OTHER_SIZES = HEAD_SIZES
NUM_TIER_STEPS = NUM_TIERS - 1
NUM_STEPS = [NUM_TIERS * (size - 1) for size in OTHER_SIZES]
NUM_OUTPUTS = 1 + NUM_TIER_STEPS + sum(NUM_STEPS)

INITIAL_STEP = -3.0
"""Bias of every step before the softplus, which makes it 0.05."""

LATENCY_WEIGHT = 10.0
"""Weight of an error of log latency (Huber's loss) relative to the cross-entropy of a score."""

LARGE_ERROR = 0.1
"""Errors of log latency count linearly from here on. That a device stands still for a moment says
nothing about a configuration."""

SPREAD_MEMORY = 0.95
"""Weight of the past in the running spread of latencies."""

SPREAD_QUANTILE = 0.8
"""Quantile of absolute errors that tells the spread, however large the largest ones are."""

INITIAL_SPREAD = 0.15

MASKED = torch.from_numpy(masked_configurations())
"""Which combinations of choices are no configuration: bool [A, P, K, N]."""


class Outcomes(NamedTuple):
    """Predictions for every configuration, and which task a sample is of.

    Logits of scores, logarithms of latencies in ms, and logits of tasks.
    """

    score_logit_BAPKN: Tensor
    log_ms_BAPKN: Tensor
    task_logits_BT: Tensor


class OutcomeModel(nn.Module):
    """Two small networks on standardised features, one for scores and one for latencies.

    What is known of a task goes before what features tell: training knows each sample's task, a
    linear classifier learns to tell it from the features, and the task's own outcomes, weighted by
    its posterior, are added to those of the networks. A network alone needs many more samples to
    find out that there are tasks.

    Each starts from the full configuration and takes off the steps from there to another one: those
    of the tier, and those of each other knob at that tier. Their sizes depend on the sample, and
    none is negative: at any tier a larger choice never costs accuracy and never saves time. That is
    how the knobs act, so that few episodes tell much about all configurations.

    Args:
        d_model: D.
        image_dim: I.
        config: see OutcomeModelConfig.
    """

    count: Tensor
    mean_log_ms: Tensor
    spread: Tensor
    sums: Tensor

    def __init__(self, d_model: int, image_dim: int, config: OutcomeModelConfig) -> None:
        super().__init__()
        width = d_model + image_dim
        self.score_net, self.latency_net = _network(width, config), _network(width, config)
        self.task = nn.Linear(width, MAX_TASKS)
        nn.init.zeros_(self.task.weight)
        self.score_of_task_TO = nn.Parameter(torch.zeros(MAX_TASKS, NUM_OUTPUTS))
        self.latency_of_task_TO = nn.Parameter(torch.zeros(MAX_TASKS, NUM_OUTPUTS))
        for name, value in (("count", 0.0), ("mean_log_ms", 0.0), ("spread", INITIAL_SPREAD)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(2, width, dtype=torch.float64))

    def forward(self, episodes: Episodes) -> Outcomes:
        """Predictions for the samples of B groups."""
        inputs = torch.cat((episodes.language_feature_MD, episodes.image_feature_MI), -1)
        mean, square = (self.sums / self.count.clamp(min=1)).unbind()
        scale = (square - mean.square()).clamp(min=0).sqrt() + 1e-6
        inputs = ((inputs - mean) / scale).clamp(-5, 5).to(inputs.dtype)
        task_logits_BT = self.task(inputs)
        posterior_BT = task_logits_BT.detach().softmax(-1)
        score_logit = _by_choice(self.score_net(inputs) + posterior_BT @ self.score_of_task_TO)
        log_ms = _by_choice(self.latency_net(inputs) + posterior_BT @ self.latency_of_task_TO)
        return Outcomes(score_logit, log_ms + self.mean_log_ms.to(inputs.dtype), task_logits_BT)

    @torch.no_grad()
    def observe(self, new: Episodes) -> None:
        """Takes new groups into the standardisation and the spread; does not fit."""
        if self.count > 0:
            self.spread.lerp_(self.spread_on(new), 1 - SPREAD_MEMORY)
        inputs = torch.cat((new.language_feature_MD, new.image_feature_MI), -1).double()
        if self.count == 0:
            self.mean_log_ms.copy_(new.log_ms_MG.double().mean())
        self.sums += torch.stack((inputs.sum(0), inputs.square().sum(0)))
        self.count += len(new)

    @torch.no_grad()
    def spread_on(self, episodes: Episodes) -> Tensor:
        """Spread of the log latencies around the predictions, as of a normal distribution."""
        self.eval()
        predicted = self(episodes).log_ms_BAPKN[_places(episodes.actions_MG4)]
        error = (predicted - episodes.log_ms_MG).double()
        normal = torch.special.ndtri(torch.tensor(0.5 + SPREAD_QUANTILE / 2, dtype=error.dtype))
        return error.abs().quantile(SPREAD_QUANTILE) / normal.to(error.device)

    def loss(self, episodes: Episodes) -> Tensor:
        """Cross-entropy of scores and of tasks, plus Huber's loss of log latencies."""
        outcomes = self(episodes)
        scores = torch.cat((episodes.scores_MG, episodes.scored_ME), 1)
        actions = torch.cat((episodes.actions_MG4, episodes.scored_actions_ME4), 1)
        is_known = scores.isfinite()
        score_loss = functional.binary_cross_entropy_with_logits(
            outcomes.score_logit_BAPKN[_places(actions)][is_known], scores[is_known]
        )
        latency_loss = functional.huber_loss(
            outcomes.log_ms_BAPKN[_places(episodes.actions_MG4)],
            episodes.log_ms_MG,
            delta=LARGE_ERROR,
        )
        task_loss = functional.cross_entropy(outcomes.task_logits_BT, episodes.tasks_M)
        return score_loss + LATENCY_WEIGHT * latency_loss + task_loss

    @torch.no_grad()
    def gains(self, episodes: Episodes, worth: BudgetReward) -> Tensor:
        """Expected rewards [B, A, P, K, N] at the groups' budgets and prices; -inf where masked."""
        self.eval()
        outcomes = self(episodes)
        log_ratio = outcomes.log_ms_BAPKN - _of_samples(episodes.budgets_ms_M.log())
        expected = ExpectedOutcome.of(
            outcomes.score_logit_BAPKN.sigmoid().cpu().numpy(),
            log_ratio.cpu().numpy(),
            float(self.spread),
            cheapest_log_ratio=_of_samples(log_ratio[:, *CHEAPEST_KNOBS.indices()]).cpu().numpy(),
        )
        terms = (episodes.budgets_ms_M, episodes.prices_M)
        reward = worth.expected(expected, *(_of_samples(x).cpu().numpy() for x in terms))
        reward_BAPKN = torch.from_numpy(reward).to(outcomes.score_logit_BAPKN)
        return reward_BAPKN.masked_fill(MASKED.to(log_ratio.device), -torch.inf)


def _network(width: int, config: OutcomeModelConfig) -> nn.Sequential:
    last = nn.Linear(config.hidden_dim, NUM_OUTPUTS)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, INITIAL_STEP)
    steps_to_the_middle = sum(size - 1 for size in HEAD_SIZES) / 2
    with torch.no_grad():
        last.bias[0] = steps_to_the_middle * functional.softplus(last.bias[1])
    return nn.Sequential(
        nn.Dropout(config.input_dropout),
        nn.Linear(width, config.hidden_dim),
        nn.GELU(),
        nn.Dropout(config.dropout),
        last,
    )


def _by_choice(outputs: Tensor) -> Tensor:
    """The full configuration's value less the steps down to each configuration, [B, A, P, K, N]."""
    steps = functional.softplus(outputs[:, 1:])
    tier_steps, *other_steps = steps.split([NUM_TIER_STEPS, *NUM_STEPS], dim=1)
    values = outputs[:, :1] - _below_the_top(tier_steps)
    for steps in other_steps:
        below = _below_the_top(steps.unflatten(1, (NUM_TIERS, -1)))
        between = [1] * (values.ndim - 2)
        values = values[..., None] - below.view(*below.shape[:2], *between, below.shape[2])
    return values


def _below_the_top(steps: Tensor) -> Tensor:
    """Sums of the steps from the last choice down to each one: [..., n] to [..., n + 1]."""
    return functional.pad(steps, (0, 1)).flip(-1).cumsum(-1).flip(-1)


def _of_samples(values_B: Tensor) -> Tensor:
    """Values of samples, to be combined with those of configurations: [B, 1, 1, 1, 1]."""
    return values_B[:, None, None, None, None]


def _places(actions_BC4: Tensor) -> tuple[Tensor, ...]:
    """Indices of C configurations of each sample in predictions, [B, C] each."""
    rows = torch.arange(len(actions_BC4), device=actions_BC4.device)[:, None]
    return rows, *actions_BC4.unbind(-1)
