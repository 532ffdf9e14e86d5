"""Experiment trackers: where a run's scalars go besides its folder."""
