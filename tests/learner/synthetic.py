"""A small enumerable problem: a nonlinear stand-in for the frozen blocks, groups from a table."""

import numpy as np
import torch

from envs.spec import all_knobs
from learner.update import MeasuredGradient
from policy.config import ControllerConfig
from policy.controller import Controller, choose
from rollout.group_rollout import GroupRollout
from tests.policy.evaluating import evaluate

D_MODEL = 16
ACTIONS = torch.tensor([knobs.indices() for knobs in all_knobs()])
CONFIG = ControllerConfig(d_model=D_MODEL, budget_low_ms=100.0, budget_high_ms=300.0)


def make_controller(seed: int = 0, head_std: float = 0.01, **sizes) -> Controller:
    torch.manual_seed(seed)
    config = ControllerConfig(d_model=D_MODEL, budget_low_ms=100.0, budget_high_ms=300.0, **sizes)
    controller = Controller(config)
    for stage in (controller.stage1, controller.stage2):
        torch.nn.init.normal_(stage.heads.weight, std=head_std)
    return controller


class FrozenBlocks:
    """Budget token to latency token, differently for each tier, position and prompt."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        rng = torch.Generator().manual_seed(99)
        self.first = torch.randn(D_MODEL, D_MODEL, generator=rng).to(dtype) / 2
        self.second = torch.randn(D_MODEL, D_MODEL, generator=rng).to(dtype) / 2
        self.tiers = torch.randn(3, D_MODEL, generator=rng).to(dtype)
        self.positions = torch.randn(5, D_MODEL, generator=rng).to(dtype)

    def __call__(self, budget_token_BD, language_feature_BD, actions_B4):
        tier_BD, position_BD = self.tiers[actions_B4[:, 0]], self.positions[actions_B4[:, 1]]
        hidden = torch.tanh(budget_token_BD @ self.first + tier_BD + 0.5 * language_feature_BD)
        return 10 * (budget_token_BD + torch.sin(hidden @ self.second + position_BD))

    def vjp(self, controller: Controller, measured: MeasuredGradient) -> list[np.ndarray]:
        """What the rollout side does: dL/d(latency token) to dL/d(budget token), by group."""
        size = measured.groups[0].group_size
        dtype = self.first.dtype
        terms_2N = torch.tensor([(group.budget_ms, group.price) for group in measured.groups]).T
        with torch.no_grad():
            tokens_ND = controller.budget_tokens(*terms_2N)
        tokens_ND.requires_grad_()
        language = np.stack([group.language_feature for group in measured.groups])
        latency = self(
            tokens_ND.repeat_interleave(size, 0),
            torch.from_numpy(language).to(dtype).repeat_interleave(size, 0),
            torch.from_numpy(np.concatenate([group.actions for group in measured.groups])),
        )
        latency.backward(torch.from_numpy(np.concatenate(measured.latency_token_grads)).to(dtype))
        return list(tokens_ND.grad.numpy())


@torch.no_grad()
def run_groups(
    controller: Controller,
    blocks: FrozenBlocks,
    language_ND: torch.Tensor,
    budgets_ms_N: torch.Tensor,
    size: int,
    rng: torch.Generator,
    version: int = 0,
    prices_N: torch.Tensor | None = None,
) -> list[GroupRollout]:
    """Acts `size` times in each of N states; scores and latencies are left at zero."""
    count = len(budgets_ms_N)
    prices_N = torch.zeros(count) if prices_N is None else prices_N
    language = language_ND.repeat_interleave(size, 0)
    tokens = controller.budget_tokens(budgets_ms_N, prices_N).repeat_interleave(size, 0)
    generators = [rng] * (count * size)
    first = choose(controller.stage1_logits(language, tokens), generators)
    latency = blocks(tokens, language, first.indices_B2)
    second = choose(controller.stage2_logits(latency, first.indices_B2[:, 1]), generators)
    actions = torch.cat((first.indices_B2, second.indices_B2), -1).view(count, size, 4)
    log_probs = torch.cat((first.log_probs_B2, second.log_probs_B2), -1).view(count, size, 4)
    return [
        make_group(
            group_id=n,
            language=language_ND[n],
            budget_ms=float(budgets_ms_N[n]),
            price=float(prices_N[n]),
            actions=actions[n],
            log_probs=log_probs[n],
            latency_tokens=latency.view(count, size, -1)[n],
            version=version,
        )
        for n in range(count)
    ]


def make_group(
    *, group_id, language, budget_ms, price, actions, log_probs, latency_tokens, version=0
) -> GroupRollout:
    size = len(actions)
    return GroupRollout(
        group_id=group_id,
        split="train",
        index=group_id,
        sample_id=str(group_id),
        task="synthetic",
        budget_ms=budget_ms,
        price=price,
        policy_version=version,
        policy_sha256="",
        budget_token=np.zeros(language.shape[-1], np.float32),
        language_feature=language.float().numpy(),
        image_feature=np.zeros(0, np.float32),
        actions=actions.numpy(),
        log_probs=log_probs.float().numpy(),
        latency_tokens=latency_tokens.float().numpy(),
        scores=np.zeros(size, np.float32),
        latencies_ms=np.zeros(size),
        feasible=True,
        clock="none",
        device_budget_ms=budget_ms,
        device_ms=np.zeros(size),
        wall_ms=np.zeros(size),
        num_text_tokens=0,
        num_vision_tokens=np.zeros(size, np.int64),
        num_output_tokens=np.zeros(size, np.int64),
        tilings=((0, 0),) * size,
        answers=("",) * size,
        stages_ms=({},) * size,
        actor="test",
        incarnation=0,
    )


def enumerate_log_probs(controller, blocks, language_1D, budget_ms_1) -> torch.Tensor:
    """Log-probability of each of the 225 configurations, differentiable through everything."""
    count = len(ACTIONS)
    token = controller.budget_tokens(budget_ms_1).expand(count, -1)
    language = language_1D.expand(count, -1)
    latency = blocks(token, language, ACTIONS)
    return evaluate(controller, language, token, latency, ACTIONS).log_probs_B4.sum(-1)


def flat_gradient(controller: Controller) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in controller.parameters()])
