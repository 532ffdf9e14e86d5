"""Run folders in an object store.

The run works in a local folder, which is mirrored in the store:

    LATEST                           name of the newest complete checkpoint, written last
    checkpoints/step_00000042-1a2b3c4d/   like the local one, manifest.json written last
    checkpoints/archive/...          like the local ones
    metrics.jsonl, tensorboard/ ...  every other file of the run folder

A remote checkpoint's name ends in a hash of its manifest, so that nothing is ever overwritten with
other content: if an upload is killed, the store holds either the old state or the new one.

Several machines may continue a run one after the other. Each notes which LATEST it fetched or wrote
last, in `.store.json` next to its local copy. If LATEST differs, somebody else has continued the
run: a machine that starts takes that state over and sets its own aside, and one that still runs
stops, before it writes or deletes anything.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from ray.train import Checkpoint

from launch.storage.lock import HOLDER_NAME, LOCK_NAME
from launch.storage.remote_folder import RemoteFolder
from launch.storage.retries import StoreError
from launch.storage.stored_checkpoint import (
    ARCHIVE,
    CHECKPOINTS,
    StoredCheckpoint,
    manifest_of,
    remote_checkpoints,
    remote_name,
    remote_step,
)
from learner import folders
from learner.archive import ArchiveError, ArchiveFolder, check
from learner.manifest import (
    MANIFEST_NAME,
    CheckpointError,
    Manifest,
    step_folders,
    verified_manifest,
)

logger = logging.getLogger(__name__)

LATEST = "LATEST"
"""Object that names the newest checkpoint; written after everything it names."""

FETCHING_PREFIX = ".fetching_"
SEEN_NAME = ".store.json"
"""Local file that holds the LATEST which this machine fetched or wrote last, and the one that it
was about to write."""


class TakenOverError(RuntimeError):
    """Another machine has continued the run."""


class RunStore:
    """A run's folder in an object store, and its local copy.

    Methods may be called from one other thread than the run's own.

    Args:
        uri: URI of the run's folder.
        run_dir: local folder in which the run works.

    Attributes:
        num_failures: number of failed uploads so far; the next upload makes up for them.
    """

    def __init__(self, uri: str, run_dir: Path) -> None:
        self.remote = RemoteFolder(uri)
        self.uri, self.run_dir = uri, run_dir
        self.num_failures = 0
        self._archive = ArchiveFolder(run_dir / ARCHIVE)
        self._sent: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    # -- before a run ----------------------------------------------------------------------------

    def fetch(self) -> None:
        """Downloads the newest and the best checkpoint, the metrics and all logs of the run.

        Nothing is downloaded if the local state continues the store's, for instance after a failed
        upload. A local state that does not is set aside, with a warning that says where. The
        newest checkpoint comes last and is renamed into place: until then a restart downloads all.

        Raises:
            ValueError: the store cannot be written to, or no longer holds what this machine wrote.
            StoreError: the store cannot be read, or all of its checkpoints are damaged.
        """
        with self._lock:
            self.remote.check_writable()
            self._clear_remains()
            files = self.remote.list()
            local, latest = _local_step(self.run_dir), self._latest(files)
            if local >= 0 and not latest and self._seen():
                raise ValueError(
                    f"--run-dir {self.uri} is empty, but this machine has stored {self._seen()[0]} "
                    f"there: to begin a new run, remove {self.run_dir}; to store the local copy "
                    f"again, remove {self.run_dir / SEEN_NAME}"
                )
            is_foreign = local >= 0 and not self._is_ours(latest)
            if latest and not is_foreign and local >= remote_step(latest):
                return
            # The local archive is set aside with the rest: then all of it is needed again.
            lacking = tuple if is_foreign else self._archive.damaged
            newest = self._newest_whole(files, lacking)
            if newest is None or (not is_foreign and local >= newest.manifest.step):
                return
            if is_foreign:  # only now that the store's state has proved to be whole
                self._make_way(latest, local)
            self._fetch_files(files)
            self._archive.write(newest.archive, again=True)
            self._fetch_best(files, newest.manifest)
            self._move_in(newest)
            self._note(newest.name)

    def _latest(self, files: set[str]) -> str:
        """The newest remote checkpoint's name by LATEST, or by step without one; else empty."""
        if LATEST in files:
            return self.remote.get(LATEST).decode(errors="replace").strip()
        complete = (n for n in remote_checkpoints(files) if manifest_of(n) in files)
        return max(complete, default="")

    def _is_ours(self, latest: str) -> bool:
        """Whether the local state continues a remote checkpoint."""
        if not latest or latest in self._seen():
            return True
        folder = self.run_dir / CHECKPOINTS / latest.partition("-")[0]
        try:
            return remote_name(folder, (folder / MANIFEST_NAME).read_bytes()) == latest
        except OSError:
            return False

    def _seen(self) -> list[str]:
        """The LATEST that this machine wrote or fetched last, and the one it may have written."""
        try:
            return json.loads((self.run_dir / SEEN_NAME).read_text())
        except (OSError, ValueError):
            return []

    def _note(self, *names: str) -> None:
        temporary = self.run_dir / f"{SEEN_NAME}.partial"
        temporary.write_text(json.dumps(names))
        os.replace(temporary, self.run_dir / SEEN_NAME)

    def _make_way(self, latest: str, local: int) -> None:
        """Clears a local state that the store's does not continue; what is only here is kept."""
        checkpoints = self.run_dir / CHECKPOINTS
        newest = checkpoints / f"step_{local:08d}"
        if self._seen()[:1] == [remote_name(newest, (newest / MANIFEST_NAME).read_bytes())]:
            logger.info(
                "another machine has continued the run in %s, which is at step %d: the run "
                "continues from there (this machine's last step, %d, had been stored)",
                *(self.uri, remote_step(latest), local),
            )
            for folder in step_folders(checkpoints):
                folders.remove(folder)
            return
        number = 1
        while (target := self.run_dir.with_name(f"{self.run_dir.name}-aside-{number}")).exists():
            number += 1
        target.mkdir(mode=0o700)
        for path in self.run_dir.iterdir():
            if path.name not in (LOCK_NAME, HOLDER_NAME):
                os.rename(path, target / path.name)
        logger.warning(
            "another machine has continued the run in %s, which is at step %d (%s): the run "
            "continues from there; this machine's own state, at step %d, was not stored there and "
            "is now in %s",
            *(self.uri, remote_step(latest), latest, local, target),
        )

    def fetch_newest(self) -> bool:
        """Downloads the newest whole checkpoint alone, to read it; returns whether there is one.

        It comes without its part of the archive, which only a resumed run needs.
        """
        newest = self._newest_whole(self.remote.list(), lambda _parts: ())
        if newest is not None:
            self._move_in(newest)
        return newest is not None

    def _newest_whole(
        self, files: set[str], lacking: Callable[[Iterable[str]], Iterable[str]]
    ) -> StoredCheckpoint | None:
        """The checkpoint that LATEST names, or the newest intact one if that is damaged."""
        names = sorted(remote_checkpoints(files), reverse=True)
        if LATEST in files:
            latest = self.remote.get(LATEST).decode(errors="replace").strip()
            names = [latest, *(name for name in names if name != latest)]
        for name in names:
            try:
                return StoredCheckpoint.read(self.remote, name, lacking)
            except (ArchiveError, CheckpointError, StoreError) as error:
                logger.warning("skipping %s in %s: %s", name, self.uri, error)
        if LATEST in files:
            raise StoreError(
                f"none of the {len(names)} checkpoints in {self.uri} is whole (see the warnings "
                "before this): restore one, or start in another folder"
            )
        return None

    def _fetch_files(self, files: set[str]) -> None:
        for name in sorted(files):
            if name == LATEST or not _is_mirrored(Path(name)):
                continue
            target = self.run_dir / name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{FETCHING_PREFIX}{target.name}")
            temporary.write_bytes(self.remote.get(name))
            os.replace(temporary, target)
            self._sent[name] = _signature(target)

    def _fetch_best(self, files: set[str], newest: Manifest) -> None:
        """Downloads the checkpoint with the highest metric, unless it is the newest one."""
        rated = []
        for name in remote_checkpoints(files):
            try:
                content = self.remote.get(manifest_of(name))
                manifest = Manifest.parse(content, name)
            except (CheckpointError, StoreError):
                continue  # uploaded in part, and never named by LATEST
            if manifest.metric is not None:
                rated.append((manifest.metric, manifest.step, name))
        for _, step, name in sorted(rated, reverse=True):
            if step == newest.step:
                return
            try:
                self._move_in(StoredCheckpoint.read(self.remote, name, self._archive.damaged))
                return
            except (ArchiveError, CheckpointError, StoreError) as error:
                logger.warning("skipping %s, the best so far: %s", name, error)

    def _move_in(self, stored: StoredCheckpoint) -> None:
        self._archive.write(stored.archive, again=True)
        folder = self.run_dir / CHECKPOINTS / stored.name.partition("-")[0]
        temporary = folders.temporary_of(folder)
        temporary.mkdir(parents=True)
        for file, content in stored.files.items():
            (temporary / file).write_bytes(content)
        folders.move_in(folder)

    def _clear_remains(self) -> None:
        """Removes the remains of a download that was killed."""
        folders.clear_remains(self.run_dir / CHECKPOINTS, "step_*")
        folders.clear_remains(self.run_dir / ARCHIVE, "*")
        for path in self.run_dir.rglob(f"{FETCHING_PREFIX}*"):
            path.unlink()

    # -- during and after it ---------------------------------------------------------------------

    def mirror(self, checkpoint: Path) -> Checkpoint | None:
        """Uploads a checkpoint and the run's other files; then points LATEST at it.

        A failure is logged and counted, and the run continues: the next call makes up for it.

        Args:
            checkpoint: RUN_DIR/checkpoints/step_NNNNNNNN.

        Returns:
            The remote checkpoint; None if the upload failed or the local one was deleted.

        Raises:
            TakenOverError: another machine has continued the run; nothing was changed.
        """
        with self._lock:
            try:
                return self._mirror(checkpoint)
            except FileNotFoundError:
                logger.info("%s was deleted before it was uploaded", checkpoint.name)
            except (ArchiveError, CheckpointError, StoreError) as error:
                self.num_failures += 1
                logger.warning(
                    "%s could not be copied to %s (%s): the run continues, and the next upload "
                    "makes up for it; the local copy is in %s",
                    *(checkpoint.name, self.uri, error, checkpoint),
                )
            return None

    def mirror_results(self) -> bool:
        """Uploads everything that is missing, such as the last evaluation and the curves.

        Returns:
            Whether the store now holds the whole run; a warning says what is missing.

        Raises:
            TakenOverError: another machine has continued the run; nothing was changed.
        """
        found = step_folders(self.run_dir / CHECKPOINTS)
        return bool(found) and self.mirror(found[-1]) is not None

    def _mirror(self, checkpoint: Path) -> Checkpoint:
        remote_files = self.remote.list()
        self._check_ours(remote_files)
        name, needed = self._upload(checkpoint, remote_files)
        self._check_ours(self.remote.list())  # once more: uploading may have taken minutes
        self._upload_files()
        self._note(*self._seen()[:1], name)
        self.remote.put(LATEST, name.encode())
        self._note(name)
        kept = {name}
        for folder in step_folders(self.run_dir / CHECKPOINTS):
            try:
                other, parts = self._upload(folder, remote_files)
            except (ArchiveError, CheckpointError, FileNotFoundError):
                continue  # deleted meanwhile, or damaged: not to be relied on
            kept, needed = kept | {other}, needed | parts
        self._drop_old(remote_checkpoints(remote_files) - kept)
        archived = {file for file in remote_files if file.startswith(f"{ARCHIVE}/")}
        self._drop_unneeded(archived - needed)
        return Checkpoint(
            f"{self.remote.root}/{CHECKPOINTS}/{name}", filesystem=self.remote.filesystem
        )

    def _check_ours(self, remote_files: set[str]) -> None:
        latest = self._latest(remote_files)
        if not self._is_ours(latest):
            raise TakenOverError(
                f"another machine has continued the run in {self.uri}, which is at step "
                f"{remote_step(latest)} ({latest}): nothing of this machine's run was stored over "
                f"it; its state is in {self.run_dir}"
            )

    def _drop_old(self, names: set[str]) -> None:
        """Deletes checkpoints that are gone locally; LATEST names a newer one by now."""
        for name in sorted(names):
            try:
                self.remote.remove_folder(f"{CHECKPOINTS}/{name}")
            except StoreError as error:
                logger.warning("%s could not be removed from %s: %s", name, self.uri, error)

    def _drop_unneeded(self, unneeded: Iterable[str]) -> None:
        """Deletes parts of the archive that no checkpoint needs any more."""
        for name in sorted(unneeded):
            try:
                self.remote.remove_file(name)
            except StoreError as error:
                logger.warning("%s could not be removed from %s: %s", name, self.uri, error)

    def _upload(self, checkpoint: Path, remote_files: set[str]) -> tuple[str, set[str]]:
        """Uploads a checkpoint unless it is there: archive first, manifest last.

        Returns:
            Its remote name, and the paths of what it needs from the archive.
        """
        content = (checkpoint / MANIFEST_NAME).read_bytes()
        manifest = Manifest.parse(content, str(checkpoint))
        name = remote_name(checkpoint, content)
        needed = {f"{ARCHIVE}/{part}" for part in manifest.archive}
        if manifest_of(name) in remote_files:
            return name, needed
        contents = {file: (checkpoint / file).read_bytes() for file in manifest.files}
        manifest.check(contents, str(checkpoint))
        for path in sorted(needed - remote_files):
            data = (self.run_dir / path).read_bytes()
            check(Path(path).name, data, self.run_dir / ARCHIVE)
            self.remote.put(path, data)
            remote_files.add(path)
        for file, data in {**contents, MANIFEST_NAME: content}.items():
            self.remote.put(f"{CHECKPOINTS}/{name}/{file}", data)
        return name, needed

    def _upload_files(self) -> None:
        """Uploads all files outside the checkpoints that changed since the last upload."""
        for path in sorted(self.run_dir.rglob("*")):
            relative = path.relative_to(self.run_dir)
            if not _is_mirrored(relative):
                continue
            try:
                signature = _signature(path)
                if not path.is_file() or self._sent.get(str(relative)) == signature:
                    continue
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # another process's temporary file
            self.remote.put(relative.as_posix(), content)
            self._sent[str(relative)] = signature


def _signature(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _is_mirrored(relative: Path) -> bool:
    """Whether a file is mirrored: neither part of a checkpoint nor temporary."""
    is_hidden = any(part.startswith(".") for part in relative.parts)
    return not is_hidden and relative.parts[0] != CHECKPOINTS and relative.suffix != ".partial"


def _local_step(run_dir: Path) -> int:
    """Step of the newest intact local checkpoint, -1 if there is none."""
    for folder in reversed(step_folders(run_dir / CHECKPOINTS)):
        try:
            return verified_manifest(folder).step
        except CheckpointError as error:
            logger.warning("skipping %s: %s", folder, error)
    return -1
