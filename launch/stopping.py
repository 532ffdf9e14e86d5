"""How a run is asked to stop."""


class Stopped(Exception):
    """The run was asked to stop; whoever called the loop writes a checkpoint."""
