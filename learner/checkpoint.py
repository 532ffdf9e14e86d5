"""Atomic, hashed checkpoints of a run in a local folder.

A checkpoint is a folder `step_00000042`:

    controller.safetensors, controller.json   what Controller.load reads
    learner.pt                                 optimizer, replay ..., read with weights_only
    state.json                                 step, random states, data position, configuration ...
    manifest.json                              sha256 of the files above, step, metric, and what the
                                               learner's state needs from the archive

It is written under a temporary name in the same folder, synced and renamed, so that a step folder
is either complete or absent, even if the process is killed (`learner/folders.py`). `latest` points
to the newest one for people and tools; loading does not rely on it, and verifies every hash.

The folder `archive` next to the steps holds what never changes, such as the groups that the learner
remembers (`learner/archive.py`), once for all checkpoints, until none of them needs it.
"""

from __future__ import annotations

import io
import json
import logging
import math
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from learner import folders
from learner.archive import ARCHIVE_NAME, ArchiveError, ArchiveFolder
from learner.manifest import (
    LEARNER_NAME,
    MANIFEST_NAME,
    STATE_NAME,
    CheckpointError,
    Manifest,
    is_count,
    read_files,
    sha256_of,
    step_folders,
    step_of,
    verified_manifest,
)
from policy import serialization
from policy.controller import Controller

logger = logging.getLogger(__name__)

LEARNER_KEYS = ("optimizer", "version")
"""Required keys of a learner's state, besides the controller."""

CHECKPOINTS_NAME = "checkpoints"
"""Name of the checkpoints' folder in a run folder."""

