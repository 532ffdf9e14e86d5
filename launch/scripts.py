"""The programs of this folder as console scripts; see `[project.scripts]` in pyproject.toml."""

import runpy


def _run(program: str) -> None:
    """Runs a program just as `python launch/PROGRAM.py` does, which ends this process."""
    runpy.run_module(f"launch.{program}", run_name="__main__", alter_sys=True)


def joint_grpo() -> None:
    """Training: launch/joint_grpo.py."""
    _run("joint_grpo")


def evaluate() -> None:
    """Evaluation against the rivals: launch/evaluate.py."""
    _run("evaluate")


def report() -> None:
    """A run as one page: launch/report.py."""
    _run("report")


def export_controller() -> None:
    """The controller of a run, to be shared: launch/export_controller.py."""
    _run("export_controller")


def generate() -> None:
    """One answer: launch/generate.py."""
    _run("generate")


def tour() -> None:
    """The same question at several budgets and prices: launch/tour.py."""
    _run("tour")


def serve() -> None:
    """The server: launch/serve.py."""
    _run("serve")


def profile_knobs() -> None:
    """Measurements of all configurations: launch/profile_knobs.py."""
    _run("profile_knobs")


def importance() -> None:
    """Block importance: launch/block_importance.py."""
    _run("block_importance")


def fit_latency_estimator() -> None:
    """The standalone latency estimator: launch/fit_latency_estimator.py."""
    _run("fit_latency_estimator")
