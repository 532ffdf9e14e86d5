"""Runs the training loop to its end despite lost learners, signals and errors."""

from __future__ import annotations

import logging
from collections.abc import Callable

from launch.cluster.remote_learner import LearnerLostError, LearnerStateLostError, RemoteLearner
from launch.cluster.signals import TERMINATED, Stopped
from launch.cluster.slots import InputLostError
from launch.run.final_evaluation import finish
from launch.run.opening import remote_learner
from launch.run.state import Run
from learner.update import NonFiniteUpdateError

MAX_LEARNER_RESTARTS = 20

Train = Callable[[Run], None]
"""A training loop, which can be left and entered again between any two calls."""


def supervise(run: Run, train: Train) -> int:
    """Trains and evaluates; the last whole step is saved even if the run fails.

    Returns:
        The exit code: 0, or 143 if the run was asked to stop.
    """
    try:
        train_over_lost_learners(run, train)
        finish(run)
    except Stopped:
        run.commit()
        run.reporter.say(
            f"stopped after {run.next_step} of {run.config.steps} steps, checkpoint written"
        )
        return TERMINATED
    except NonFiniteUpdateError as error:
        _commit_on_the_way_out(run)
        folder = run.store.root.parent
        raise RuntimeError(f"{error}; the batch is in {error.save(folder)}") from None
    except Exception:
        _commit_on_the_way_out(run)
        raise
    return 0


def train_over_lost_learners(run: Run, train: Train) -> None:
    """Runs the loop, and enters it again whenever the learner was lost and replaced."""
    assert isinstance(run.learner, RemoteLearner)
    is_lost = False
    for _ in range(MAX_LEARNER_RESTARTS):
        try:
            if is_lost:
                run.learner.restart()
            train(run)
            return
        except (LearnerStateLostError, InputLostError):
            _return_to_checkpoint(run)
            is_lost = False
        except LearnerLostError as error:
            run.reporter.say(f"{error}: another one continues where the last update left off")
            is_lost = True
    raise RuntimeError(f"the learner was lost {MAX_LEARNER_RESTARTS} times: the log above says why")


def _return_to_checkpoint(run: Run) -> None:
    """Returns to the last checkpoint, because the learner's state or weights were lost."""
    checkpoint = run.store.load_latest(to_resume=True)
    if checkpoint is None:
        raise RuntimeError("the learner's state was lost and there is no checkpoint yet")
    run.fleet.drop_batches()
    if isinstance(run.learner, RemoteLearner):
        run.learner.shutdown()
    run.learner = remote_learner(run.config, run.setup, checkpoint.learner_state)
    run.go_back_to(checkpoint)
    run.reporter.say(f"the learner's node was lost: back to step {run.next_step + 1}")


def _commit_on_the_way_out(run: Run) -> None:
    """Saves the last whole step after a failure; best effort."""
    try:
        run.commit()
        run.reporter.say(f"step {run.next_step} is in {run.store.root}")
    except Exception as error:  # the first error is what the user must see
        logging.warning("no checkpoint could be written on the way out: %s", error)
