"""The learner: one optimizer, one update for all trained weights.

The gradient reaches the budget MLP in two ways: through stage 1's input, which is in the learner's
own graph, and through the latency token, which passed the frozen model. The learner has no copy of
that model, so an update is two calls with a vector-Jacobian product on the rollout actors in
between:

    pending = learner.prepare(groups, score_NG, constraint_NG)
    # the actors map pending.latency_token_grads to budget_token_grads
    record = learner.apply(pending, budget_token_grads)

Shapes: N groups, G episodes of each, B = N G episodes, D d_model, 4 heads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.advantages import ADVANTAGE_FORMS
from learner.batch import EpisodeBatch, for_inspection, make_batch
from learner.config import LearnerConfig
from learner.losses import LossInputs, LossMetrics, grpo_loss
from learner.replay import Replay, ReplayRecord, ViolationCost
from policy.controller import Controller, evaluate_actions
from policy.distributions import kl_divergence
from policy.weights import PolicyWeights, weights_sha256
from rollout.group_rollout import GroupRollout


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PendingUpdate:
    """An update between `prepare` and `apply`.

    `latency_token_grads` goes to the rollout actors: dL/d(latency token) of each group, float32
    [G, D], with zero rows for masked groups.
    """

    groups: Sequence[GroupRollout]
    score_rewards_NG: np.ndarray
    constraint_rewards_NG: np.ndarray
    violation_cost: ViolationCost | None
    batch: EpisodeBatch
    proximal_log_probs_B: Tensor
    metrics: LossMetrics
    latency_token_grads: list[np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRecord:
    """Results of one update, for the logs.

    Attributes:
        version: version of the weights after the update.
        applied: False if the update was skipped for a non-finite loss or gradient.
        num_nonfinite_total: updates skipped so far in the run.
        loss: metrics of the last pass.
        entropy_coef: weight of the entropy bonus.
        grad_norm: norm of the whole gradient in the first pass, before clipping.
        num_groups: number of groups in the batch.
        num_zero_variance_groups: number of groups masked because all their rewards are equal.
        advantage_abs_mean: mean absolute advantage of the active episodes.
        staleness_mean: mean number of versions between the weights that acted and the updated ones.
        staleness_max: maximum of the same.
        replay: results of the updates from remembered episodes; None without them.
    """

    version: int
    applied: bool
    num_nonfinite_total: int
    loss: LossMetrics
    entropy_coef: float
    grad_norm: float
    num_groups: int
    num_zero_variance_groups: int
    advantage_abs_mean: float
    staleness_mean: float
    staleness_max: int
    replay: ReplayRecord | None


class NonFiniteUpdateError(RuntimeError):
    """Too many consecutive updates had a non-finite loss or gradient.

    Attributes:
        message: what happened.
        name: file name for the last batch.
        batch: the last batch, as an .npz; the learner may run on another machine than the run.
    """

    def __init__(self, message: str, name: str, batch: bytes) -> None:
        super().__init__(message, name, batch)
        self.message, self.name, self.batch = message, name, batch

    def __str__(self) -> str:
        return self.message

    def save(self, folder: Path) -> Path:
        """Writes the batch into a folder; returns its path."""
        path = folder / self.name
        path.write_bytes(self.batch)
        return path


class Learner:
    """Owns the controller's weights, their optimizer and their version.

    Args:
        controller: the weights to train; a copy of them is the initial controller of the optional
            KL term.
        config: see LearnerConfig.
        seed: seed of the run, from which all draws of replay follow.
    """

    def __init__(self, controller: Controller, config: LearnerConfig, seed: int = 0) -> None:
        self.controller, self.seed = controller, seed
        self.config = config
        self.initial_controller = copy.deepcopy(controller).requires_grad_(False)
        self.optimizer = _make_optimizer(controller, config)
        self.replay = Replay(controller, config.replay, seed) if config.replay else None
        self.version = 0
        self.num_nonfinite_total = 0
        self.num_nonfinite_consecutive = 0
        self._pending: PendingUpdate | None = None

    def prepare(
        self,
        groups: Sequence[GroupRollout],
        score_NG: np.ndarray,
        constraint_NG: np.ndarray,
        violation_cost: ViolationCost | None = None,
    ) -> PendingUpdate:
        """Computes the loss and its gradients down to the latency tokens.

        Args:
            groups: of one size. Their order is the order of summation: keep it (by group_id, for
                one) where updates must be repeatable to the bit.
            score_NG: the part of each episode's reward that comes from its score.
            constraint_NG: the rest, -(lambda * violation + 0.5 * overshoot).
            violation_cost: lambda at budgets in ms, for replay; without it there is none.

        Raises:
            ValueError: groups of different sizes, or rewards of another shape.
        """
        form = ADVANTAGE_FORMS[self.config.advantage]
        like = next(self.controller.parameters())
        batch = make_batch(groups, score_NG, constraint_NG, form, like)
        batch.latency_token_BD.requires_grad_()
        self.optimizer.zero_grad()
        log_probs_B, metrics = self._backward(batch, batch.latency_token_BD, None)
        grads_BD = batch.latency_token_BD.grad
        assert grads_BD is not None
        grads_BD = grads_BD.where(batch.active_B[:, None], 0.0)
        grads_NGD = grads_BD.view(len(groups), batch.group_size, -1).float().cpu().numpy()
        self._pending = PendingUpdate(
            groups=groups,
            score_rewards_NG=score_NG,
            constraint_rewards_NG=constraint_NG,
            violation_cost=violation_cost,
            batch=batch,
            proximal_log_probs_B=log_probs_B,
            metrics=metrics,
            latency_token_grads=list(grads_NGD),
        )
        return self._pending

    def apply(
        self, pending: PendingUpdate, budget_token_grads: Sequence[np.ndarray]
    ) -> UpdateRecord:
        """Adds the budget MLP's gradient by the latency tokens and takes the step.

        With several epochs the later ones use the same latency tokens. These no longer are what
        the changed budget MLP would give, and the vector-Jacobian product was taken for the first
        pass only, so later passes train the budget MLP by stage 1's input alone.

        Args:
            pending: from the last `prepare`.
            budget_token_grads: for each group dL/d(budget token), float [D], summed over its
                episodes.

        Raises:
            NonFiniteUpdateError: too many consecutive non-finite updates; holds the batch.
        """
        if pending is not self._pending:
            raise ValueError("this update is not the one prepared last: prepare it again")
        self._pending = None
        batch, metrics = pending.batch, pending.metrics
        grads_ND = np.array(budget_token_grads)
        tokens_ND = self.controller.budget_tokens(batch.budgets_ms_N)
        tokens_ND.backward(torch.from_numpy(grads_ND).to(tokens_ND))
        entropy_coef = self.config.entropy.coefficient(self.version)
        self._schedule_learning_rates()
        grad_norm = self._step(metrics)
        applied, replay = np.isfinite(grad_norm), None
        if applied:
            for _ in range(self.config.epochs - 1):
                self.optimizer.zero_grad()
                latency_token_BD = batch.latency_token_BD.detach()
                _, metrics = self._backward(batch, latency_token_BD, pending.proximal_log_probs_B)
                if not np.isfinite(self._step(metrics)):
                    break
            replay = self._replay(pending, entropy_coef)
            self.version += 1
            self.num_nonfinite_consecutive = 0
        else:
            self._count_nonfinite(pending, grads_ND)
        return self._record(pending, metrics, applied, entropy_coef, grad_norm, replay)

    def weights(self) -> PolicyWeights:
        """A copy of the current weights, with version and hash."""
        arrays = self.controller.to_numpy()
        return PolicyWeights(version=self.version, sha256=weights_sha256(arrays), arrays=arrays)

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact resume needs, no update pending; tensors, numbers, dicts, lists."""
        return {
            "controller": self.controller.state_dict(),
            "initial_controller": self.initial_controller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "version": self.version,
            "num_nonfinite_total": self.num_nonfinite_total,
            "num_nonfinite_consecutive": self.num_nonfinite_consecutive,
            "replay": self.replay.state_dict() if self.replay else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a `state_dict`; a pending update is dropped."""
        self.controller.load_state_dict(state["controller"])
        self.initial_controller.load_state_dict(state["initial_controller"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.version = state["version"]
        self.num_nonfinite_total = state["num_nonfinite_total"]
        self.num_nonfinite_consecutive = state["num_nonfinite_consecutive"]
        if self.replay and state["replay"]:
            self.replay.load_state_dict(state["replay"])
        self._pending = None

    def _backward(
        self, batch: EpisodeBatch, latency_token_BD: Tensor, proximal_log_probs_B: Tensor | None
    ) -> tuple[Tensor, LossMetrics]:
        """One pass; without proximal log-probs the current ones are (the ratio is exactly 1)."""
        distributions = _log_distributions(self.controller, batch, latency_token_BD)
        evaluation = evaluate_actions(distributions, batch.actions_B4)
        log_probs_B = evaluation.log_probs_B4.sum(-1)
        if self.config.loss.kl_coef > 0:
            with torch.no_grad():
                reference = _log_distributions(
                    self.initial_controller, batch, latency_token_BD.detach()
                )
            kls = map(kl_divergence, distributions, reference)
            reference_kl_B = torch.stack(list(kls), -1).sum(-1)
        else:
            reference_kl_B = torch.zeros_like(log_probs_B)
        if proximal_log_probs_B is None:
            proximal_log_probs_B = log_probs_B.detach()
        inputs = LossInputs(
            log_probs_B=log_probs_B,
            proximal_log_probs_B=proximal_log_probs_B,
            behaviour_log_probs_B=batch.behaviour_log_probs_B,
            advantages_B=batch.advantages_B,
            active_B=batch.active_B,
            entropies_B4=evaluation.entropies_B4,
            reference_kl_B=reference_kl_B,
            entropy_coef=self.config.entropy.coefficient(self.version),
        )
        loss, metrics = grpo_loss(inputs, self.config.loss)
        loss.backward()
        return log_probs_B.detach(), metrics

    def _replay(self, pending: PendingUpdate, temperature: float) -> ReplayRecord | None:
        if self.replay is None or pending.violation_cost is None:
            return None
        return self.replay.learn(
            pending.groups,
            pending.violation_cost,
            temperature=temperature,
            lr_scale=self.config.lr_scale(self.version),
            grad_clip=self.config.grad_clip,
            seed=int(np.random.SeedSequence([self.seed, self.version]).generate_state(1)[0]),
        )

    def _schedule_learning_rates(self) -> None:
        """Sets them from the version alone, so that a resumed run has the same."""
        scale = self.config.lr_scale(self.version)
        for group in self.optimizer.param_groups:
            group["lr"] = scale * group["initial_lr"]

    def _step(self, metrics: LossMetrics) -> float:
        """Clips and steps; returns the gradient norm, NaN or inf if there was no step."""
        norm = torch.nn.utils.clip_grad_norm_(
            self.controller.parameters(), self.config.grad_clip, foreach=True
        ).item()
        if not np.isfinite(metrics.loss):
            return float("nan")
        if np.isfinite(norm):
            self.optimizer.step()
        return norm

    def _count_nonfinite(self, pending: PendingUpdate, budget_token_grads_ND: np.ndarray) -> None:
        self.num_nonfinite_total += 1
        self.num_nonfinite_consecutive += 1
        if self.num_nonfinite_consecutive <= self.config.max_nonfinite_updates:
            return
        raise NonFiniteUpdateError(
            f"{self.num_nonfinite_consecutive} consecutive updates had a non-finite loss or "
            f"gradient (loss {pending.metrics.loss}); the weights are still those of version "
            f"{self.version}: look for NaN in the last batch, then lower learning_rate or resume "
            "from an earlier checkpoint",
            f"nonfinite_version_{self.version:08d}.npz",
            for_inspection(
                pending.groups,
                pending.score_rewards_NG,
                pending.constraint_rewards_NG,
                budget_token_grads_ND,
            ),
        )

    def _record(
        self,
        pending: PendingUpdate,
        metrics: LossMetrics,
        applied: bool,
        entropy_coef: float,
        grad_norm: float,
        replay: ReplayRecord | None,
    ) -> UpdateRecord:
        batch = pending.batch
        acted_on = self.version - int(applied)
        staleness = [acted_on - group.policy_version for group in pending.groups]
        active_advantages = batch.advantages_B[batch.active_B]
        return UpdateRecord(
            version=self.version,
            applied=applied,
            num_nonfinite_total=self.num_nonfinite_total,
            loss=metrics,
            entropy_coef=entropy_coef,
            grad_norm=grad_norm,
            num_groups=len(pending.groups),
            num_zero_variance_groups=int((~batch.active_N).sum()),
            advantage_abs_mean=(
                active_advantages.abs().mean().item() if active_advantages.numel() else 0.0
            ),
            staleness_mean=float(np.mean(staleness)),
            staleness_max=max(staleness),
            replay=replay,
        )


def _make_optimizer(controller: Controller, config: LearnerConfig) -> torch.optim.Adam:
    ratios = (
        (controller.budget_encoder, config.budget_lr_ratio),
        (controller.stage1, config.stage1_lr_ratio),
        (controller.stage2, 1.0),
    )
    groups = [
        {"params": list(part.parameters()), "initial_lr": config.learning_rate * ratio}
        for part, ratio in ratios
    ]
    return torch.optim.Adam(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def _log_distributions(
    controller: Controller, batch: EpisodeBatch, latency_token_BD: Tensor
) -> tuple[Tensor, ...]:
    """The four heads' log-probabilities; what stage 1 sees is the same in a whole group."""
    budget_token_ND = controller.budget_tokens(batch.budgets_ms_N)
    return controller.log_distributions(
        batch.language_feature_ND.repeat_interleave(batch.group_size, 0),
        budget_token_ND.repeat_interleave(batch.group_size, 0),
        latency_token_BD,
        batch.actions_B4[:, 1],
        batch.image_feature_NI.repeat_interleave(batch.group_size, 0),
    )
