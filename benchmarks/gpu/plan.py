"""How large the acceptance run is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from benchmarks.random_model import MINIATURE
from rollout.molmoe import MolmoEConfig, VisionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """Limits that the figures are compared with; those of an H100.

    Attributes:
        decode_ms: a token at k = 8 through 16 blocks.
        top_k_ratio: a token at k = 4 over one at k = 8.
        prefill_ms: the high tier's prefill, vision included.
        hooks_percent: what the hooks add.
        variation_percent: coefficient of variation of repeats.
    """

    decode_ms: float = 2.0
    top_k_ratio: float = 0.75
    prefill_ms: float = 40.0
    hooks_percent: float = 2.0
    variation_percent: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes and numbers of repeats.

    Attributes:
        config: geometry of the model that is measured.
        small: geometry of the model whose bfloat16 is compared with float32 on the CPU.
        dtype: dtype of the measured model.
        device: device of the measured model.
        image_size: height and width in pixels of the images.
        max_new_tokens: length of an answer.
        rounds: number of rounds of an interleaved comparison.
        eager_rounds: the same if each round takes long.
        repeats: number of repeats for the coefficient of variation.
        groups: number of group rollouts with their vector-Jacobian product.
        group_size: number of members of a group.
        compared_tokens: number of tokens that the other implementations decode in a round.
        limit_s: seconds after which no further section begins.
        goals: limits to compare with; None compares with none.
    """

    config: MolmoEConfig
    small: MolmoEConfig
    dtype: torch.dtype
    device: torch.device
    image_size: tuple[int, int]
    max_new_tokens: int
    rounds: int
    eager_rounds: int
    repeats: int
    groups: int
    group_size: int
    compared_tokens: int
    limit_s: float
    goals: Goals | None

    @classmethod
    def published(cls, device: torch.device) -> Self:
        """MolmoE-1B-0924's geometry in bfloat16, within eight minutes on an H100."""
        config = MolmoEConfig()
        return cls(
            config=config,
            small=replace(
                config,
                embedding_size=4096,
                d_model=512,
                n_heads=8,
                expert_hidden=256,
                eos_token_id=4000,
                vision=VisionConfig(num_layers=10),
            ),
            dtype=torch.bfloat16,
            device=device,
            image_size=(700, 940),
            max_new_tokens=64,
            rounds=10,
            eager_rounds=3,
            repeats=50,
            groups=20,
            group_size=8,
            compared_tokens=16,
            limit_s=420.0,
            goals=Goals(),
        )

    @classmethod
    def miniature(cls, device: torch.device) -> Self:
        """The same run in seconds, on any device; its times are meaningless."""
        return cls(
            config=MINIATURE,
            small=MINIATURE,
            dtype=torch.bfloat16,
            device=device,
            image_size=(90, 120),
            max_new_tokens=6,
            rounds=1,
            eager_rounds=1,
            repeats=2,
            groups=1,
            group_size=3,
            compared_tokens=2,
            limit_s=120.0,
            goals=None,
        )
