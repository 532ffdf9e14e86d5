"""The programs of this folder as console scripts; see `[project.scripts]` in pyproject.toml."""

from importlib import import_module

from launch.cluster.signals import stop_quietly


def _run(program: str) -> int:
    stop_quietly()  # importing a program takes seconds
    from launch.cluster.console import one_clear_error

    return one_clear_error(import_module(f"launch.{program}").main)


def joint_grpo() -> int:
    """Training: launch/joint_grpo.py."""
    return _run("joint_grpo")


def evaluate() -> int:
    """Evaluation against the rivals: launch/evaluate.py."""
    return _run("evaluate")


def report() -> int:
    """A run as one page: launch/report.py."""
    return _run("report")


def export_controller() -> int:
    """The controller of a run, to be shared: launch/export_controller.py."""
    return _run("export_controller")


def generate() -> int:
    """One answer: launch/generate.py."""
    return _run("generate")


def serve() -> int:
    """The server: launch/serve.py."""
    return _run("serve")


def profile_knobs() -> int:
    """Measurements of all configurations: launch/profile_knobs.py."""
    return _run("profile_knobs")


def importance() -> int:
    """Block importance: launch/block_importance.py."""
    return _run("block_importance")


def fit_latency_estimator() -> int:
    """The standalone latency estimator: launch/fit_latency_estimator.py."""
    return _run("fit_latency_estimator")
