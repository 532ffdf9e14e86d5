"""Trains the two-stage controller with joint GRPO.

    python launch/joint_grpo.py [RECIPE | doctor] [--option value ...]

The recipes are embedded (default), embedded-warm, molmoe-h100 and earlier; `RECIPE --help` lists
the options of one. `doctor` checks a Ray cluster and names what would go wrong on it.
"""

import sys

from launch.cluster.signals import stop_quietly

if __name__ == "__main__":
    stop_quietly()

from launch.cluster.console import one_clear_error
from launch.cluster.signals import Stopped
from launch.run.session import run_command
from launch.run.state import Run
from learner.scalars import rewards_of


def train(run: Run) -> None:
    """The loop: submit, collect, compute gradients through the model, update, broadcast."""
    watch = run.watch
    if run.evaluation_pending:
        run.evaluate()  # the last invocation ended before it or within it
    for step in range(run.next_step, run.config.steps):
        run.submit()
        run.commit_if_due()
        groups = run.collect()
        reward = rewards_of(groups, run.reward_function())
        with watch.part("learn"):
            pending = run.learner.prepare(
                groups, reward.score, reward.constraint, run.lambda_control.costs
            )
        with watch.part("gradient"):
            gradients = run.fleet.budget_gradients(groups, pending.latency_token_grads)
        with watch.part("learn"):
            update = run.learner.apply(pending, gradients)
        run.finish_step(groups)
        run.report(step, groups, reward, update)
        if run.evaluation_pending:
            run.evaluate()
        if run.is_stopping():
            raise Stopped
    run.commit()


def main() -> int:
    """Reads the command line and runs it."""
    return run_command(train)


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
