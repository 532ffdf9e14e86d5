"""The frozen model, its executor, its clock and group rollouts."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollout.build import make_env

__all__ = ["make_env"]


def __getattr__(name: str) -> Any:
    """Imports `make_env` when it is needed: the model itself runs without gymnasium."""
    if name == "make_env":
        from rollout.build import make_env

        return make_env
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
