"""Trains the two-stage controller with joint GRPO.

    python launch/joint_grpo.py [RECIPE | doctor] [--option value ...]

The recipes are embedded (default), embedded-warm, embedded-grpo, molmoe-h100 and earlier;
`RECIPE --help` lists the options of one. `doctor` checks a Ray cluster and names what would go
wrong on it.
"""

import sys

from launch.cluster.signals import stop_quietly

if __name__ == "__main__":
    stop_quietly()

from launch.cluster.config import DoctorConfig
from launch.cluster.console import check_first, one_clear_error
from launch.run.command_line import configuration, doctor_configuration, print_configuration
from launch.run.recipes import JointGRPOConfig


def command_line() -> JointGRPOConfig | DoctorConfig:
    """Reads the command line."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["doctor"]:
        return doctor_configuration(arguments[1:])
    return configuration(arguments, __doc__)


if __name__ == "__main__":
    check_first(command_line)  # before the imports that take seconds

from launch.cluster.doctor import doctor
from launch.cluster.signals import Stopped
from launch.run.held_out import evaluate
from launch.run.opening import open_run
from launch.run.state import Run
from launch.run.step_report import report_step
from launch.run.supervise import supervise


def train(run: Run) -> None:
    """A step: broadcast, collect, learn from measured and from remembered groups, update."""
    learner, fleet, watch = run.learner, run.fleet, run.watch
    if run.evaluation_pending:
        evaluate(run)  # the last invocation ended before it or within it
    for step in range(run.next_step, run.config.steps):
        run.broadcast()
        run.commit_if_due()
        groups = run.collect()
        reward = run.rewards(groups)
        with watch.part("learn"):
            measured = learner.learn_from_groups(
                groups, reward.score, reward.constraint, run.worth()
            )
        with watch.part("gradient"):  # through the frozen model, back to the budget token
            gradients = fleet.budget_gradients(groups, measured.latency_token_grads)
        with watch.part("learn"):
            learner.learn_from_memory(groups)
            update = learner.update(measured, gradients)
        run.finish_step(groups)
        report_step(run, step, groups, reward, update)
        if run.evaluation_pending:
            evaluate(run)
        if run.is_stopping():
            raise Stopped
    run.commit()


def main() -> int:
    """Runs what the command line asks for."""
    config = command_line()
    if isinstance(config, DoctorConfig):
        return doctor(config)
    if config.print_config:
        return print_configuration(config)
    with open_run(config) as run:
        return supervise(run, train)


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
