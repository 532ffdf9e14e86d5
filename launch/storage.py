"""Run folders in an object store: checkpoints are committed locally, then copied whole."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pyarrow.fs
from ray.train import Checkpoint

LATEST = "LATEST"
"""Object that names the newest checkpoint; written after everything it names."""


def is_uri(run_dir: str) -> bool:
    """Whether a run folder lies in an object store."""
    return "://" in run_dir


def staging_folder(uri: str) -> Path:
    """The local folder of a run whose home is a URI; the same one on every start."""
    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"joint-grpo-{digest}"


def open_uri(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system and the path of a URI; raises ValueError that says what is wrong."""
    try:
        return pyarrow.fs.FileSystem.from_uri(uri.rstrip("/"))
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"--run-dir {uri} cannot be used ({error})") from None


def mirror(checkpoint: Path, uri: str) -> Checkpoint:
    """Copies a committed checkpoint, and the run's logs, to the URI; then points LATEST at it.

    Args:
        checkpoint: RUN_DIR/checkpoints/step_NNNNNNNN.
        uri: the run's home.

    Raises:
        RuntimeError: if the store does not take it; what is there already stays.
    """
    filesystem, root = open_uri(uri)
    run_dir = checkpoint.parent.parent
    try:
        for source in (checkpoint, run_dir / "tensorboard", run_dir / "metrics.jsonl"):
            target = f"{root}/{source.relative_to(run_dir)}"
            if source.is_dir():
                filesystem.create_dir(target, recursive=True)
                pyarrow.fs.copy_files(str(source), target, destination_filesystem=filesystem)
            elif source.is_file():
                with filesystem.open_output_stream(target) as stream:
                    stream.write(source.read_bytes())
        with filesystem.open_output_stream(f"{root}/{LATEST}") as stream:
            stream.write(checkpoint.name.encode())
    except OSError as error:
        raise RuntimeError(
            f"{checkpoint.name} could not be copied to {uri} ({error}); it is safe in {checkpoint}"
        ) from None
    return Checkpoint(f"{root}/checkpoints/{checkpoint.name}", filesystem=filesystem)


def fetch_latest(uri: str, run_dir: Path) -> None:
    """Brings the newest checkpoint of a URI into the local folder, unless it is there."""
    filesystem, root = open_uri(uri)
    if filesystem.get_file_info(f"{root}/{LATEST}").type == pyarrow.fs.FileType.NotFound:
        return
    with filesystem.open_input_stream(f"{root}/{LATEST}") as stream:
        name = stream.read().decode()
    folder = run_dir / "checkpoints" / name
    if not folder.is_dir():
        folder.mkdir(parents=True)
        source = f"{root}/checkpoints/{name}"
        pyarrow.fs.copy_files(source, str(folder), source_filesystem=filesystem)
