"""The controller: budget encoder and both stages, the only trained weights of the system.

Shapes: B episodes, D d_model, I length of the image feature (0 if the controller does not see the
image), 4 heads in the order of `envs.spec.HEADS`. Actions are choice indices
(`envs.spec.Knobs.from_indices`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from envs.budgets import BudgetRange
from policy import serialization
from policy.budget_encoder import BudgetEncoder
from policy.config import ControllerConfig
from policy.distributions import entropy, log_probs_of, sample
from policy.stage1 import Stage1, Stage1Logits
from policy.stage2 import Stage2, Stage2Logits


class Choice(NamedTuple):
    """The choices of one stage: int64 indices by head, and the logits that they are from."""

    indices_B2: Tensor
    logits: Stage1Logits | Stage2Logits

    @property
    def log_probs_B2(self) -> Tensor:
        """Log-probabilities of the choices, which training needs and an answer does not."""
        heads = zip(self.logits, self.indices_B2.unbind(-1), strict=True)
        rows = len(self.indices_B2)
        return torch.stack(
            [log_probs_of(x.log_softmax(-1).expand(rows, -1), chosen) for x, chosen in heads], -1
        )


class ActionEvaluation(NamedTuple):
    """Log-probabilities and entropies of given actions under the current weights, by head."""

    log_probs_B4: Tensor
    entropies_B4: Tensor


class Controller(nn.Module):
    """Decides, for each request and its budget, how much of the frozen model to run."""

    def __init__(self, config: ControllerConfig):
        super().__init__()
        self.config = config
        self.budget_encoder = BudgetEncoder(
            config.d_model, config.budget_range, config.sinusoid_scale, config.price_range
        )
        self.stage1 = Stage1(config)
        self.stage2 = Stage2(config.d_model, config.projection_dim, config.hidden_dim)

    def budget_tokens(self, budgets_ms_B: Tensor, prices_B: Tensor | None = None) -> Tensor:
        """Returns the budget tokens [B, D] of budgets [B] in ms and prices [B], by default zero."""
        return self.budget_encoder(budgets_ms_B, prices_B)

    def stage1_logits(
        self,
        language_feature_BD: Tensor,
        budget_token_BD: Tensor,
        image_feature_BI: Tensor | None = None,
    ) -> Stage1Logits:
        """Returns the logits of tier [B, 3] and insertion position [B, 5].

        The image feature is needed if, and only if, the controller sees the image.
        """
        return self.stage1(language_feature_BD, budget_token_BD, image_feature_BI)

    def stage2_logits(self, latency_token_BD: Tensor, position_index_B: Tensor) -> Stage2Logits:
        """Returns the logits of top_k [B, 5] and num_blocks [B, 5], the latter masked with -inf.

        `position_index_B` is the choice index of the insertion position (0 for p=1).
        """
        return self.stage2(latency_token_BD, position_index_B)

    def log_distributions(
        self,
        language_feature_BD: Tensor,
        budget_token_BD: Tensor,
        latency_token_BD: Tensor,
        position_index_B: Tensor,
        image_feature_BI: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Log-probabilities of every choice of the four heads: [B, 3], [B, 5], [B, 5], [B, 5]."""
        stage1 = self.stage1_logits(language_feature_BD, budget_token_BD, image_feature_BI)
        stage2 = self.stage2_logits(latency_token_BD, position_index_B)
        return tuple(logits.log_softmax(-1) for logits in (*stage1, *stage2))

    def num_stage_weights(self) -> int:
        """Number of weights in the two stages, without the budget encoder."""
        return sum(w.numel() for stage in (self.stage1, self.stage2) for w in stage.parameters())

    def check_compatible(
        self, *, d_model: int, image_dim: int, budget_range: BudgetRange | None = None
    ) -> None:
        """Raises ValueError unless the controller fits a model's widths and a run's budgets."""
        if self.config.image_dim not in (0, image_dim):
            raise ValueError(
                f"the controller was trained for image features of length {self.config.image_dim} "
                f"and the model gives {image_dim}: load the model it was trained with, or train a "
                "new controller"
            )
        if d_model != self.config.d_model:
            raise ValueError(
                f"the controller was trained for d_model {self.config.d_model} and the model has "
                f"{d_model}: load the model it was trained with, or train a new controller"
            )
        if budget_range is not None and budget_range != self.config.budget_range:
            own = self.config.budget_range
            raise ValueError(
                f"the controller was trained for budgets {own.low_ms:g}..{own.high_ms:g} ms and "
                f"the run has {budget_range.low_ms:g}..{budget_range.high_ms:g} ms: set the run's "
                "range to the controller's, or train a new controller"
            )

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Copies of all trained weights, by name."""
        return {
            name: tensor.detach().cpu().numpy().copy() for name, tensor in self.state_dict().items()
        }

    def load_numpy(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Copies weights in, from read-only arrays too.

        Raises:
            ValueError: names or shapes are not this controller's; nothing is changed then.
        """
        state = self.state_dict()
        wrong = sorted(state.keys() ^ arrays.keys())
        wrong += [
            name
            for name in state.keys() & arrays.keys()
            if tuple(state[name].shape) != arrays[name].shape
        ]
        if wrong:
            raise ValueError(
                f"weights do not fit this controller of d_model {self.config.d_model} "
                f"(first wrong name or shape: {wrong[0]}): load those of the same configuration"
            )
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(torch.from_numpy(np.array(arrays[name])))

    def save(self, folder: Path | str) -> None:
        """Writes `controller.safetensors` and `controller.json` into a folder, made if absent."""
        serialization.save(Path(folder), self.config, self.to_numpy())

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Reads a saved controller.

        Raises:
            ValueError: a file is absent, broken, of another format or of another knob set.
        """
        config_fields, arrays = serialization.load(Path(folder))
        try:
            controller = cls(ControllerConfig(**config_fields))
            controller.load_numpy(arrays)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{folder}: controller.json and controller.safetensors do not describe one "
                f"controller ({error}); restore both from the same checkpoint"
            ) from error
        return controller


def choose(
    logits: Stage1Logits | Stage2Logits,
    generators: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Choice:
    """Decides all heads of one stage.

    Args:
        logits: [B, K] for each head.
        generators: None takes the most likely choice of each row. One generator samples a single
            row; a sequence samples row b from generators[b] alone, so that a member's choice does
            not depend on the other members. A single row of logits serves any number of
            generators (stage 1's logits are the same for a whole group).
    """
    if generators is None:
        return Choice(torch.cat([head.argmax(-1, keepdim=True) for head in logits], -1), logits)
    generators = [generators] if isinstance(generators, torch.Generator) else generators
    return Choice(sample(logits, generators), logits)


def evaluate_actions(log_distributions: Sequence[Tensor], actions_B4: Tensor) -> ActionEvaluation:
    """Picks the log-probability of each head's action and computes each head's entropy."""
    log_probs = [
        log_probs_of(log_distribution, actions_B4[:, head])
        for head, log_distribution in enumerate(log_distributions)
    ]
    entropies = [entropy(log_distribution) for log_distribution in log_distributions]
    return ActionEvaluation(torch.stack(log_probs, -1), torch.stack(entropies, -1))
