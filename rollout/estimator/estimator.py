"""The standalone latency estimator: five inputs to the two latencies that compose.

    T_total = T_prefill_total + T_decode_per_token * output_tokens

The number of output tokens is not known beforehand, so it is no input. The joint training measures
and does not use this module; it serves configuration search, feasibility checks and the
calibration of budgets.

Shapes: B records, 5 inputs in the order of INPUTS, 2 targets in the order of TARGETS, H hidden_dim.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from envs.spec import Tier

INPUTS = ("vision_tokens", "text_tokens", "tier_idx", "top_k", "num_active_blocks")
TARGETS = ("T_prefill_total", "T_decode_per_token")
FORMAT_VERSION = 1
HEAD_GAIN = 0.01
"""Shrinks the heads' first weights: LayerNorm bounds the encoding's norm by sqrt(H), so a first
output is at most HEAD_GAIN * sqrt(H) = 0.16 scales away from the mean, for any input."""

_ABOVE = (0.0, 0.0, -1.0, 0.0, 0.0)
_UP_TO = (float("inf"), float("inf"), float(max(Tier)), float("inf"), float("inf"))
_NOMINAL_INPUTS = ((550.0, 110.0, 1.0, 8.0, 12.0), (260.0, 52.0, 0.82, 2.8, 2.8))
_NOMINAL_TARGETS_MS = ((100.0, 10.0), (50.0, 5.0))

Values = Tensor | Sequence[Any] | float | str
"""One value or a batch of them, as `predict_from_config` takes them."""


class LatencyNetwork(nn.Module):
    """The trained part: standardised inputs [B, 5] to standardised targets [B, 2]."""

    def __init__(self, hidden_dim: int, num_layers: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (len(INPUTS), *[hidden_dim] * (num_layers - 1)):
            layers += [nn.Linear(width, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.prefill_head = nn.Linear(hidden_dim, 1)
        self.decode_head = nn.Linear(hidden_dim, 1)
        with torch.no_grad():
            for head in (self.prefill_head, self.decode_head):
                head.weight.mul_(HEAD_GAIN)
                head.bias.zero_()

    def forward(self, scaled_B5: Tensor) -> Tensor:
        """Returns both heads before their ReLU, in units of the targets' scale."""
        encoding_BH = self.encoder(scaled_B5)
        return torch.cat((self.prefill_head(encoding_BH), self.decode_head(encoding_BH)), -1)


