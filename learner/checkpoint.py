"""Atomic, hashed checkpoints of a run in a local folder.

A checkpoint is a folder `step_00000042`:

    controller.safetensors, controller.json   what Controller.load reads
    learner.pt                                 Learner.state_dict, read with weights_only
    state.json                                 step, random states, data position, configuration ...
    manifest.json                              size and sha256 of the files above, step, metric

It is written under a temporary name in the same folder, synced and renamed, so that a step folder
is either whole or absent whatever kills the process. `latest` names the newest one for people and
tools; loading does not rely on it, and verifies every hash.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from policy import serialization
from policy.controller import Controller

logger = logging.getLogger(__name__)

LEARNER_NAME = "learner.pt"
STATE_NAME = "state.json"
MANIFEST_NAME = "manifest.json"
LATEST_NAME = "latest"
TEMPORARY_PREFIX = ".writing_"
REPLACED_PREFIX = ".replaced_"
STEP_FOLDER = re.compile(r"step_(\d{8,})")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or no valid one could be read."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint that was read and verified."""

    path: Path
    step: int
    metric: float | None
    controller: Controller
    learner_state: dict[str, Any]
    state: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint holds: `files` maps names to sha256."""

    step: int
    metric: float | None
    files: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """The manifest as JSON."""
        fields = {"step": self.step, "metric": self.metric, "files": dict(self.files)}
        return (json.dumps(fields, indent=2) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the manifest of a folder; raises CheckpointError if there is no sound one."""
        try:
            fields = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
            return cls(step=fields["step"], metric=fields["metric"], files=dict(fields["files"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / MANIFEST_NAME} cannot be read: {error!r}") from error


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        root: folder of the run's checkpoints, made if absent.
        keep_last: how many of the newest stay; the one with the highest metric stays too.
    """

    def __init__(self, root: Path | str, keep_last: int = 3):
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}: keep at least one checkpoint")
        self.root = Path(root)
        self.keep_last = keep_last
        self.root.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        step: int,
        controller: Controller,
        learner_state: Mapping[str, Any],
        state: Mapping[str, Any],
        metric: float | None = None,
    ) -> Path:
        """Writes the checkpoint of a step and drops those no longer kept.

        Args:
            step: of the run; a checkpoint of the same step is replaced.
            controller: its weights and configuration.
            learner_state: `Learner.state_dict()`.
            state: plain JSON values only; tuples are read back as lists.
            metric: for keeping the best; higher is better, and NaN or infinity counts as none.

        Returns:
            The folder of the checkpoint.

        Raises:
            TypeError: `state` or `learner_state` holds a value that could not be read back;
                nothing is written then.
            CheckpointError: writing failed (a full disk, for one); older checkpoints are intact.
        """
        files = _to_files(step, controller, learner_state, state, metric)
        folder = self.root / f"step_{step:08d}"
        temporary = self.root / f"{TEMPORARY_PREFIX}{folder.name}"
        try:
            self._clear_remains()
            _write_folder(temporary, files)
            self._move_in(temporary, folder)
            self._point_latest_at(folder.name)
            _sync_folder(self.root)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.root}: {error}; "
                "older checkpoints are intact; free space there or choose another folder"
            ) from error
        self._drop_old()
        return folder

    def steps(self) -> list[int]:
        """Steps that have a folder, ascending, sound or not."""
        matches = (STEP_FOLDER.fullmatch(path.name) for path in self.root.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def load_latest(self) -> Checkpoint | None:
        """The newest sound checkpoint, or None if the run has none at all.

        A torn or corrupt one is skipped with a logged warning that names what is wrong.

        Raises:
            CheckpointError: there are checkpoints, and none is sound.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.load(self.root / f"step_{step:08d}")
            except CheckpointError as error:
                logger.warning("skipping the checkpoint of step %d: %s", step, error)
        if steps:
            raise CheckpointError(
                f"none of the {len(steps)} checkpoints in {self.root} is sound (see the warnings "
                "before this): restore one, or start in another folder"
            )
        return None

    def load(self, path: Path | str) -> Checkpoint:
        """Reads one checkpoint; raises CheckpointError that says what is wrong with it."""
        folder = Path(path)
        manifest = Manifest.read(folder)
        contents = {
            name: _read_verified(folder / name, sha) for name, sha in manifest.files.items()
        }
        try:
            buffer = io.BytesIO(contents[LEARNER_NAME])
            return Checkpoint(
                path=folder,
                step=manifest.step,
                metric=manifest.metric,
                controller=Controller.load(folder),
                learner_state=torch.load(buffer, map_location="cpu", weights_only=True),
                state=json.loads(contents[STATE_NAME]),
            )
        except KeyError as error:
            raise CheckpointError(f"{folder / MANIFEST_NAME} does not list {error}") from error
        except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{folder}: {error}") from error

    def best(self) -> Path | None:
        """Folder of the checkpoint with the highest metric, None if no step had one."""
        rated = [(metric, step) for step, metric in self._metrics().items() if metric is not None]
        return self.root / f"step_{max(rated)[1]:08d}" if rated else None

    def _metrics(self) -> dict[int, float | None]:
        metrics = {}
        for step in self.steps():
            try:
                metrics[step] = Manifest.read(self.root / f"step_{step:08d}").metric
            except CheckpointError:
                metrics[step] = None
        return metrics

    def _point_latest_at(self, name: str) -> None:
        temporary = self.root / f"{TEMPORARY_PREFIX}{LATEST_NAME}"
        try:
            _write_synced(temporary, f"{name}\n".encode())
            os.replace(temporary, self.root / LATEST_NAME)
        finally:
            temporary.unlink(missing_ok=True)

    def _move_in(self, temporary: Path, folder: Path) -> None:
        """Renames; an earlier checkpoint of the same step goes only when the new one is in."""
        replaced = self.root / f"{REPLACED_PREFIX}{folder.name}"
        if folder.exists():
            os.rename(folder, replaced)
        try:
            os.rename(temporary, folder)
        except OSError:
            if replaced.exists():
                os.rename(replaced, folder)
            raise
        shutil.rmtree(replaced, ignore_errors=True)

    def _clear_remains(self) -> None:
        """Removes what a killed process left half written, and puts back what it had set aside."""
        for path in self.root.glob(f"{TEMPORARY_PREFIX}step_*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.root.glob(f"{REPLACED_PREFIX}step_*"):
            folder = self.root / path.name.removeprefix(REPLACED_PREFIX)
            if folder.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.rename(path, folder)

    def _drop_old(self) -> None:
        best = self.best()
        for step in self.steps()[: -self.keep_last]:
            folder = self.root / f"step_{step:08d}"
            if folder != best:
                shutil.rmtree(folder, ignore_errors=True)


def _to_files(
    step: int,
    controller: Controller,
    learner_state: Mapping[str, Any],
    state: Mapping[str, Any],
    metric: float | None,
) -> dict[str, bytes]:
    """All files of a checkpoint, by name; raises TypeError for what could not be read back."""
    files = serialization.to_files(controller.config, controller.to_numpy())
    files[LEARNER_NAME] = _learner_bytes(learner_state)
    files[STATE_NAME] = _state_bytes(state)
    metric = metric if metric is not None and math.isfinite(metric) else None
    hashes = {name: _sha256(content) for name, content in files.items()}
    files[MANIFEST_NAME] = Manifest(step=step, metric=metric, files=hashes).to_bytes()
    return files


def _state_bytes(state: Mapping[str, Any]) -> bytes:
    try:
        content = json.dumps(dict(state), indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the state of a checkpoint must be plain JSON values: {error}; convert it first"
        ) from error
    if json.loads(content) != _tuples_as_lists(dict(state)):
        raise TypeError(
            "the state of a checkpoint would be read back with other keys: use strings as keys"
        )
    return content.encode()


def _tuples_as_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples_as_lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tuples_as_lists(item) for item in value]
    return value


def _learner_bytes(learner_state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.save(dict(learner_state), buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception as error:  # pickle raises many types; all mean the same to the caller
        raise TypeError(
            "the learner's state must be tensors, numbers, strings, lists and dicts, readable "
            f"with weights_only: {error}"
        ) from error
    return buffer.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_verified(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if _sha256(content) != sha256:
        raise CheckpointError(
            f"{path} is torn or corrupt: its {len(content)} bytes do not have the manifest's hash"
        )
    return content


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        _write_synced(folder / name, content)
    _sync_folder(folder)


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