LATEST_NAME = "latest"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint that was read and verified."""

    path: Path
    step: int
    metric: float | None
    controller: Controller
    learner_state: dict[str, Any]
    state: dict[str, Any]


def find_controller(path: Path) -> Path:
    """The controller's folder (see `Controller.load`) for a path that a user gives.

    Args:
        path: a run folder, its checkpoints folder or any other folder within it, the folder of
            one checkpoint, or any folder that `Controller.save` wrote.

    Returns:
        `path` itself if it holds a controller, or else the newest intact checkpoint of the run.

    Raises:
        ValueError: there is none.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder: give a run folder or one of its checkpoints")
    if (path / serialization.JSON_NAME).is_file():
        return path
    for root in (path, path / CHECKPOINTS_NAME, *(p / CHECKPOINTS_NAME for p in path.parents)):
        for folder in reversed(step_folders(root)):
            try:
                verified_manifest(folder)
                return folder
            except CheckpointError as error:
                logger.warning("skipping %s: %s", folder, error)
        if step_folders(root):
            raise ValueError(f"none of the checkpoints in {root} is intact: give another run")
    raise ValueError(
        f"{path} holds no controller: give a run folder, or one of its checkpoints, such as "
        f"RUN/{CHECKPOINTS_NAME}/step_00000042"
    )


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        root: folder of the run's checkpoints; created if absent.
        keep_last: number of newest checkpoints to keep; the one with the highest metric is kept as
            well.
        required_state: keys that `state` must have, in addition to `next_step`.
    """

    def __init__(
        self, root: Path | str, keep_last: int = 3, required_state: Collection[str] = ()
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}: keep at least one checkpoint")
        self.root = Path(root)
        self.keep_last = keep_last
        self.required_state = frozenset({"next_step", *required_state})
        self.archive = ArchiveFolder(self.root / ARCHIVE_NAME)
        self._intact: set[Path] = set()
        self.root.mkdir(parents=True, exist_ok=True)

    def recover(self) -> None:
        """Cleans up after a killed process; only for the run that owns the folder.

        Raises:
            CheckpointError: the folder cannot be changed.
        """
        try:
            folders.clear_remains(self.root, "step_*")
            folders.clear_remains(self.root, LATEST_NAME)
            folders.clear_remains(self.archive.path, "*")
        except OSError as error:
            raise CheckpointError(f"{self.root} cannot be put in order: {error}") from error

    def save(
        self,
        step: int,
        controller: Controller,
        learner_state: Mapping[str, Any],
        state: Mapping[str, Any],
        metric: float | None = None,
    ) -> Path:
        """Writes the checkpoint of a step and deletes those no longer kept.

        Args:
            step: step of the run; a checkpoint of the same step is replaced.
            controller: weights and configuration.
            learner_state: `Learner.state_dict()`.
            state: the run's state, plain JSON values only; `next_step` must be `step`. Tuples are
                read back as lists.
            metric: decides which checkpoint is the best; higher is better, and NaN or infinity
                count as none.

        Returns:
            The folder of the checkpoint.

        Raises:
            TypeError: `state` or `learner_state` lacks something or holds a value that could not
                be read back; nothing is written.
            CheckpointError: writing failed, for instance on a full disk; older checkpoints are
                intact.
        """
        wrong = self._what_is_wrong(step, state) or _what_learner_state_lacks(learner_state)
        if wrong:
            raise TypeError(f"a checkpoint of step {step} cannot be written: {wrong}")
        files = _to_files(step, controller, learner_state, state, metric)
        folder = self.root / f"step_{step:08d}"
        temporary = folders.temporary_of(folder)
        try:
            folders.clear_remains(self.root, "step_*")
            self.archive.write(learner_state.get("archive", {}))
            _write_folder(temporary, files)
            folders.move_in(folder)
            self._point_latest_at(folder.name)
            folders.sync(self.root)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.root}: {error}; "
                "older checkpoints are intact; free space there or choose another folder"
            ) from error
        self._intact.add(folder)
        self._drop_old()
        self._drop_unneeded()
        return folder

    def steps(self) -> list[int]:
        """Steps that have a folder, in ascending order, intact or not."""
        return [step_of(path) for path in step_folders(self.root)]

    def load_latest(self, *, to_resume: bool = False) -> Checkpoint | None:
        """The newest intact checkpoint, or None if the run has no checkpoint at all.

        A torn or corrupt one is skipped with a logged warning that names what is wrong.

        Args:
            to_resume: see `load`.

        Raises:
            CheckpointError: there are checkpoints, and none is sound.
        """
        found = step_folders(self.root)
        for folder in reversed(found):
            try:
                return self.load(folder, to_resume=to_resume)
            except CheckpointError as error:
                logger.warning("skipping the checkpoint of step %d: %s", step_of(folder), error)
        if found:
            raise CheckpointError(
                f"none of the {len(found)} checkpoints in {self.root} is sound (see the warnings "
                "before this): restore one, or start in another folder"
            )
        return None

    def load(self, path: Path | str, *, to_resume: bool = False) -> Checkpoint:
        """Reads one checkpoint.

        Args:
            path: its folder.
            to_resume: whether to read what the learner's state needs from the archive as well.

        Raises:
            CheckpointError: it is damaged; the message says what is wrong.
        """
        folder = Path(path)
        manifest = Manifest.read(folder)
        contents = read_files(folder, manifest)
        manifest.check(contents, folder)
        try:
            state = json.loads(contents[STATE_NAME])
            controller = Controller.load(folder)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{folder}: {error}") from error
        learner_state = {
            **_read_learner_state(contents[LEARNER_NAME], folder),
            "controller": controller.state_dict(),
            "archive": self._read_archive(manifest) if to_resume else {},
        }
        if wrong := self._what_is_wrong(manifest.step, state):
            raise CheckpointError(f"{folder / STATE_NAME} is not a run's state: {wrong}")
        return Checkpoint(
            path=folder,
            step=manifest.step,
            metric=manifest.metric,
            controller=controller,
            learner_state=learner_state,
            state=state,
        )

    def _what_is_wrong(self, step: int, state: Any) -> str:
        """What a state of this step lacks; empty if nothing."""
        if not isinstance(state, Mapping):
            return f"it is a {type(state).__name__}, not an object"
        missing = sorted(self.required_state - set(state))
        if missing:
            return f"it lacks {', '.join(missing)}"
        if not is_count(state["next_step"]) or state["next_step"] != step:
            return f"its next_step is {state['next_step']!r}, not the checkpoint's step {step}"
        return ""

    def best(self) -> Path | None:
        """Folder of the intact checkpoint with the highest metric; None if none has one."""
        rated = []
        for folder in step_folders(self.root):
            try:
                metric = Manifest.read(folder).metric
            except CheckpointError:
                continue
            if metric is not None:
                rated.append((metric, step_of(folder), folder))
        best_first = (folder for *_, folder in sorted(rated, reverse=True))
        return next(filter(self._is_intact, best_first), None)

    def _read_archive(self, manifest: Manifest) -> dict[str, bytes]:
        """What a checkpoint needs from the archive; raises CheckpointError."""
        try:
            return {name: self.archive.read(name) for name in manifest.archive}
        except ArchiveError as error:
            raise CheckpointError(str(error)) from error

    def _drop_unneeded(self) -> None:
        """Deletes what no checkpoint needs; nothing if one cannot say what it needs."""
        try:
            manifests = [Manifest.read(folder) for folder in step_folders(self.root)]
        except CheckpointError:
            return
        self.archive.keep({name for manifest in manifests for name in manifest.archive})

    def _point_latest_at(self, name: str) -> None:
        folders.write_whole(self.root / LATEST_NAME, f"{name}\n".encode())

    def _drop_old(self) -> None:
        """Keeps the newest intact checkpoints and the best one.

        Torn ones displace no intact one: those that are newer than the oldest kept one stay for
        inspection.
        """
        newest_first = list(reversed(step_folders(self.root)))
        intact = [folder for folder in newest_first if self._is_intact(folder)]
        if len(intact) < self.keep_last:
            return
        best = self.best()
        for folder in newest_first[newest_first.index(intact[self.keep_last - 1]) + 1 :]:
            if folder != best:
                folders.remove(folder)
                self._intact.discard(folder)

    def _is_intact(self, folder: Path) -> bool:
        """Whether all files have their hashes; read once, and not if this process wrote them."""
        if folder not in self._intact:
            try:
                self._read_archive(verified_manifest(folder))
            except CheckpointError:
                return False
            self._intact.add(folder)
        return True


def _to_files(
    step: int,
    controller: Controller,
    learner_state: Mapping[str, Any],
    state: Mapping[str, Any],
    metric: float | None,
) -> dict[str, bytes]:
    """All files of a checkpoint, by name; raises TypeError for values that cannot be read back."""
    files = serialization.to_files(controller.config, controller.to_numpy())
    files[LEARNER_NAME] = _learner_bytes(learner_state)
    files[STATE_NAME] = _state_bytes(state)
    metric = metric if metric is not None and math.isfinite(metric) else None
    hashes = {name: sha256_of(content) for name, content in files.items()}
    archive = tuple(sorted(learner_state.get("archive", ())))
    manifest = Manifest(step=step, metric=metric, files=hashes, archive=archive)
    files[MANIFEST_NAME] = manifest.to_bytes()
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
    """What is written neither as the controller nor into the archive."""
    rest = {k: v for k, v in learner_state.items() if k not in ("controller", "archive")}
    buffer = io.BytesIO()
    try:
        torch.save(rest, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception as error:  # pickle raises many types; all mean the same to the caller
        raise TypeError(
            "the learner's state must be tensors, numbers, strings, lists and dicts, readable "
            f"with weights_only: {error}"
        ) from error
    return buffer.getvalue()


def _what_learner_state_lacks(learner_state: Any) -> str:
    """What a learner's state lacks; empty if nothing."""
    if not isinstance(learner_state, Mapping):
        return f"the learner's state is a {type(learner_state).__name__}, not a dict"
    missing = [key for key in LEARNER_KEYS if key not in learner_state]
    return f"the learner's state lacks {', '.join(missing)}" if missing else ""


def _read_learner_state(content: bytes, folder: Path) -> dict[str, Any]:
    learner_state: Any = None
    try:
        learner_state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types, and advises to load unsafely
        raise CheckpointError(
            f"{folder / LEARNER_NAME} cannot be used: it is damaged, or is not what this program "
            f"wrote ({type(error).__name__})"
        ) from error
    if wrong := _what_learner_state_lacks(learner_state):
        raise CheckpointError(f"{folder / LEARNER_NAME} cannot be used: {wrong}")
    if isinstance(learner_state.get("initial_controller"), dict):
        raise CheckpointError(
            f"{folder} was written by an earlier version of this program, which had no archive: "
            "resume the run with that version; its controller can still be used"
        )
    return learner_state


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        folders.write_synced(folder / name, content)
    folders.sync(folder)