class LatencyEstimator(nn.Module):
    """A small MLP with one shared encoder and two ReLU heads.

    Inputs are standardised, and a head's output z becomes ReLU(mean + scale * z) in ms; the four
    statistics are buffers, saved with the weights. They stand for the profiling grid until
    `fit_scaling` has seen data. The scale never exceeds the mean and the heads' weights start
    near zero, so that every first prediction is close to the positive mean: no head starts dead.
    """

    input_mean: Tensor
    input_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor
    is_scaled: Tensor

    def __init__(self, hidden_dim: int = 256, num_layers: int = 2) -> None:
        super().__init__()
        if hidden_dim < 1 or num_layers < 1:
            raise ValueError(f"hidden_dim {hidden_dim}, num_layers {num_layers}: give at least 1")
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.network = LatencyNetwork(hidden_dim, num_layers)
        self.register_buffer("input_mean", torch.tensor(_NOMINAL_INPUTS[0]))
        self.register_buffer("input_scale", torch.tensor(_NOMINAL_INPUTS[1]))
        self.register_buffer("target_mean", torch.tensor(_NOMINAL_TARGETS_MS[0]))
        self.register_buffer("target_scale", torch.tensor(_NOMINAL_TARGETS_MS[1]))
        self.register_buffer("is_scaled", torch.tensor(False))

    @property
    def num_parameters(self) -> int:
        """Trained weights."""
        return sum(weight.numel() for weight in self.parameters())

    def forward(
        self,
        *,
        vision_tokens: Tensor,
        text_tokens: Tensor,
        tier_idx: Tensor,
        top_k: Tensor,
        num_active_blocks: Tensor,
    ) -> dict[str, Tensor]:
        """Predicts both latencies of B configurations from five (B,) tensors.

        Returns:
            `T_prefill_total` in ms and `T_decode_per_token` in ms per token, (B,) each, never
            negative.

        Raises:
            ValueError: shapes differ, or a value is negative, not finite, no tier, or zero (which
                only the number of vision tokens may be).
        """
        inputs = (vision_tokens, text_tokens, tier_idx, top_k, num_active_blocks)
        latencies_B2 = self.predict(_stack(dict(zip(INPUTS, inputs, strict=True)), INPUTS))
        return {name: latencies_B2[:, column] for column, name in enumerate(TARGETS)}

    def predict(self, inputs_B5: Tensor) -> Tensor:
        """`forward` on stacked inputs [B, 5]: returns latencies [B, 2] in ms."""
        check_inputs(inputs_B5)
        z_B2 = self.network(self.standardise(inputs_B5))
        return torch.relu(self.target_mean + self.target_scale * z_B2)

    def standardise(self, inputs_B5: Tensor) -> Tensor:
        """Inputs as the network takes them, on its device."""
        return (inputs_B5.to(self.input_mean) - self.input_mean) / self.input_scale

    @torch.no_grad()
    def predict_from_config(self, config: Mapping[str, Values]) -> dict[str, Tensor]:
        """`forward` from plain values: tiers as names or indices, single values broadcast.

        Args:
            config: `vision_tokens`, `text_tokens`, `tier`, `top_k` and `num_active_blocks`, each
                one value or B of them.

        Raises:
            ValueError: a name is missing or unknown, or `forward` refuses a value.
        """
        expected = ("vision_tokens", "text_tokens", "tier", "top_k", "num_active_blocks")
        if set(config) != set(expected):
            missing, unknown = set(expected) - set(config), set(config) - set(expected)
            raise ValueError(
                f"configuration lacks {sorted(missing)} and has unknown {sorted(unknown)}: give "
                f"exactly {', '.join(expected)}"
            )
        columns = [_column(name, config[name]) for name in expected]
        try:
            columns = torch.broadcast_tensors(*columns)
        except RuntimeError:
            lengths = {name: len(column) for name, column in zip(expected, columns, strict=True)}
            raise ValueError(f"configuration's lengths differ: {lengths}") from None
        return self(**dict(zip(INPUTS, columns, strict=True)))

    @torch.no_grad()
    def check_budget_feasibility(
        self,
        *,
        vision_tokens: Tensor,
        text_tokens: Tensor,
        tier_idx: Tensor,
        top_k: Tensor,
        num_active_blocks: Tensor,
        latency_budget: float | Tensor,
        expected_output_tokens: float | Tensor,
    ) -> Tensor:
        """Whether T_prefill_total + T_decode_per_token * expected_output_tokens <= budget, (B,).

        Budget (ms) and expected tokens are one number or (B,) each.
        """
        latencies = self(
            vision_tokens=vision_tokens,
            text_tokens=text_tokens,
            tier_idx=tier_idx,
            top_k=top_k,
            num_active_blocks=num_active_blocks,
        )
        return within_budget(latencies, latency_budget, expected_output_tokens)

    @torch.no_grad()
    def fit_scaling(self, batch: Mapping[str, Tensor]) -> None:
        """Takes the statistics of inputs and targets from records; see `train_step` for `batch`."""
        inputs_B5, targets_B2 = _stack_batch(batch)
        inputs_B5, targets_B2 = inputs_B5.double(), targets_B2.double()
        spread_5 = inputs_B5.std(0, correction=0)
        nominal_5 = torch.tensor(_NOMINAL_INPUTS[1]).to(spread_5)
        mean_2 = targets_B2.mean(0)
        self.input_mean.copy_(inputs_B5.mean(0))
        self.input_scale.copy_(torch.where(spread_5 > 1e-6, spread_5, nominal_5))
        self.target_mean.copy_(mean_2)
        spread_2 = targets_B2.std(0, correction=0)
        self.target_scale.copy_(spread_2.clamp(0.01 * mean_2, mean_2))
        self.is_scaled.fill_(True)

    def save(self, path: Path) -> None:
        """Writes weights, scaling and configuration into one safetensors file, atomically."""
        config = {
            "format_version": FORMAT_VERSION,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
        }
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(save_safetensors(tensors, {"config": json.dumps(config)}))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file of `save`; raises ValueError if it is absent, broken or something else."""
        try:
            with safe_open(path, framework="pt") as file:
                config = json.loads((file.metadata() or {})["config"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if config["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its format version is {config['format_version']}")
            estimator = cls(hidden_dim=config["hidden_dim"], num_layers=config["num_layers"])
            estimator.load_state_dict(tensors)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{path} cannot be read as a latency estimator ({error}): name a file written by "
                "LatencyEstimator.save"
            ) from error
        return estimator


class LatencyEstimatorTrainer:
    """Adam on MSE(prefill) + MSE(decode), both in units of the targets' scale.

    In those units the two weigh the same, regardless of their milliseconds. The loss is taken
    before the heads' ReLU: the measured times are positive, so the optimum is the same, and a
    record that is predicted below zero still has a gradient.
    """

    def __init__(
        self,
        model: LatencyEstimator,
        *,
        device: str | torch.device = "cpu",
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        """Moves the model to the device; `wrap` may distribute its network (DDP)."""
        self.model = model.to(device)
        self.network = wrap(model.network) if wrap else model.network
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=lr, weight_decay=weight_decay, fused=True
        )

    def train_step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One optimizer step.

        Args:
            batch: (B,) tensors under the names of INPUTS and TARGETS. The first batch also fits
                the scaling, unless `fit_scaling` did it before.

        Returns:
            `loss`, `loss_prefill` and `loss_decode`, in squared units of the targets' scale.

        Raises:
            ValueError: a name is missing, or a value is zero, negative, not finite or no tier.
        """
        if not self.model.is_scaled:
            self.model.fit_scaling(batch)
        model = self.model
        inputs_B5, targets_B2 = _stack_batch(batch)
        goal_B2 = (targets_B2.to(model.target_mean) - model.target_mean) / model.target_scale
        z_B2 = self.network(model.standardise(inputs_B5))
        losses_2 = (z_B2 - goal_B2).square().mean(0)
        loss = losses_2.sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        prefill, decode = losses_2.tolist()
        return {"loss": prefill + decode, "loss_prefill": prefill, "loss_decode": decode}


