"""A profile as a table: score and latency of every configuration on every sample.

Shapes: S samples, C configurations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np

from envs.calibration import Calibration
from envs.spec import Knobs, knobs_by_name
from rollout.fingerprint import Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileTable:
    """Scores and latencies by sample and configuration.

    Attributes:
        configurations: C configurations.
        sample_ids: S ids.
        tasks: S task names.
        prompts: S prompts.
        scores: float32 [S, C].
        latencies_ms: float32 [S, C], calibrated ms.
        cheapest_ms: float32 [S], median of repeated latencies of the cheapest configuration, by
            which it is decided whether a budget is feasible for a sample.
        calibration: what these milliseconds mean; None in some tests.
        fingerprint: model, tasks and device that were profiled; None in some tests.
    """

    configurations: tuple[Knobs, ...]
    sample_ids: tuple[str, ...]
    tasks: tuple[str, ...]
    prompts: tuple[str, ...]
    scores: np.ndarray
    latencies_ms: np.ndarray
    cheapest_ms: np.ndarray
    calibration: Calibration | None = None
    fingerprint: Fingerprint | None = None

    def __post_init__(self) -> None:
        count = len(self.sample_ids)
        if len(set(self.sample_ids)) != count:
            twice = next(name for name in self.sample_ids if self.sample_ids.count(name) > 1)
            raise ValueError(f"profile holds sample {twice} more than once")
        shape = (count, len(self.configurations))
        for name, expected in (
            ("scores", shape),
            ("latencies_ms", shape),
            ("cheapest_ms", (count,)),
        ):
            array = getattr(self, name)
            if array.shape != expected or not np.isfinite(array).all():
                raise ValueError(f"profile {name} are {array.shape}, expected finite {expected}")

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Mapping[str, Any]],
        calibration: Calibration | None = None,
        fingerprint: Fingerprint | None = None,
    ) -> Self:
        """From one row per sample.

        A row has sample_id, task, prompt, cheapest_ms, and scores and latencies_ms by name of the
        configuration.

        Raises:
            ValueError: if there is no row, or rows do not cover the same configurations.
        """
        if not rows:
            raise ValueError("the profile holds no sample: measure at least one")
        known = knobs_by_name()
        names = list(rows[0]["scores"])
        for row in rows:
            if list(row["scores"]) != names:
                raise ValueError(
                    f"sample {row['sample_id']} covers other configurations than the first: "
                    "profile into a new folder"
                )
        return cls(
            configurations=tuple(known[name] for name in names),
            sample_ids=tuple(row["sample_id"] for row in rows),
            tasks=tuple(row["task"] for row in rows),
            prompts=tuple(row["prompt"] for row in rows),
            scores=np.array([list(r["scores"].values()) for r in rows], np.float32),
            latencies_ms=np.array([list(r["latencies_ms"].values()) for r in rows], np.float32),
            cheapest_ms=np.array([row["cheapest_ms"] for row in rows], np.float32),
            calibration=calibration,
            fingerprint=fingerprint,
        )

    def save(self, path: Path) -> None:
        """Writes a compressed .npz without pickles."""
        np.savez_compressed(
            path,
            configurations=np.array([k.indices() for k in self.configurations], np.int8),
            sample_ids=np.array(self.sample_ids),
            tasks=np.array(self.tasks),
            prompts=np.array(self.prompts),
            scores=self.scores.astype(np.float16),
            latencies_ms=self.latencies_ms.astype(np.float32),
            cheapest_ms=self.cheapest_ms.astype(np.float32),
            calibration=np.array(json.dumps(self.calibration and asdict(self.calibration))),
            fingerprint=np.array(json.dumps(self.fingerprint and self.fingerprint.to_json())),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote; raises ValueError that names an unusable file."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                fingerprint = json.loads(str(arrays["fingerprint"]))
                calibration = json.loads(str(arrays["calibration"]))
                return cls(
                    configurations=tuple(
                        Knobs.from_indices(row) for row in arrays["configurations"]
                    ),
                    sample_ids=tuple(map(str, arrays["sample_ids"])),
                    tasks=tuple(map(str, arrays["tasks"])),
                    prompts=tuple(map(str, arrays["prompts"])),
                    scores=arrays["scores"].astype(np.float32),
                    latencies_ms=arrays["latencies_ms"].astype(np.float32),
                    cheapest_ms=arrays["cheapest_ms"].astype(np.float32),
                    calibration=calibration and Calibration.from_json(calibration),
                    fingerprint=fingerprint and Fingerprint.from_json(fingerprint),
                )
        except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
            # NumPy's message about other files advises unsafe loading.
            reason = "not an .npz file of arrays" if "pickle" in str(error) else str(error)
            raise ValueError(
                f"{path} is not a profile table ({reason}): measure it again"
            ) from None

    def check_fingerprint(self, other: Fingerprint, mine: str, theirs: str) -> None:
        """Raises ValueError unless the table was measured on the same model, tasks and device."""
        if self.fingerprint is None:
            raise ValueError(
                f"{mine} does not say on which model it was measured: measure it again"
            )
        cure = "profile this model with launch/profile_knobs.py, or use the model of the profile"
        self.fingerprint.check_same(other, mine, theirs, cure)

    def column(self, knobs: Knobs) -> int:
        """Index of a configuration; raises ValueError if it was not profiled."""
        try:
            return self.configurations.index(knobs)
        except ValueError:
            raise ValueError(f"{knobs} is not in the profile") from None

    def denoised(self) -> Self:
        """Replaces each latency by the product of a sample effect and a configuration effect.

        The configuration effect is estimated per task, both as means of logarithms. What is removed
        is the noise of single measurements.
        """
        log_SC = np.log(self.latencies_ms.astype(np.float64))
        sample_S1 = log_SC.mean(1, keepdims=True)
        tasks = np.array(self.tasks)
        for task in set(self.tasks):
            rows = tasks == task
            log_SC[rows] = sample_S1[rows] + (log_SC[rows] - sample_S1[rows]).mean(0)
        return replace(self, latencies_ms=np.exp(log_SC).astype(np.float32))

    def feasible(self, budgets_ms: np.ndarray) -> np.ndarray:
        """Whether the cheapest configuration meets each budget on each sample: bool [S, K]."""
        return self.cheapest_ms[:, None] <= np.asarray(budgets_ms)

    def only_task(self, task: str) -> Self:
        """The rows of one task."""
        rows = np.array([t == task for t in self.tasks])
        return self.rows(np.flatnonzero(rows))

    def rows(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Some of the samples."""
        pick = [int(i) for i in indices]
        return replace(
            self,
            sample_ids=tuple(self.sample_ids[i] for i in pick),
            tasks=tuple(self.tasks[i] for i in pick),
            prompts=tuple(self.prompts[i] for i in pick),
            scores=self.scores[pick],
            latencies_ms=self.latencies_ms[pick],
            cheapest_ms=self.cheapest_ms[pick],
        )
