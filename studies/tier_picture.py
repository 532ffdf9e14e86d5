"""A picture of the tiers that a trained controller chooses for small and large objects.

    python -m studies.tier_picture runs/RUN docs/tiers.png --budget-ms 60

Of the first test images with handwritten digits, the three with the smallest and the three with the
largest digits are shown, and the shares of the tiers are printed for all of them. Nothing is chosen
by its outcome.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from envs.spec import TIERS, Sample
from envs.tasks.registry import build_tasks
from launch.run.resume import load_checkpoint, worker_of
from policy.controller import Controller
from rollout.build import build_executor
from rollout.executor import MolmoEExecutor
from rollout.group_sharing import MolmoEGroupSession

KIND = "digits"
NUM_EACH = 3

SMALL_PX = 13
"""Size below which the low tier loses digits."""


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
    features = MolmoEGroupSession(executor, sample, budget_ms, sees_image=sees_image).features()
    executor.timeline.take()
    logits = controller.stage1_logits(
        torch.from_numpy(features.language)[None],
        controller.budget_tokens(torch.tensor([budget_ms])),
        torch.from_numpy(features.image)[None] if sees_image else None,
    )
    return TIERS[int(logits.tier_B3.argmax())].name.lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget-ms", type=float, default=60.0)
    parser.add_argument("--num-samples", type=int, default=300)
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.run)
    executor = build_executor(worker_of(checkpoint))
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    figure.suptitle(f"image tier chosen for a budget of {options.budget_ms:g} ms")
    samples = by_size(options.num_samples)
    tiers = [chosen_tier(executor, checkpoint.controller, s, options.budget_ms) for s in samples]
    small = [s.metadata["size_px"] < SMALL_PX for s in samples]
    for words, want in ((f"below {SMALL_PX} px", True), ("larger", False)):
        chosen = [tier for tier, is_small in zip(tiers, small, strict=True) if is_small == want]
        shares = ", ".join(f"{t} {chosen.count(t) / len(chosen):.0%}" for t in sorted(set(chosen)))
        print(f"{len(chosen)} images with digits {words}: {shares}")
    pairs = list(zip(samples, tiers, strict=True))
    shown = [*pairs[:NUM_EACH], *pairs[-NUM_EACH:]]
    for axes, (sample, tier) in zip(figure.subplots(2, NUM_EACH).flat, shown, strict=True):
        assert sample.image is not None
        axes.imshow(sample.image)
        axes.set_title(f"{tier} tier, digits of about {sample.metadata['size_px']} px", fontsize=11)
        axes.set_xlabel(sample.prompt.rpartition(":")[2].strip(), fontsize=9, wrap=True)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(options.out, dpi=80)


if __name__ == "__main__":
    main()
