"""The exact expected reward's gradient through controller and frozen model, all in float64."""

import numpy as np
import pytest
import torch

from envs.spec import POSITIONS, TIERS, all_knobs
from policy.config import ControllerConfig
from policy.controller import Controller
from rollout.block_skipping import BlockImportance
from rollout.executor import MolmoEExecutor
from rollout.group_sharing import MolmoEGroupSession
from rollout.molmoe import Preprocessor
from rollout.prefix import Prefix
from tests.policy.evaluating import evaluate
from tests.rollout import rig
from tests.rollout.molmoe.tiny import random_model

ACTIONS = torch.tensor([knobs.indices() for knobs in all_knobs()])
PLACES = [(tier, position) for tier in TIERS for position in POSITIONS]
BUDGET_MS = torch.tensor([37.0])


class Problem:
    """One sample and budget; a fixed random reward for each of the 225 configurations."""

    def __init__(self) -> None:
        self.executor = MolmoEExecutor(
            random_model(rig.SIXTEEN).double(),
            Preprocessor(rig.SIXTEEN, rig.tokenizer()),
            BlockImportance(scores=tuple(map(float, range(16)))),
        )
        self.sample = rig.NoiseTask().sample("train", 0)
        feature = self.executor.features(self.sample, None)[0].language
        self.language_1D = torch.from_numpy(feature).double()[None]
        self.rewards = torch.from_numpy(np.random.default_rng(0).normal(size=225))
        torch.manual_seed(0)
        d_model = rig.SIXTEEN.d_model
        config = ControllerConfig(
            d_model=d_model, budget_low_ms=5.0, budget_high_ms=100.0, sinusoid_scale=10.0
        )
        self.controller = Controller(config).double()
        for stage in (self.controller.stage1, self.controller.stage2):
            torch.nn.init.normal_(stage.heads.weight, std=0.3)

    def run_prefixes(self, token_D: np.ndarray) -> list[Prefix]:
        """The image at each tier, text and budget token through five blocks."""
        prefixes = [self.executor.begin(self.sample, tier, token_D) for tier in TIERS]
        for prefix in prefixes:
            for position in POSITIONS:
                self.executor.deepen(prefix, position)
        return prefixes

    def expected_reward(self, token_1D: torch.Tensor, latency_PD: torch.Tensor) -> torch.Tensor:
        """Over all configurations; `latency_PD` holds a row for each tier and position."""
        rows = ACTIONS[:, 0] * len(POSITIONS) + ACTIONS[:, 1]
        evaluation = evaluate(
            self.controller,
            self.language_1D.expand(225, -1),
            token_1D.expand(225, -1),
            latency_PD[rows],
            ACTIONS,
        )
        return (evaluation.log_probs_B4.sum(-1).exp() * self.rewards).sum()

    @staticmethod
    def latency_tokens(prefixes: list[Prefix]) -> torch.Tensor:
        return torch.stack([prefixes[tier].latency_tokens[p] for tier, p in PLACES])

    @torch.no_grad()
    def value(self) -> float:
        """The expected reward of the weights as they are, the frozen model run anew."""
        token_1D = self.controller.budget_tokens(BUDGET_MS)
        latency_PD = self.latency_tokens(self.run_prefixes(token_1D[0].numpy()))
        return self.expected_reward(token_1D, latency_PD).item()

    def backward(self) -> None:
        """The gradient as an update assembles it: the learner's half, the executor's, the rest."""
        token_1D = self.controller.budget_tokens(BUDGET_MS)
        token_D = token_1D[0].detach().numpy()
        prefixes = self.run_prefixes(token_D)
        latency_PD = self.latency_tokens(prefixes).clone().requires_grad_()
        self.expected_reward(token_1D, latency_PD).backward(retain_graph=True)
        assert latency_PD.grad is not None
        total_D = np.zeros(len(token_D))
        for tier, prefix in zip(TIERS, prefixes, strict=True):
            by_position = {
                p: row.numpy()
                for (t, p), row in zip(PLACES, latency_PD.grad, strict=True)
                if t == tier
            }
            total_D += self.executor.budget_gradient(prefix, token_D, by_position)
        token_1D.backward(torch.from_numpy(total_D)[None])


@pytest.fixture(scope="module")
def problem() -> Problem:
    made = Problem()
    made.backward()
    return made


def part_of(problem: Problem, part: str) -> list[torch.nn.Parameter]:
    return [w for name, w in problem.controller.named_parameters() if name.startswith(part)]


@pytest.mark.parametrize("part", ["budget_encoder.mlp.0", "budget_encoder", "stage1", "stage2"])
def test_against_finite_differences(problem, part):
    weights = part_of(problem, part)
    rng = torch.Generator().manual_seed(1)
    analytic, numeric = [], []
    # The gradient's own direction first: random ones see little of it.
    gradient = [w.grad / sum(v.grad.square().sum() for v in weights).sqrt() for w in weights]
    random = [
        [torch.randn(w.shape, generator=rng, dtype=w.dtype) / w.numel() ** 0.5 for w in weights]
        for _ in range(3)
    ]
    eps = 1e-5
    for direction in (gradient, *random):
        values = []
        for sign in (1, -2, 1):
            for w, d in zip(weights, direction, strict=True):
                w.data.add_(d, alpha=sign * eps)
            values.append(problem.value())
        numeric.append((values[0] - values[1]) / (2 * eps))
        analytic.append(
            sum(float((w.grad * d).sum()) for w, d in zip(weights, direction, strict=True))
        )
    error = np.linalg.norm(np.subtract(analytic, numeric)) / np.linalg.norm(numeric)
    print(f"{part}: relative error {error:.1e}")
    assert abs(numeric[0]) > 1e-4
    assert error < 1e-3


def test_most_of_the_encoders_gradient_may_come_through_the_frozen_blocks(problem):
    """Without the executor's half the gradient would be wrong by a wide margin."""
    weight = problem.controller.budget_encoder.mlp[0].weight
    whole = weight.grad.clone()
    token_1D = problem.controller.budget_tokens(BUDGET_MS)
    latency_PD = problem.latency_tokens(problem.run_prefixes(token_1D[0].detach().numpy()))
    (stage1_alone,) = torch.autograd.grad(problem.expected_reward(token_1D, latency_PD), weight)
    assert (whole - stage1_alone).norm() > 0.1 * whole.norm()


def test_latency_tokens_keep_the_models_dtype_until_they_are_recorded(problem):
    token_D = problem.controller.budget_tokens(BUDGET_MS)[0].detach().numpy()
    group = MolmoEGroupSession(problem.executor, problem.sample)
    recorded = group.begin([(TIERS[0], 2)], token_D)
    assert recorded.dtype == np.float32
    assert group.prefixes[TIERS[0]].latency_tokens[2].dtype == torch.float64
