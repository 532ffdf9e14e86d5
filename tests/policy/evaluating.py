"""What the current weights say of given actions."""

from torch import Tensor

from policy.controller import ActionEvaluation, Controller, evaluate_actions


def evaluate(
    controller: Controller,
    language_feature_BD: Tensor,
    budget_token_BD: Tensor,
    latency_token_BD: Tensor,
    actions_B4: Tensor,
    image_feature_BI: Tensor | None = None,
) -> ActionEvaluation:
    """Log-probability and entropy of each head, differentiable."""
    log_distributions = controller.log_distributions(
        language_feature_BD, budget_token_BD, latency_token_BD, actions_B4[:, 1], image_feature_BI
    )
    return evaluate_actions(log_distributions, actions_B4)