def within_budget(
    latencies: Mapping[str, Tensor],
    latency_budget: float | Tensor,
    expected_output_tokens: float | Tensor,
) -> Tensor:
    """Whether predictions fit a budget; raises ValueError for a budget that is not positive."""
    prefill_B, decode_B = (latencies[name] for name in TARGETS)
    limits = {"latency_budget": latency_budget, "expected_output_tokens": expected_output_tokens}
    for name, value in limits.items():
        value = torch.as_tensor(value)
        if not bool((torch.isfinite(value) & (value > 0)).all()):
            raise ValueError(f"{name} is {value.tolist()}: give positive, finite numbers")
    budget = torch.as_tensor(latency_budget).to(prefill_B)
    tokens = torch.as_tensor(expected_output_tokens).to(prefill_B)
    return prefill_B + decode_B * tokens <= budget


def check_inputs(inputs_B5: Tensor) -> None:
    """Raises ValueError unless all inputs are finite, positive and of a known tier.

    Only the number of vision tokens may be zero, for text alone.
    """
    above, up_to = torch.tensor((_ABOVE, _UP_TO), device=inputs_B5.device)
    is_good_B5 = (inputs_B5 > above) & (inputs_B5 <= up_to) & torch.isfinite(inputs_B5)
    is_good_B5[:, 0] |= inputs_B5[:, 0] == 0
    is_good_B5[:, 2] &= inputs_B5[:, 2] == inputs_B5[:, 2].round()
    if not bool(is_good_B5.all()):
        row, column = (~is_good_B5).nonzero()[0].tolist()
        wanted = {0: "give a finite number of at least 0", 2: "use a tier of 0, 1, 2"}.get(
            column, "give a positive, finite number"
        )
        value = inputs_B5[row, column].item()
        raise ValueError(f"{INPUTS[column]} is {value:g} in row {row}: {wanted}")


def _stack(columns: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(f"batch lacks {', '.join(missing)}: give (B,) tensors under these names")
    shapes = {name: tuple(columns[name].shape) for name in names}
    if len(set(shapes.values())) > 1 or len(shapes[names[0]]) != 1 or shapes[names[0]] == (0,):
        raise ValueError(f"shapes are {shapes}: give (B,) tensors of one length, at least 1")
    return torch.stack([columns[name].to(torch.float32) for name in names], -1)


def _stack_batch(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Checked inputs [B, 5] and targets [B, 2]."""
    stacked_B7 = _stack(batch, (*INPUTS, *TARGETS))
    inputs_B5, targets_B2 = stacked_B7[:, : len(INPUTS)], stacked_B7[:, len(INPUTS) :]
    check_inputs(inputs_B5)
    is_good_B2 = torch.isfinite(targets_B2) & (targets_B2 > 0)
    if not bool(is_good_B2.all()):
        row, column = (~is_good_B2).nonzero()[0].tolist()
        value = targets_B2[row, column].item()
        raise ValueError(
            f"{TARGETS[column]} is {value:g} in row {row}: leave records without a positive, "
            "finite time out, as records.ProfileReader does"
        )
    return inputs_B5, targets_B2


def _column(name: str, values: Values) -> Tensor:
    """Values of a configuration as a 1-D tensor; tiers become indices."""
    if isinstance(values, Tensor):
        return values.reshape(-1) if values.dim() == 0 else values
    listed = [values] if isinstance(values, str | int | float) else list(values)
    try:
        if name == "tier":
            listed = [int(Tier.parse(value)) for value in listed]
        return torch.tensor(listed, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"configuration's {name} is {values!r}: {error}") from None
