"""Names of trackers, and whether they can be used; imports none of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from launch.tracking.wandb_backend import check_login

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Finds users' mistakes before anything starts.

    Raises:
        ValueError: a tracker is named twice, is not installed, or has no account.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--trackers names {name} twice: name each once")
        found = find_spec(name)
        if found is None or found.origin is None:  # a mere folder of this name is no package
            raise ValueError(
                f"--trackers {name}: the package is not installed: pip install -e '.[{name}]'"
            )
    if "wandb" in names:
        check_login()
