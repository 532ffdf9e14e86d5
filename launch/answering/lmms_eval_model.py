"""This project's model in lmms-eval, the evaluation harness of EvolvingLMMs-Lab.

The harness is not a dependency. It needs an environment of its own, without constraints.txt:

    pip install -e . 'lmms-eval>=0.7.3' 'filelock<4.3'
    python -m lmms_eval --model latency_budget_molmoe --batch_size 1 --tasks docvqa_val \\
        --model_args run=runs/one,budget_ms=60,answers=docvqa.jsonl

Version 0.7.3 imports a module that filelock 4.3 no longer has. The harness finds the model by the
entry point `lmms_eval.models`. Questions are asked in Molmo's styles (see `lmms_eval_prompts`);
those of a task that Molmo has no style for are asked in the harness' words. Of several images the
model sees the first one. Decoding is greedy, and an answer's length is limited as in the
controller's run, regardless of the task's generation arguments.

`launch.answering.lmms_eval_chat` holds the model's class; only the harness imports it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.budgets import check_budget_ms
from envs.checks import did_you_mean

if TYPE_CHECKING:  # The harness lists its models without loading PyTorch.
    from launch.answering.answerer import Answer

MODEL_ID = "latency_budget_molmoe"
"""The harness' name of the model."""


def manifest() -> Any:
    """What the harness registers: the name of the model and where its class is."""
    from lmms_eval.models.registry_v2 import (  # pyright: ignore[reportMissingImports]
        ModelManifest,
    )

    return ModelManifest(
        model_id=MODEL_ID, chat_class_path="launch.answering.lmms_eval_chat.LatencyBudgetMolmoE"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArguments:
    """What `--model_args` may hold.

    Attributes:
        budget_ms: latency budget of every answer in ms.
        run: a run folder or the folder of a checkpoint; without one a fixed configuration runs.
        device: cpu, cuda or auto; that of the run by default.
        dtype: float32, bfloat16 or auto; that of the run by default.
        answers: JSON-lines file to write, with one answer per line, its choices and its latency.
    """

    budget_ms: float
    run: str | None = None
    device: str | None = None
    dtype: str | None = None
    answers: Path | None = None

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> ModelArguments:
        """From the values that the harness has parsed, its own `batch_size` among them.

        Raises:
            ValueError: an argument is unknown or unusable, or the budget is missing.
        """
        stated = {name: value for name, value in given.items() if value is not None}
        stated.pop("max_batch_size", None)
        batch_size = stated.pop("batch_size", 1)
        if str(batch_size) != "1":
            raise ValueError(f"batch_size {batch_size}: latencies are those of one answer, use 1")
        known = [field.name for field in fields(cls)]
        unknown = sorted(stated.keys() - set(known))
        if unknown:
            raise ValueError(
                f"unknown model argument {', '.join(unknown)}: use {', '.join(known)}"
                f"{did_you_mean(unknown[0], known)}"
            )
        if "budget_ms" not in stated:
            raise ValueError("no budget: give --model_args budget_ms=60, in milliseconds")
        budget_ms = stated.pop("budget_ms")
        if isinstance(budget_ms, bool) or not isinstance(budget_ms, int | float):
            raise ValueError(f"budget_ms {budget_ms!r} is not a number of milliseconds")
        if "run" in stated:
            stated["run"] = str(stated["run"])
        if "answers" in stated:
            stated["answers"] = Path(str(stated["answers"]))
        return cls(budget_ms=check_budget_ms(budget_ms), **stated)

    def worker_settings(self) -> dict[str, str]:
        """The settings of the frozen model that were stated."""
        stated = {"device": self.device, "dtype": self.dtype}
        return {name: value for name, value in stated.items() if value is not None}


class AnswerFile:
    """A JSON-lines file, written line by line as answers come.

    Args:
        path: the file; it must not exist.

    Raises:
        ValueError: there is such a file, or it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("x", encoding="utf-8")
        except FileExistsError:
            raise ValueError(f"{path} exists: name a new file, or remove this one") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be written ({error}): name another file") from None

    def write(self, request: Mapping[str, Any], answer: Answer) -> None:
        """Adds the facts of a request and its answer, as `Answer.to_json` gives it."""
        line = json.dumps({**request, **answer.to_json()}, ensure_ascii=False)
        self._file.write(line + "\n")
        self._file.flush()


def latency_metrics(answers: Sequence[Answer]) -> dict[str, float]:
    """Latencies and violations of one answer or more; the harness prints them as averages.

    `over_budget` is the share of all answers that took longer than their budget. A budget that no
    configuration meets counts too, unlike in this project's own evaluation.
    """
    latencies_ms = np.array([answer.latency_ms for answer in answers])
    return {
        "num_requests": len(answers),
        "latency_ms": float(latencies_ms.mean()),
        "latency_p95_ms": float(np.quantile(latencies_ms, 0.95)),
        "over_budget": float(np.mean([not answer.within_budget for answer in answers])),
    }
