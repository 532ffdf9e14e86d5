"""What a run left in its folder, read piece by piece: a missing one leaves the others usable."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from launch.analysis.greedy_sweep import STAGES, GreedySweep
from launch.analysis.outcomes import Outcome, outcome
from launch.analysis.rivals import ALL_RIVALS
from launch.analysis.tradeoff import Curve, curves_of_outcomes
from launch.analysis.tradeoff_report import CONTROLLER
from launch.storage.starts import STARTS_NAME, Start, read_starts
from learner.checkpoint import CHECKPOINTS_NAME
from learner.manifest import STATE_NAME, CheckpointError, step_folders, verified_manifest
from rollout.profiling.conversion import sample_place

EVALUATION_NAME = "evaluation.json"
METRICS_NAME = "metrics.jsonl"

T = TypeVar("T")
Row = Mapping[str, Any]
"""The scalars of one line of metrics.jsonl, with its step."""


class MissingPieceError(Exception):
    """A piece of a run is absent or damaged; the message is one sentence that says which."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Stands in place of a piece that could not be read; one sentence says why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The evaluation at the end of a run.

    Attributes:
        latency_source: `measured`, or what simulated the latencies.
        sweeps: the controller's episodes by ascending price.
        rivals: what each rival achieved, by price and by name.
        has_episodes: whether answers and stages were written.
    """

    latency_source: str
    sweeps: Mapping[float, GreedySweep]
    rivals: Mapping[float, Mapping[str, Outcome]]
    has_episodes: bool

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Reads what `launch.run.final_evaluation.finish` wrote.

        Raises:
            KeyError, ValueError: it is something else.
        """
        by_price = {float(price): one for price, one in data["prices"].items()}
        if not by_price:
            raise ValueError("it holds no price")
        prices = sorted(by_price)
        return cls(
            latency_source=str(data["latency_source"]),
            sweeps={price: _sweep(by_price[price]) for price in prices},
            rivals={
                price: {n: Outcome.from_json(o) for n, o in by_price[price]["rivals"].items()}
                for price in prices
            },
            has_episodes=all("answers" in one for one in by_price.values()),
        )

    @property
    def first(self) -> GreedySweep:
        """The sweep at the lowest price."""
        return self.sweeps[min(self.sweeps)]

    def near(self, price: float) -> GreedySweep:
        """The sweep at the price nearest to the given one."""
        return self.sweeps[min(self.sweeps, key=lambda known: abs(known - price))]

    def outcomes(self) -> dict[float, dict[str, Outcome]]:
        """By price, what the controller and its rivals achieved, with the names of the tables."""
        found: dict[float, dict[str, Outcome]] = {}
        for price, sweep in self.sweeps.items():
            ours = outcome(sweep.scores, sweep.latencies_ms, sweep.budgets_ms, sweep.feasible)
            rivals = self.rivals[price]
            named = {words: rivals[name] for name, words in ALL_RIVALS.items() if name in rivals}
            found[price] = {CONTROLLER: ours, **named}
        return found

    def curves(self) -> dict[str, Curve]:
        """The controller and its rivals as curves over the prices."""
        return curves_of_outcomes(self.outcomes())


def _sweep(data: Mapping[str, Any]) -> GreedySweep:
    """One sweep; earlier versions wrote neither answers, stages nor indices."""
    shape = np.shape(data["scores"])
    defaults = {
        "answers": np.full(shape, "").tolist(),
        "stages_ms": np.zeros((*shape, len(STAGES))).tolist(),
        "indices": [sample_place(name)[1] for name in data["sample_ids"]],
    }
    sweep = GreedySweep.from_json({**defaults, **data})
    if sweep.scores.ndim != 2 or sweep.latencies_ms.shape != sweep.scores.shape:
        raise ValueError("scores and latencies are not one row per sample and column per budget")
    if not len(sweep.scores) == len(sweep.sample_ids) == len(sweep.tasks):
        raise ValueError("scores, tasks and ids are not of the same samples")
    return sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as its folder shows it.

    Attributes:
        name: what the page calls it.
        folder: where it was read.
        evaluation: the final evaluation.
        rows: the rows of metrics.jsonl.
        state: the state in the newest intact checkpoint.
        starts: every start of its driver.
    """

    name: str
    folder: Path
    evaluation: Evaluation | Missing
    rows: Sequence[Row] | Missing
    state: Mapping[str, Any] | Missing
    starts: Sequence[Start] | Missing

    def has(self, piece: Any) -> bool:
        """Whether a piece could be read."""
        return not isinstance(piece, Missing)

    @property
    def default_price(self) -> float:
        """The price of requests that state none; 0 if it is not known."""
        if isinstance(self.state, Missing):
            return 0.0
        return float(self.state["configuration"].get("price", {}).get("default", 0.0))


def present(piece: T | Missing) -> T:
    """A piece that is needed; raises MissingPieceError with the reason if it is missing."""
    if isinstance(piece, Missing):
        raise MissingPieceError(piece.reason)
    return piece


def read_run(folder: Path, name: str = "") -> RunRecord:
    """Reads a run's folder; `name` is by default the folder's.

    Raises:
        ValueError: the folder holds nothing of a run.
    """
    parts = (EVALUATION_NAME, METRICS_NAME, CHECKPOINTS_NAME)
    if not folder.is_dir() or not any((folder / part).exists() for part in parts):
        raise ValueError(
            f"{folder} is not the folder of a run: it holds none of {', '.join(parts)}; give the "
            "run-dir of a training run"
        )
    return RunRecord(
        name=name or folder.absolute().name,
        folder=folder,
        evaluation=_read(
            EVALUATION_NAME, lambda: _evaluation(folder), "a run writes it when it ends"
        ),
        rows=_read(METRICS_NAME, lambda: _rows(folder), "a run writes it with its first step"),
        state=_read(f"a checkpoint in {CHECKPOINTS_NAME}", lambda: _state(folder), ""),
        starts=_read(STARTS_NAME, lambda: read_starts(folder), "earlier versions wrote none"),
    )


def _read(name: str, read: Callable[[], T], when: str) -> T | Missing:
    """The piece, or why there is none; nothing in a file may end the report."""
    try:
        return read()
    except FileNotFoundError:
        return Missing(f"There is no {name}{f' ({when})' if when else ''}.")
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:200]
        return Missing(f"{name[0].upper()}{name[1:]} cannot be used ({said}).")


def _evaluation(folder: Path) -> Evaluation:
    return Evaluation.from_json(json.loads((folder / EVALUATION_NAME).read_text()))


def _rows(folder: Path) -> list[Row]:
    """All whole rows; the last line may be torn."""
    rows = []
    for line in (folder / METRICS_NAME).read_text().splitlines():
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, KeyError, TypeError):
            continue
    if not rows:
        raise ValueError("it holds no whole row")
    return rows


def _state(folder: Path) -> Mapping[str, Any]:
    """The state of the newest checkpoint that is whole."""
    reason: Exception = FileNotFoundError()
    for path in reversed(step_folders(folder / CHECKPOINTS_NAME)):
        try:
            verified_manifest(path)
            state = json.loads((path / STATE_NAME).read_text())
            if isinstance(state["configuration"], Mapping):
                return state
        except (CheckpointError, ValueError, KeyError, TypeError) as error:
            reason = error
    raise reason
