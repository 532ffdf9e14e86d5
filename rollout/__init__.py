"""The frozen model, its executor, its clock and group rollouts."""

from rollout.build import make_env

__all__ = ["make_env"]
