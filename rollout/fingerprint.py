"""Fingerprints of everything that answers and latencies depend on, apart from the knobs.

Every checkpoint and profile holds one, so that a controller is not evaluated on a model, tasks or a
kind of device that it was not trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch import nn

from envs.spec import Task
from envs.tasks import Mixture
from rollout.executor import MolmoEExecutor
from rollout.molmoe import Preprocessor


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """A frozen model with its tasks on one kind of device.

    Attributes:
        architecture: hash of the model's configuration.
        weights: hash of the model's weights, in the dtype in which they run.
        dtype: dtype of the model.
        device: kind of device, such as cpu or cuda.
        runtime: how the model decodes: `eager`, or `graphs` on CUDA.
        clock: the clock that latencies are from.
        tasks: names of the tasks in the mixture, in order, with how they score if not by default.
        importance: hash of the block importance scores.
        max_new_tokens: maximum length of an answer, in tokens.
        budget_scope: `total` or `prefill`.
    """

    architecture: str
    weights: str
    dtype: str
    device: str
    runtime: str
    clock: str
    tasks: tuple[str, ...]
    importance: str
    max_new_tokens: int
    budget_scope: str

    @classmethod
    def of(cls, executor: MolmoEExecutor, tasks: Task | None = None) -> Self:
        """The fingerprint of an executor and its tasks, if any; reads every weight once."""
        model, names = executor.model, ()
        if tasks is not None:
            names = tasks.descriptions() if isinstance(tasks, Mixture) else (type(tasks).__name__,)
        return cls(
            architecture=architecture_fingerprint(executor),
            weights=weights_fingerprint(model),
            dtype=str(model.dtype).removeprefix("torch."),
            device=model.device.type,
            runtime=executor.runtime.name,
            clock=executor.clock_name,
            tasks=names,
            importance=importance_fingerprint(executor),
            max_new_tokens=executor.config.max_new_tokens,
            budget_scope="prefill" if executor.config.prefill_only else "total",
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_json` wrote; raises ValueError if a field is missing or unknown."""
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            wrong = ", ".join(sorted(names ^ set(data)))
            raise ValueError(
                f"fingerprint with missing or unknown fields ({wrong}): made by another version"
            )
        return cls(**{**data, "tasks": tuple(data["tasks"])})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "tasks": list(self.tasks)}

    def differences(self, other: Fingerprint) -> str:
        """The fields that differ, as `name: ours / theirs`; empty if none does."""
        mine, theirs = self.to_json(), other.to_json()
        return "; ".join(
            f"{name}: {_text(mine[name])} / {_text(theirs[name])}"
            for name in mine
            if mine[name] != theirs[name]
        )

    def check_same(self, other: Fingerprint, mine: str, theirs: str, cure: str) -> None:
        """Raises ValueError naming both sides and every field that differs."""
        found = self.differences(other)
        if found:
            raise ValueError(f"{mine} and {theirs} do not belong together ({found}): {cure}")


def architecture_fingerprint(executor: MolmoEExecutor) -> str:
    """Hash of the model's configuration, and of how images are cut if not as published."""
    facts = executor.model.config.to_dict()
    if type(executor.preprocessor) is not Preprocessor:
        facts = {**facts, "preprocessor": type(executor.preprocessor).__name__}
    return _short(json.dumps(facts, sort_keys=True).encode())


def importance_fingerprint(executor: MolmoEExecutor) -> str:
    """Hash of all block importance scores, those of single tasks included."""
    by_task = {task: list(s.scores) for task, s in executor.importance_by_task.items()}
    scores = [list(executor.importance.scores), by_task]
    return _short(json.dumps(scores, sort_keys=True).encode())


def weights_fingerprint(model: nn.Module) -> str:
    """Hash of the names, the shapes, and the sums of the bit patterns of all rows of all weights.

    It is computed on the model's device and only the sums are copied to the host, which takes
    seconds for billions of weights; hashing all bytes would take minutes.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name}\0{weight.dtype}\0{tuple(weight.shape)}\0".encode())
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
        rows = weight.detach().contiguous().view(integers).reshape(-1, weight.shape[-1])
        digest.update(rows.sum(-1, dtype=torch.int64).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
