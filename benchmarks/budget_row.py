"""What a controller adds to an answer: the budget token's row of the prefill, and its own stages.

    python -m benchmarks.budget_row

The row: blocks before the insertion position with the budget token over the same without it, each
pair in both orders, because what runs second finds more in the caches. The stages: whole episodes
of a controller that always chooses the low tier and one position, with what the row adds to each.
One thread, thread time, medians with quartiles.

Shapes: N pairs, P insertion positions.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.options import read_options
from envs.checks import check_within
from launch.cluster.console import check_first, one_clear_error


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRowConfig:
    """One measurement.

    Attributes:
        quick: tiny sizes, to see within a minute that it runs.
        samples: number of samples with an image.
        rounds: number of pairs and of episodes of each sample.
    """

    quick: bool = False
    samples: int = 12
    rounds: int = 20

    def __post_init__(self) -> None:
        check_within(self, "samples", "rounds", low=1)


QUICK = BudgetRowConfig(quick=True, samples=1, rounds=2)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

from collections.abc import Sequence

import numpy as np
import torch

from envs.calibration import SteadyTime
from envs.spec import POSITIONS, TIERS, Sample, Tier
from envs.terms import Terms
from launch.cluster.progress import counted
from policy.config import ControllerConfig
from policy.controller import Controller
from rollout.build import build_worker
from rollout.executor import MolmoEExecutor
from rollout.run_group import run_group
from rollout.worker_config import WorkerConfig

STAGES = ("image_feature", "language_feature", "stage1", "stage2")
BUDGETS_MS = (30.0, 110.0)
MEASURED_POSITIONS = (POSITIONS[0], POSITIONS[-1])


def spread(values: np.ndarray, digits: int = 3) -> str:
    """The median with quartiles."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.{digits}f} [{low:.{digits}f} {high:.{digits}f}]"


def blocks_ms(executor: MolmoEExecutor, sample: Sample, tier: Tier, turn: int) -> np.ndarray:
    """Time of the blocks before each position, with and without a budget token: [2, P].

    It is the mean of a run in this order and one in the other.
    """
    token_D = np.random.default_rng(turn).normal(size=executor.d_model).astype(np.float32)
    total_2P, deepest = np.zeros((2, len(POSITIONS))), POSITIONS[-1]
    for order in ((0, 1), (1, 0)):
        prefix = executor.begin(sample, tier, token_D)
        pair = (prefix, executor.restart(prefix))
        for place in order:
            executor.deepen(pair[place], deepest)
            times_ms = [pair[place].stages[f"block_{i:02}"].ms for i in range(deepest)]
            total_2P[place] += np.cumsum(times_ms)
    return total_2P / 2


def section_row(executor: MolmoEExecutor, samples: Sequence[Sample], rounds: int) -> np.ndarray:
    """Prints ratios by tier and position; returns what the row adds at the low tier, [N, P] ms."""
    added_ms = {}
    for tier in TIERS:
        turns = counted(range(rounds), f"rounds at the {tier.name.lower()} tier")
        pairs = [blocks_ms(executor, s, tier, turn) for turn in turns for s in samples]
        with_NP, without_NP = np.array(pairs).swapaxes(0, 1)
        added_ms[tier] = with_NP - without_NP
        for place, position in enumerate(POSITIONS):
            print(
                f"{tier.name.lower():7} position {position}: blocks with the row over without "
                f"{spread(with_NP[:, place] / without_NP[:, place])}, "
                f"{spread(without_NP[:, place], 2)} ms without, "
                f"{spread(added_ms[tier][:, place])} ms added"
            )
    return added_ms[Tier.LOW]


def deciding(executor: MolmoEExecutor, position: int) -> Controller:
    """An untrained controller that always chooses the low tier and this position."""
    torch.manual_seed(0)
    low_ms, high_ms = BUDGETS_MS
    controller = Controller(
        ControllerConfig(
            d_model=executor.d_model,
            image_dim=executor.image_dim,
            budget_low_ms=low_ms,
            budget_high_ms=high_ms,
            price_low=0.01,
            price_high=2.0,
        )
    ).requires_grad_(False)
    tier_logits, position_logits = controller.stage1.heads.bias.split([len(TIERS), len(POSITIONS)])
    tier_logits[0] = position_logits[POSITIONS.index(position)] = 100.0
    return controller


def section_stages(
    executor: MolmoEExecutor, samples: Sequence[Sample], rounds: int, row_ms_NP: np.ndarray
) -> None:
    """The controller's stages in whole episodes, in turns, and with the row's median added."""
    controllers = {position: deciding(executor, position) for position in MEASURED_POSITIONS}
    runs: dict[int, list[list[float]]] = {position: [] for position in controllers}
    for turn in counted(range(rounds), "rounds of whole episodes"):
        terms = Terms(budget_ms=float(np.random.default_rng(turn).uniform(*BUDGETS_MS)), price=0.1)
        for sample in samples:
            for position, controller in controllers.items():
                done = run_group(executor, controller, SteadyTime(), sample, terms, (None,))
                (outcome,) = done.outcomes
                assert outcome.execution.knobs.position == position
                runs[position].append([outcome.stages_ms[name] for name in STAGES])
    for position, stages in runs.items():
        stages_ms = np.array(stages)
        row_ms = float(np.median(row_ms_NP[:, POSITIONS.index(position)]))
        parts = [f"{n} {spread(ms)}" for n, ms in zip(STAGES, stages_ms.T, strict=True)]
        print(f"position {position}, ms: {', '.join(parts)}")
        print(
            f"position {position}, ms: stages of the controller {spread(stages_ms.sum(1))}, "
            f"with the row {spread(stages_ms.sum(1) + row_ms)}"
        )


def main() -> int:
    """Runs both sections."""
    options = read_options(QUICK, __doc__)
    torch.set_num_threads(1)
    worker = build_worker(WorkerConfig(device="cpu", dtype="float32"))
    worker.warm_up(rounds=0 if options.quick else 2)
    everything = (
        worker.tasks.sample("validation", index) for index in range(100 * options.samples)
    )
    with_image = (sample for sample in everything if sample.image is not None)
    samples = [sample for sample, _ in zip(with_image, range(options.samples), strict=False)]
    row_ms_NP = section_row(worker.executor, samples, options.rounds)
    section_stages(worker.executor, samples, options.rounds, row_ms_NP)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
