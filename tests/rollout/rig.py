"""A whole system in small: a random model of 16 blocks with all knobs, and tasks for it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs.budgets import BudgetSampler
from envs.calibration import SteadyTime
from envs.reward import BudgetReward
from envs.spec import Sample
from envs.terms import Terms
from policy.config import ControllerConfig
from policy.controller import Controller
from rollout.block_skipping import BlockImportance
from rollout.executor import MolmoEExecutor
from rollout.executor_config import ExecutorConfig
from rollout.image_feature import image_dim
from rollout.molmoe import Preprocessor, save_model
from rollout.run_group import FinishedGroup, run_group
from tests.rollout.molmoe.tiny import TINY, random_model

SIXTEEN = replace(TINY, n_layers=16, num_experts=16, top_k=8)
BUDGETS = BudgetSampler.between(10, 100, share_below=0.1)


def tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<|endoftext|>", "<|padding|>", "<im_start>", "<im_end>", "<im_patch>", "<im_col>"]
    words = ["User", ":", "Assistant", "what", "is", "it", "?", "which", "word"]
    vocabulary = {word: index for index, word in enumerate([*specials, *words])}
    vocabulary |= {f"w{index}": index for index in range(len(vocabulary), 64)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def executor(**config: Any) -> MolmoEExecutor:
    scores = [float((7 * index) % 16) for index in range(16)]
    return MolmoEExecutor(
        random_model(SIXTEEN),
        Preprocessor(SIXTEEN, tokenizer()),
        BlockImportance(scores=tuple(scores)),
        ExecutorConfig(**{"max_new_tokens": 4, **config}),
    )


def controller(seed: int = 0) -> Controller:
    torch.manual_seed(seed)
    return Controller(
        ControllerConfig(
            d_model=SIXTEEN.d_model,
            image_dim=image_dim(SIXTEEN),
            budget_low_ms=BUDGETS.range.low_ms,
            budget_high_ms=BUDGETS.range.high_ms,
        )
    )


class NoiseTask:
    """Random images; the score is a known function of the answer."""

    name = "noise"

    def sample(self, split: str, index: int) -> Sample:
        rng = np.random.default_rng(index)
        height, width = rng.integers(40, 120, 2)
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        words = " ".join(rng.choice(["what", "is", "it", "which", "word"], 4))
        return Sample(
            id=f"{self.name}/{split}/{index}",
            task=self.name,
            image=Image.fromarray(pixels),
            prompt=words,
            answers=("w20",),
        )

    def score(self, sample: Sample, answer: str) -> float:
        return (sum(map(ord, answer)) % 7) / 6


def env_arguments() -> dict[str, Any]:
    return {"tasks": NoiseTask(), "budgets": BUDGETS, "reward": BudgetReward()}


@dataclass
class Runner:
    """An executor and a controller on a steady device."""

    executor: MolmoEExecutor
    controller: Controller

    def run(
        self, sample: Sample, budget_ms: float, members: Any = (None,), price: float = 0.0
    ) -> FinishedGroup:
        terms = Terms(budget_ms=budget_ms, price=price)
        return run_group(self.executor, self.controller, SteadyTime(), sample, terms, members)


def runner(**config: Any) -> Runner:
    return Runner(executor(**config), controller())


def write_model_folder(folder: Any) -> None:
    """The random model with everything that `from_pretrained` and the executor need."""
    import json
    from pathlib import Path

    folder = Path(folder)
    save_model(random_model(SIXTEEN), folder)
    tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    scores = {str(index): float((7 * index) % 16) for index in range(16)}
    (folder / "importance_scores.json").write_text(json.dumps(scores))
