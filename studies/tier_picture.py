"""A picture of the tiers that a trained controller chooses for small and large objects.

    python -m studies.tier_picture runs/RUN docs/tiers.png --budget-ms 60

Of the first test images with handwritten digits, the three with the smallest and the three with the
largest digits are shown, and the shares of the tiers are printed for all of them. No image is
chosen by its outcome.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from benchmarks.options import needed, read_options
from envs.spec import TIERS, Sample
from envs.tasks.registry import build_tasks
from launch.cluster.console import one_clear_error
from launch.run.resume import load_checkpoint, worker_of
from policy.controller import Controller
from rollout.build import build_executor
from rollout.executor import MolmoEExecutor
from rollout.group_sharing import MolmoEGroupSession
from studies.small_run import small_run

KIND = "digits"
NUM_EACH = 3

SMALL_PX = 13
"""Size below which the low tier loses digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierPictureConfig:
    """One picture.

    Attributes:
        quick: a run of one step, and a picture in a temporary folder.
        run: folder of a training run.
        out: file of the picture.
        budget_ms: the budget.
        num_samples: number of test samples that are examined.
    """

    quick: bool = False
    run: Annotated[Path | None, tyro.conf.Positional] = None
    out: Annotated[Path | None, tyro.conf.Positional] = None
    budget_ms: float = 60.0
    num_samples: int = 300


QUICK = TierPictureConfig(quick=True, num_samples=60)


def by_size(num_samples: int) -> list[Sample]:
    """Test samples of the kind, from small to large objects."""
    tasks = build_tasks()
    samples = [tasks.sample("test", index) for index in range(num_samples)]
    return sorted((s for s in samples if s.task == KIND), key=lambda s: s.metadata["size_px"])


@torch.no_grad()
def chosen_tier(
    executor: MolmoEExecutor, controller: Controller, sample: Sample, budget_ms: float
) -> str:
    """The most likely tier."""
    sees_image = controller.config.sees_image
    features, _ = MolmoEGroupSession(executor, sample, sees_image=sees_image).features()
    tier_logits, *_ = controller.stage1_logits(
        torch.from_numpy(features.language)[None],
        controller.budget_tokens(torch.tensor([budget_ms])),
        torch.from_numpy(features.image)[None] if sees_image else None,
    )
    return TIERS[int(tier_logits.argmax())].name.lower()


def main() -> int:
    """Chooses the tiers, prints their shares, and draws the picture."""
    options = read_options(QUICK, __doc__)
    with tempfile.TemporaryDirectory() as name:
        run, out = options.run, options.out
        if options.quick:
            run, out = run or small_run(Path(name)), out or Path(name) / "tiers.png"
        run = needed(run, "RUN, the folder of a training run,")
        out = needed(out, "OUT, the file of the picture,")
        checkpoint = load_checkpoint(run)
        executor = build_executor(worker_of(checkpoint))
        samples, budget_ms = by_size(options.num_samples), options.budget_ms
        tiers = [chosen_tier(executor, checkpoint.controller, s, budget_ms) for s in samples]
        print_shares(samples, tiers)
        figure = picture(samples, tiers)
        figure.suptitle(f"image tier chosen for a budget of {budget_ms:g} ms")
        figure.savefig(out, dpi=80)
    return 0


def print_shares(samples: Sequence[Sample], tiers: Sequence[str]) -> None:
    """The shares of the tiers among small and among larger digits."""
    small = [sample.metadata["size_px"] < SMALL_PX for sample in samples]
    for words, want in ((f"below {SMALL_PX} px", True), ("larger", False)):
        chosen = [tier for tier, is_small in zip(tiers, small, strict=True) if is_small == want]
        shares = ", ".join(f"{t} {chosen.count(t) / len(chosen):.0%}" for t in sorted(set(chosen)))
        print(f"{len(chosen)} images with digits {words}: {shares}")


def picture(samples: Sequence[Sample], tiers: Sequence[str]) -> Figure:
    """The first and the last images with their tiers."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    pairs = list(zip(samples, tiers, strict=True))
    shown = [*pairs[:NUM_EACH], *pairs[-NUM_EACH:]]
    for axes, (sample, tier) in zip(figure.subplots(2, NUM_EACH).flat, shown, strict=True):
        assert sample.image is not None
        axes.imshow(np.asarray(sample.image))
        axes.set_title(f"{tier} tier, digits of about {sample.metadata['size_px']} px", fontsize=11)
        axes.set_xlabel(sample.prompt.rpartition(":")[2].strip(), fontsize=9, wrap=True)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
