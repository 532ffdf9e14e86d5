"""The learner: one optimizer for all trained weights, one objective.

The gradient reaches the budget MLP in two ways: through stage 1's input, which is in the learner's
own graph, and through the latency token, which passed the frozen model. The learner has no copy of
that model, so the actors compute a vector-Jacobian product in between:

    measured = learner.learn_from_groups(groups, score_NG, constraint_NG, worth)
    # the actors map measured.latency_token_grads to budget_token_grads
    learner.learn_from_memory(groups)
    record = learner.update(measured, budget_token_grads)

Shapes: N groups, G episodes of each, B = N G episodes, S surrogates of an episode (one of all
heads, or one of each stage), D d_model, 4 heads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.reward import BudgetReward, RewardFunction
from learner.advantages import ADVANTAGE_FORMS
from learner.archive import Archive, name_of, packed, unpacked
from learner.batch import EpisodeBatch, for_inspection, make_batch
from learner.config import LearnerConfig
from learner.expected_groups import ExpectedGroups
from learner.losses import LossInputs, LossMetrics, grpo_loss
from learner.replay import Replay, ReplayRecord
from learner.update import MeasuredGradient, NonFiniteUpdateError, UpdateRecord
from policy.controller import Controller, evaluate_actions
from policy.distributions import kl_divergence
from policy.weights import PolicyWeights, weights_sha256
from rollout.group_rollout import GroupRollout


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
        self._initial = packed(controller.state_dict())
        self.optimizer = _make_optimizer(controller, config)
        self.replay = Replay(controller, config.replay, seed) if config.replay else None
        self.version = 0
        self.num_nonfinite_total = 0
        self.num_nonfinite_consecutive = 0
        self._measured: MeasuredGradient | None = None

    def begin_here(self) -> None:
        """Takes the current weights as the initial ones, from which the policy is not to stray."""
        self.initial_controller.load_state_dict(self.controller.state_dict())
        self._initial = packed(self.controller.state_dict())

    def learn_from_groups(
        self,
        groups: Sequence[GroupRollout],
        score_NG: np.ndarray,
        constraint_NG: np.ndarray,
        worth: RewardFunction | None = None,
    ) -> MeasuredGradient:
        """Computes the gradient from a step's measured groups, down to their latency tokens.

        Without replay, or before enough is remembered, that is GRPO: every episode against its
        group. With replay it is the measured residual of the model's expectation.

        Args:
            groups: of one size. Their order is the order of summation: keep it (by group_id, for
                one) where updates must be repeatable to the bit.
            score_NG: the part of each episode's reward that comes from its score.
            constraint_NG: the rest, which comes from its latency.
            worth: the reward, by which replay values expected outcomes; without it there is none.

        Raises:
            ValueError: groups of different sizes, or rewards of another shape.
        """
        form = ADVANTAGE_FORMS[self.config.advantage]
        like = next(self.controller.parameters())
        batch = make_batch(groups, score_NG, constraint_NG, form, like)
        expected = None
        if self.replay and self.replay.is_ready and isinstance(worth, BudgetReward):
            rewards_NG = torch.from_numpy(score_NG + constraint_NG).to(like)
            expected = ExpectedGroups.of(groups, rewards_NG, self.replay, worth)
            batch = batch.with_residuals(expected.weight * expected.residuals_B2)
        self.optimizer.zero_grad()
        token_ND = self.controller.budget_tokens(batch.budgets_ms_N, batch.prices_N)
        inputs = token_ND.detach().requires_grad_(), batch.latency_token_BD.requires_grad_()
        log_probs_BS, metrics = self._backward(batch, *inputs, None)
        if expected is not None:
            temperature = self.config.entropy.coefficient(self.version)
            expected.backward(self.controller, inputs, temperature)
        grads_ND, grads_BD = (x.grad for x in inputs)
        assert grads_ND is not None
        assert grads_BD is not None
        token_ND.backward(grads_ND)
        grads_NGD = grads_BD.view(len(groups), batch.group_size, -1).float().cpu().numpy()
        self._measured = MeasuredGradient(
            groups=groups,
            score_rewards_NG=score_NG,
            constraint_rewards_NG=constraint_NG,
            batch=batch,
            expected=expected,
            proximal_log_probs_BS=log_probs_BS,
            metrics=metrics,
            latency_token_grads=list(grads_NGD),
        )
        return self._measured

    def learn_from_memory(self, groups: Sequence[GroupRollout]) -> None:
        """Remembers a step's groups and fits the outcome model; does nothing without replay."""
        if self.replay is not None:
            seed = np.random.SeedSequence([self.seed, self.version]).generate_state(1)[0]
            self.replay.take_in(groups, int(seed))

    def update(
        self, measured: MeasuredGradient, budget_token_grads: Sequence[np.ndarray]
    ) -> UpdateRecord:
        """Takes the step's updates: the first with the budget encoder, all with both stages.

        Each update has the gradient of the measured groups and, with replay, that of remembered
        ones. In later updates of a step the measured part is clipped by the ratio of PPO. The
        vector-Jacobian product was taken for the first one only, so the later ones train the budget
        encoder by stage 1's input alone, or not at all with replay.

        Args:
            measured: from the last `learn_from_groups`.
            budget_token_grads: for each group dL/d(budget token), float [D], summed over its
                episodes.

        Raises:
            NonFiniteUpdateError: too many consecutive non-finite updates; holds the batch.
        """
        if measured is not self._measured:
            raise ValueError("this gradient is not the one computed last: compute it again")
        self._measured = None
        batch, metrics = measured.batch, measured.metrics
        grads_ND = np.array(budget_token_grads)
        tokens_ND = self.controller.budget_tokens(batch.budgets_ms_N, batch.prices_N)
        tokens_ND.backward(torch.from_numpy(grads_ND).to(tokens_ND))
        self._schedule_learning_rates()
        replay = self._first_remembered(measured)
        grad_norm = self._step(metrics)
        entropy_coef = self.config.entropy.coefficient(self.version)
        applied = bool(np.isfinite(grad_norm))
        if applied:
            for _ in range(self._updates_per_step(measured) - 1):
                self.optimizer.zero_grad()
                metrics = self._measured_again(measured)
                self._remembered(measured)
                if not np.isfinite(self._step(metrics)):
                    break
            self.version += 1
            self.num_nonfinite_consecutive = 0
        else:
            self._count_nonfinite(measured, grads_ND)
        return self._record(measured, metrics, applied, entropy_coef, grad_norm, replay)

    def weights(self) -> PolicyWeights:
        """A copy of the current weights, with version and hash."""
        arrays = self.controller.to_numpy()
        return PolicyWeights(version=self.version, sha256=weights_sha256(arrays), arrays=arrays)

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact resume needs, no update pending.

        Tensors, numbers, strings, dicts and lists, and the `archive`.
        """
        return {
            "controller": self.controller.state_dict(),
            "initial_controller": name_of(self._initial),
            "optimizer": self.optimizer.state_dict(),
            "version": self.version,
            "num_nonfinite_total": self.num_nonfinite_total,
            "num_nonfinite_consecutive": self.num_nonfinite_consecutive,
            "replay": self.replay.state_dict() if self.replay else {},
            "archive": self.archive(),
        }

    def archive(self) -> dict[str, bytes]:
        """What the state names and never changes: see `learner.archive`."""
        remembered = self.replay.archive() if self.replay else {}
        return {name_of(self._initial): self._initial, **remembered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a `state_dict`; a pending update is dropped."""
        self.controller.load_state_dict(state["controller"])
        archive: Archive = state["archive"]
        self._initial = archive[state["initial_controller"]]
        self.initial_controller.load_state_dict(unpacked(self._initial))
        self.optimizer.load_state_dict(state["optimizer"])
        self.version = state["version"]
        self.num_nonfinite_total = state["num_nonfinite_total"]
        self.num_nonfinite_consecutive = state["num_nonfinite_consecutive"]
        if self.replay and state["replay"]:
            self.replay.load_state_dict(state["replay"], archive)
        self._measured = None

    def _backward(
        self,
        batch: EpisodeBatch,
        budget_token_ND: Tensor,
        latency_token_BD: Tensor,
        proximal_log_probs_BS: Tensor | None,
    ) -> tuple[Tensor, LossMetrics]:
        """One pass; without proximal log-probs the current ones are (the ratio is exactly 1)."""
        distributions = _log_distributions(
            self.controller, batch, budget_token_ND, latency_token_BD
        )
        evaluation = evaluate_actions(distributions, batch.actions_B4)
        log_probs_BS = batch.by_surrogate(evaluation.log_probs_B4)
        if self.config.loss.kl_coef > 0:
            with torch.no_grad():
                initial = self.initial_controller
                reference = _log_distributions(
                    initial,
                    batch,
                    initial.budget_tokens(batch.budgets_ms_N, batch.prices_N),
                    latency_token_BD.detach(),
                )
            kls = map(kl_divergence, distributions, reference)
            reference_kl_B = torch.stack(list(kls), -1).sum(-1)
        else:
            reference_kl_B = torch.zeros_like(log_probs_BS[:, 0])
        if proximal_log_probs_BS is None:
            proximal_log_probs_BS = log_probs_BS.detach()
        entropy_coef = self.config.entropy.coefficient(self.version)
        inputs = LossInputs(
            log_probs_BS=log_probs_BS,
            proximal_log_probs_BS=proximal_log_probs_BS,
            behaviour_log_probs_BS=batch.by_surrogate(batch.behaviour_log_probs_B4),
            advantages_BS=batch.advantages_BS,
            active_B=batch.active_B,
            entropies_B4=evaluation.entropies_B4,
            reference_kl_B=reference_kl_B,
            # With replay the entropy bonus is part of the expectation.
            entropy_coef=0.0 if batch.is_residual else entropy_coef,
        )
        loss, metrics = grpo_loss(inputs, self.config.loss)
        loss.backward()
        return log_probs_BS.detach(), metrics

    def _measured_again(self, measured: MeasuredGradient) -> LossMetrics:
        """The gradient of the measured groups under the weights of a later update."""
        batch = measured.batch
        with torch.set_grad_enabled(measured.expected is None):
            token_ND = self.controller.budget_tokens(batch.budgets_ms_N, batch.prices_N)
        latency_token_BD = batch.latency_token_BD.detach()
        return self._backward(batch, token_ND, latency_token_BD, measured.proximal_log_probs_BS)[1]

    def _remembered(self, measured: MeasuredGradient) -> float:
        """Adds the gradient of remembered groups, if the policy follows the model; its regret."""
        if self.replay is None or measured.expected is None:
            return 0.0
        temperature = self.config.entropy.coefficient(self.version)
        return self.replay.backward(measured.expected.worth, temperature)

    def _first_remembered(self, measured: MeasuredGradient) -> ReplayRecord | None:
        """The same in the first update of a step, whose two parts are compared for the logs."""
        if self.replay is None or measured.expected is None:
            return None
        stages = (self.controller.stage1, self.controller.stage2)
        weights = [weight for stage in stages for weight in stage.parameters()]
        before = [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]
        regret = self._remembered(measured)
        after = [w.grad - b for w, b in zip(weights, before, strict=True) if w.grad is not None]
        norms = [torch.nn.utils.get_total_norm(grads).item() for grads in (before, after)]
        return ReplayRecord(
            num_groups=len(self.replay.buffer),
            model_loss=self.replay.model_loss,
            latency_spread=float(self.replay.model.spread),
            regret=regret,
            residual=measured.expected.residuals_B2.abs().mean().item(),
            measured_norm=norms[0],
            remembered_norm=norms[1],
            measured_share=norms[0] / sum(norms) if sum(norms) else 0.0,
        )

    def _updates_per_step(self, measured: MeasuredGradient) -> int:
        if self.replay is None or measured.expected is None:
            return self.config.epochs
        return self.replay.config.policy_updates

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

    def _count_nonfinite(
        self, measured: MeasuredGradient, budget_token_grads_ND: np.ndarray
    ) -> None:
        self.num_nonfinite_total += 1
        self.num_nonfinite_consecutive += 1
        if self.num_nonfinite_consecutive <= self.config.max_nonfinite_updates:
            return
        raise NonFiniteUpdateError(
            f"{self.num_nonfinite_consecutive} consecutive updates had a non-finite loss or "
            f"gradient (loss {measured.metrics.loss}); the weights are still those of version "
            f"{self.version}: look for NaN in the last batch, then lower learning_rate or resume "
            "from an earlier checkpoint",
            f"nonfinite_version_{self.version:08d}.npz",
            for_inspection(
                measured.groups,
                measured.score_rewards_NG,
                measured.constraint_rewards_NG,
                budget_token_grads_ND,
            ),
        )

    def _record(
        self,
        measured: MeasuredGradient,
        metrics: LossMetrics,
        applied: bool,
        entropy_coef: float,
        grad_norm: float,
        replay: ReplayRecord | None,
    ) -> UpdateRecord:
        batch = measured.batch
        acted_on = self.version - int(applied)
        staleness = [acted_on - group.policy_version for group in measured.groups]
        active_advantages = batch.advantages_BS[batch.active_B]
        return UpdateRecord(
            version=self.version,
            applied=applied,
            num_nonfinite_total=self.num_nonfinite_total,
            loss=metrics,
            entropy_coef=entropy_coef,
            grad_norm=grad_norm,
            num_groups=len(measured.groups),
            num_zero_variance_groups=int((~batch.has_spread_N).sum()),
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
    controller: Controller,
    batch: EpisodeBatch,
    budget_token_ND: Tensor,
    latency_token_BD: Tensor,
) -> tuple[Tensor, ...]:
    """The four heads' log-probabilities; what stage 1 sees is the same in a whole group."""
    return controller.log_distributions(
        batch.language_feature_ND.repeat_interleave(batch.group_size, 0),
        budget_token_ND.repeat_interleave(batch.group_size, 0),
        latency_token_BD,
        batch.actions_B4[:, 1],
        batch.image_feature_NI.repeat_interleave(batch.group_size, 0),
    )
