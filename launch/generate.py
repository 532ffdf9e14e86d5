"""Answers one question about one image within a latency budget.

python launch/generate.py --image PICTURE --prompt TEXT --budget-ms MS [--controller FOLDER]
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder would come first, and its profile.py shadow the standard library's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import functools
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image, UnidentifiedImageError
from rich.console import Console

from envs.reward import BudgetReward
from envs.spec import BudgetRange, BudgetSampler, Knobs, Sample, Tier, check_budget_ms
from launch.console import one_clear_error
from policy.controller import Controller
from rollout.build import WorkerConfig, build_executor
from rollout.episodes import EpisodeGroup
from rollout.executor import MolmoEExecutor
from rollout.group import GroupRunner

DEFAULT_KNOBS = Knobs(tier=Tier.MEDIUM, position=1, top_k=6, num_blocks=14)
"""What runs without a trained controller, whatever the budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """One question.

    Attributes:
        prompt: the question, with its task's style in front if it has one.
        budget_ms: latency budget in ms.
        image: picture file; none asks about no image.
        controller: folder of a trained controller (a checkpoint's folder); without it the default
            configuration runs.
        json: prints one JSON object instead of text.
        worker: the frozen model.
    """

    prompt: str
    budget_ms: float
    image: Path | None = None
    controller: Path | None = None
    json: bool = False
    worker: WorkerConfig = field(default_factory=WorkerConfig)


class AnyAnswer:
    """A question without a reference: every answer scores 0."""

    def sample(self, split: str, index: int) -> Sample:
        """Never drawn from."""
        raise ValueError("a single question has no data set")

    def score(self, sample: Sample, answer: str) -> float:
        """0, as nobody knows the answer."""
        return 0.0


def open_image(path: Path | None) -> Image.Image | None:
    """Opens a picture; raises ValueError that names the file if it cannot."""
    if path is None:
        return None
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: give a picture file") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is no picture that can be read ({error})") from None


def answer(config: GenerateConfig) -> dict[str, Any]:
    """Runs the question twice, the first time to warm up, and describes the second run."""
    budget_ms = check_budget_ms(config.budget_ms)
    sample = Sample(
        id=str(config.image or "question"),
        task="question",
        image=open_image(config.image),
        prompt=config.prompt,
        answers=(),
    )
    executor = build_executor(config.worker)
    if config.controller is None:
        run = functools.partial(_default_configuration, executor, sample, budget_ms)
        source = f"default configuration {DEFAULT_KNOBS} (no controller given)"
    else:
        controller = Controller.load(config.controller).requires_grad_(False)
        controller.to(executor.model.device)
        run = functools.partial(_with_controller, executor, controller, sample, budget_ms)
        source = f"controller {config.controller}"
    run()
    outcome = run()
    return {
        "answer": outcome["answer"],
        "choices": {
            "tier": outcome["knobs"].tier.name.lower(),
            "position": outcome["knobs"].position,
            "top_k": outcome["knobs"].top_k,
            "num_blocks": outcome["knobs"].num_blocks,
        },
        "decided_by": source,
        "stages_ms": {name: round(ms, 3) for name, ms in grouped(outcome["stages_ms"]).items()},
        "host_ms": round(outcome["host_ms"], 3),
        "latency_ms": round(outcome["latency_ms"], 3),
        "budget_ms": budget_ms,
        "within_budget": outcome["latency_ms"] <= budget_ms,
        "finished": outcome["finished"],
    }


def _default_configuration(
    executor: MolmoEExecutor, sample: Sample, budget_ms: float
) -> dict[str, Any]:
    group = EpisodeGroup(executor, sample, budget_ms)
    group.begin(
        [(DEFAULT_KNOBS.tier, DEFAULT_KNOBS.position)], np.zeros(executor.d_model, np.float32)
    )
    (execution,) = group.finish([(DEFAULT_KNOBS.top_k, DEFAULT_KNOBS.num_blocks)])
    assert execution is not None
    return {name: getattr(execution, name) for name in execution.__slots__}


def _with_controller(
    executor: MolmoEExecutor, controller: Controller, sample: Sample, budget_ms: float
) -> dict[str, Any]:
    own: BudgetRange = controller.config.budget_range
    arguments = {
        "tasks": AnyAnswer(),
        "budgets": BudgetSampler(range=own, feasible_from_ms=own.low_ms, infeasible_share=0.0),
        "reward": BudgetReward(),
    }
    with torch.no_grad():
        return GroupRunner(executor, controller, arguments).run(sample, budget_ms).outcomes[0]


def grouped(stages_ms: dict[str, float]) -> dict[str, float]:
    """Blocks and decode steps added up, in the order in which they run."""
    order = ("stage1", "vision_encoder", "projector", "embed", "budget_token", "stage2")
    totals: dict[str, float] = dict.fromkeys((*order, "blocks", "head", "decode"), 0.0)
    for name, elapsed_ms in stages_ms.items():
        kind = {"block": "blocks", "decode": "decode"}.get(name.rpartition("_")[0], name)
        totals[kind] = totals.get(kind, 0.0) + elapsed_ms
    return totals


def main() -> int:
    """Prints the answer, what was chosen and what it took."""
    config = tyro.cli(GenerateConfig, prog="generate.py", description=__doc__)
    result = answer(config)
    if config.json:
        print(json.dumps(result))
        return 0
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"answer        {result['answer']}", markup=False)
    choices = "  ".join(f"{name} {value}" for name, value in result["choices"].items())
    console.print(f"choices       {choices}")
    console.print(f"decided by    {result['decided_by']}", markup=False)
    for name, elapsed_ms in result["stages_ms"].items():
        console.print(f"{name:<16}{elapsed_ms:9.2f} ms")
    verdict = "within" if result["within_budget"] else "OVER"
    console.print(
        f"{'latency':<16}{result['latency_ms']:9.2f} ms, {verdict} the budget of "
        f"{result['budget_ms']:g} ms (host work beside it: {result['host_ms']:.2f} ms)"
    )
    if not result["finished"]:
        console.print("the answer was cut at the token limit")
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
