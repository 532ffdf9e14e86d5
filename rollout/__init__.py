"""The frozen model, its executor, its clock and group rollouts."""
