"""Joint GRPO training of the two-stage controller.

python launch/joint_grpo.py [RECIPE | doctor] [--option value ...]

Recipes: embedded (default), embedded-scratch, molmoe-h100, earlier.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder would come first, and its profile.py shadow the standard library's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections import deque

from launch.training import Run, Stopped
from learner.metrics import rewards_of


def train(run: Run) -> None:
    """The loop: draw, roll out, advantages, gradients through the model, update, broadcast."""
    config, watch = run.config, run.watch
    in_flight: deque[int] = deque()
    drawn = run.next_step
    for step in range(run.next_step, config.steps):
        while drawn <= min(step + config.max_staleness, config.steps - 1):
            in_flight.append(run.fleet.submit(run.draw(drawn), run.setup, run.learner.weights()))
            drawn += 1
        with watch.part("rollout"):
            groups = run.fleet.collect(in_flight.popleft())
        reward = rewards_of(groups, run.reward_function())
        with watch.part("learn"):
            pending = run.learner.prepare(groups, reward.score, reward.constraint)
        with watch.part("gradient"):
            gradients = run.fleet.budget_gradients(groups, pending.latency_token_grads)
        with watch.part("learn"):
            update = run.learner.apply(pending, gradients)
        run.finish_step(groups)
        run.report(step, groups, reward, update)
        is_last = run.next_step == config.steps
        if is_last or run.next_step % config.evaluation.every == 0:
            with watch.part("evaluate"):
                run.evaluate(step)
        if is_last or run.next_step % config.checkpoint_every == 0:
            with watch.part("checkpoint"):
                run.save()
        if run.is_stopping():
            raise Stopped


if __name__ == "__main__":
    from launch.console import one_clear_error
    from launch.session import main

    sys.exit(one_clear_error(lambda: main(train)))
