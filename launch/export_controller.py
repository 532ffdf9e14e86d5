"""Writes the trained controller of a run into a small folder, to be shared.

    python launch/export_controller.py RUN OUT

OUT holds what answers need, and nothing that resuming needs: the controller, the calibration of
its device, the fingerprint of its model, its curve of device time by price, and the configuration
of its run, without the folders of this machine. All programs that take a run take it. RUN is a run
folder, whose newest intact checkpoint is taken, or the folder of a checkpoint.
"""

import sys

from launch.cluster.signals import stop_quietly

if __name__ == "__main__":
    stop_quietly()

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from launch.cluster.console import check_first
from launch.cluster.usage import options_from
from launch.storage.inputs import check_run


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """What to export.

    Attributes:
        run: a run folder or the folder of a checkpoint, as a path or URI.
        out: a new folder.
    """

    run: Annotated[str, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]


def command_line() -> ExportConfig:
    """Reads the command line."""
    config = options_from(
        lambda: tyro.cli(ExportConfig, prog="export_controller.py", description=__doc__)
    )
    check_run(config.run, "RUN")
    return config


if __name__ == "__main__":
    check_first(command_line)  # before the imports that take seconds

import shutil
from typing import Any

from rich.console import Console

from envs.price_curve import PRICE_CURVE_NAME
from launch.cluster.console import one_clear_error
from launch.storage.fetched_run import local_folder
from learner.checkpoint import CHECKPOINTS_NAME, LEARNER_KEYS, CheckpointStore, find_controller
from learner.manifest import STATE_NAME

PLACES = ("run_dir", "warm_start_profile", "comparison_profile", "simulated_latency")
"""Settings that name files of the machine on which a controller was trained."""


def export(run: str, out: Path) -> Path:
    """Writes the controller of a run; returns its folder.

    Raises:
        ValueError: there is no such run, its latencies are simulated, or `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists: name a new folder")
    folder = find_controller(local_folder(run))
    if not (folder / STATE_NAME).is_file():
        raise ValueError(f"{folder} is no checkpoint of a run: give one, such as RUN/checkpoints")
    checkpoint = CheckpointStore(folder.parent).load(folder)
    source = checkpoint.state["latency_source"]
    if source != "measured":
        raise ValueError(f"the latencies of {folder} are not measured but {source}: train again")
    settings = {
        name: value
        for name, value in checkpoint.state["configuration"].items()
        if name not in PLACES
    }
    state: dict[str, Any] = {**checkpoint.state, "configuration": settings}
    learner_state: dict[str, Any] = {name: [] for name in LEARNER_KEYS}
    exported = CheckpointStore(out / CHECKPOINTS_NAME).save(
        checkpoint.step, checkpoint.controller, learner_state, state, checkpoint.metric
    )
    curve = folder.parent.parent / PRICE_CURVE_NAME
    if curve.is_file():
        shutil.copy(curve, out)
    return exported


def main() -> int:
    """Exports, and says where to."""
    config = command_line()
    folder = export(config.run, config.out)
    size_kb = sum(file.stat().st_size for file in folder.iterdir()) / 1e3
    Console(soft_wrap=True, highlight=False).print(
        f"{config.out}: {size_kb:.0f} kB; to try it, give it to generate.py with --controller"
    )
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
