"""What stage 2 can know from the latency token, for several starts of the budget token.

    python -m studies.outcomes OUT --split train --num-samples 1152
    python -m studies.latency_token OUT

Area under the curve of a logistic regression, five-fold over the samples that the low tier answers
in full, for two questions: top-k 4 suffices, and 12 blocks suffice. The budget token is that of
untrained budget encoders, the mean embedding of prompts, or both added at equal length. It takes
ten minutes.

Shapes: S samples, K budget tokens, P insertion positions, D d_model.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from envs.spec import POSITIONS, BudgetRange, Knobs, Tier, all_knobs
from envs.tasks import build_tasks
from policy.config import ControllerConfig
from policy.controller import Controller
from rollout.build import WorkerConfig, build_executor
from rollout.group_sharing import MolmoEGroupSession
from studies.image_feature import area

NUM_SEEDS = 3
BUDGETS = BudgetRange(low_ms=30, high_ms=100)
FULL = Knobs(tier=Tier.LOW, position=1, top_k=8, num_blocks=16)
CUTS = {
    "top-k 4 suffices": Knobs(tier=Tier.LOW, position=1, top_k=4, num_blocks=16),
    "12 blocks suffice": Knobs(tier=Tier.LOW, position=1, top_k=8, num_blocks=12),
}


def budget_tokens(language_SD: np.ndarray, image_dim: int) -> dict[str, np.ndarray]:
    """Budget tokens [D] by name."""
    mean_D = language_SD.mean(0)
    found = {"mean prompt": mean_D}
    for seed in range(NUM_SEEDS):
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
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outcomes", type=Path)
    files = sorted(parser.parse_args().outcomes.glob("*.npz"))
    scores_SC = np.concatenate([np.load(path)["scores"] for path in files])
    columns = {str(knobs): column for column, knobs in enumerate(all_knobs())}
    executor, tasks = build_executor(WorkerConfig(device="cpu", dtype="float32")), build_tasks()
    samples = [tasks.sample("train", index) for index in range(len(scores_SC))]
    language_SD = np.stack([executor.language_feature(sample) for sample in samples])
    tokens = budget_tokens(language_SD, executor.image_dim)
    tokens_KD = np.stack(list(tokens.values())).astype(np.float32)
    found = []
    for sample in samples:
        group = MolmoEGroupSession(executor, sample, 1e9)
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


if __name__ == "__main__":
    main()
