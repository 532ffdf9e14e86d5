"""What stage 2 can learn from the latency token, for several starts of the budget token.

    python -m studies.outcomes OUT --split train --num-samples 1152
    python -m studies.latency_token OUT

Area under the curve of a logistic regression, five-fold over the samples that the low tier answers
in full, for two questions: top-k 4 suffices, and 12 blocks suffice. The budget token is that of
untrained budget encoders, the mean embedding of prompts, or both added at equal length. It takes
ten minutes. `--quick` takes samples of the shipped profile.

Shapes: S samples, K budget tokens, P insertion positions, D d_model.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from benchmarks.options import needed, read_options
from envs.budgets import BudgetRange
from envs.spec import POSITIONS, Knobs, Tier, all_knobs
from launch.cluster.console import one_clear_error
from policy.config import ControllerConfig
from policy.controller import Controller
from rollout.build import build_executor
from rollout.group_sharing import MolmoEGroupSession
from rollout.worker_config import WorkerConfig
from studies.image_feature import area
from studies.known_outcomes import Outcomes

BUDGETS = BudgetRange(low_ms=30, high_ms=100)
FULL = Knobs(tier=Tier.LOW, position=1, top_k=8, num_blocks=16)
CUTS = {
    "top-k 4 suffices": Knobs(tier=Tier.LOW, position=1, top_k=4, num_blocks=16),
    "12 blocks suffice": Knobs(tier=Tier.LOW, position=1, top_k=8, num_blocks=12),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTokenConfig:
    """One study.

    Attributes:
        quick: one start of the budget token, on samples of the shipped profile.
        outcomes: folder of studies.outcomes, of the training split.
        num_seeds: number of untrained budget encoders.
    """

    quick: bool = False
    outcomes: Annotated[Path | None, tyro.conf.Positional] = None
    num_seeds: int = 3


NUM_QUICK = 60

QUICK = LatencyTokenConfig(quick=True, num_seeds=0)


def budget_tokens(language_SD: np.ndarray, image_dim: int, num_seeds: int) -> dict[str, np.ndarray]:
    """Budget tokens [D] by name."""
    mean_D = language_SD.mean(0)
    found = {"mean prompt": mean_D}
    for seed in range(num_seeds):
        torch.manual_seed(seed)
        config = ControllerConfig(
            d_model=len(mean_D),
            image_dim=image_dim,
            budget_low_ms=BUDGETS.low_ms,
            budget_high_ms=BUDGETS.high_ms,
        )
        encoder = Controller(config)
        token_D = encoder.budget_tokens(torch.tensor([60.0]))[0].numpy()
        length = np.linalg.norm(mean_D) / np.linalg.norm(token_D)
        found[f"untrained {seed}"] = token_D
        found[f"mean prompt and untrained {seed}"] = mean_D + length * token_D
    return found


@torch.no_grad()
def main() -> int:
    """Prints the areas, for the prompt and every start, at all positions."""
    options = read_options(QUICK, __doc__)
    if options.quick and options.outcomes is None:
        outcomes = Outcomes.shipped(range(NUM_QUICK))
    else:
        folder = needed(options.outcomes, "OUTCOMES, a folder of studies.outcomes,")
        outcomes = Outcomes.load(folder, "train")
    columns = {str(knobs): column for column, knobs in enumerate(all_knobs())}
    executor = build_executor(WorkerConfig(device="cpu", dtype="float32"))
    samples, scores_SC = outcomes.samples(), outcomes.scores_SC
    language_SD = np.stack([executor.features(sample, None)[0].language for sample in samples])
    tokens = budget_tokens(language_SD, executor.image_dim, options.num_seeds)
    tokens_KD = np.stack(list(tokens.values())).astype(np.float32)
    found = []
    for sample in samples:
        group = MolmoEGroupSession(executor, sample)
        group.begin([(Tier.LOW, max(POSITIONS))], None)
        found.append(executor.latency_tokens(group.prefixes[Tier.LOW], tokens_KD))
    latency_SKPD = np.stack(found)
    answered = scores_SC[:, columns[str(FULL)]] > 0
    for question, knobs in CUTS.items():
        labels = (scores_SC[answered, columns[str(knobs)]] > 0).astype(int)
        print(f"{question}: {labels.mean():.0%} of {len(labels)} samples")
        print(f"  {'prompt':28}{area(language_SD[answered], labels):.3f}")
        for number, name in enumerate(tokens):
            areas = [area(latency_SKPD[answered, number, p], labels) for p in range(len(POSITIONS))]
            print(f"  {name:28}{'  '.join(f'{value:.3f}' for value in areas)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
