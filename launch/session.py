"""One invocation of joint GRPO: configuration in, exit code out."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import tyro
from rich.console import Console

from envs.reward import LambdaByBudget
from launch.calibration import Calibration, EndLatencies, calibrated, recalibrated
from launch.cluster import RayFleet
from launch.console import connect
from launch.doctor import doctor
from launch.evaluation import evaluate, feasible_budgets
from launch.plots import curves_figure
from launch.recipes import RECIPES, JointGRPOConfig
from launch.remote_learner import LearnerLostError, RemoteLearner
from launch.reporting import Reporter
from launch.storage import fetch_latest, is_uri, mirror, staging_folder
from launch.training import (
    Run,
    Stopped,
    budgets_from_state,
    calibration_from_state,
    check_resumable,
    controller_config,
)
from launch.warm_start import warm_start_from_profile
from learner.actor import initial_controller
from learner.checkpoint import Checkpoint, CheckpointStore
from learner.learner import Learner
from rollout.build import EMBEDDED, build_worker, resolve_folder
from rollout.latency.profile_table import ProfileTable
from rollout.latency.simulated import SimulatedLatency
from rollout.molmoe import MolmoEConfig
from rollout.worker import PolicySetup

JOB_FOLDER = "working_dir_files"
"""Part of the path of a Ray job's unpacked working folder, which does not last."""

MAX_LEARNER_RESTARTS = 20


def main(train: Callable[[Run], None], arguments: list[str] | None = None) -> int:
    """Reads the command line and runs it with the given loop; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["doctor"]:
        return doctor(arguments[1:])
    if not arguments or arguments[0] not in (*RECIPES, "-h", "--help"):
        arguments = ["embedded", *arguments]
    recipes = {name: ((recipe.__doc__ or "").strip(), recipe()) for name, recipe in RECIPES.items()}
    config = tyro.extras.overridable_config_cli(
        recipes, args=arguments, prog="joint_grpo.py", description=__doc__
    )
    if config.print_config:
        Console().print_json(json.dumps(dataclasses.asdict(config), default=str))
        return 0
    return Session(config, train).run()


def resolve_run_dir(run_dir: str) -> Path:
    """The folder of a run, absolute; raises ValueError for one that would not last."""
    cwd = Path.cwd()
    if not run_dir and JOB_FOLDER in cwd.parts:
        raise ValueError(
            "inside a Ray job give an absolute --run-dir: the job's working folder does not last"
        )
    path = Path(run_dir) if run_dir else cwd / "runs" / time.strftime("%Y%m%d-%H%M%S")
    path = path.expanduser()
    if not path.is_absolute() and JOB_FOLDER in cwd.parts:
        raise ValueError(f"--run-dir {run_dir} is relative, inside a Ray job: give an absolute one")
    path = path.absolute()
    if JOB_FOLDER in path.parts:
        raise ValueError(
            f"--run-dir {path} is inside the job's temporary working folder and would be lost: "
            "give a folder outside it"
        )
    return path


class Session:
    """One invocation: a Ray connection, a fleet, and runs of the loop until it ends."""

    measured: EndLatencies
    calibration: Calibration

    def __init__(self, config: JointGRPOConfig, train: Callable[[Run], None]) -> None:
        self.train = train
        if config.dry_run:
            config = dataclasses.replace(config, steps=1, checkpoint_every=1)
        self.config = config
        self.uri = config.run_dir if is_uri(config.run_dir) else ""
        self.run_dir = staging_folder(self.uri) if self.uri else resolve_run_dir(config.run_dir)
        self.simulated = (
            SimulatedLatency.from_file(config.simulated_latency)
            if config.simulated_latency
            else None
        )
        self.label = f"SIMULATED LATENCY {self.simulated.label}" if self.simulated else ""
        self.is_stopping = False

    def run(self) -> int:
        """Trains to the end; returns 0, or 143 if it was asked to stop."""
        config = self.config
        model = EMBEDDED if config.worker.model == "embedded" else config.worker.model
        self.d_model = MolmoEConfig.from_folder(resolve_folder(model)).d_model
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if self.uri:
            fetch_latest(self.uri, self.run_dir)
        store = CheckpointStore(self.run_dir / "checkpoints", config.keep_last)
        checkpoint = store.load_latest()
        if checkpoint is not None:
            check_resumable(checkpoint, config, self.label)
        connect(config.cluster.address)
        # Behind ray.init, which installs a handler of its own.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        fleet = None
        try:
            fleet = self._start_fleet()
            return self._train_until_done(fleet, store, checkpoint)
        except Stopped:
            logging.warning("stopped before the first step")
            return 143
        finally:
            if fleet is not None:
                fleet.shutdown()

    def _stop(self, number: int, _frame: Any) -> None:
        logging.warning("signal %d: stopping with a checkpoint", number)
        self.is_stopping = True

    def _start_fleet(self) -> RayFleet:
        config = self.config
        wants_gpu = config.worker.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        return RayFleet(
            functools.partial(build_worker, config.worker, simulated=self.simulated),
            config.cluster,
            num_threads=config.worker.num_threads,
            wants_gpu=wants_gpu,
            is_stopping=lambda: self.is_stopping,
        )

    def _train_until_done(
        self, fleet: RayFleet, store: CheckpointStore, checkpoint: Checkpoint | None
    ) -> int:
        settings = self.config.budget
        if checkpoint is not None:
            budgets = budgets_from_state(checkpoint.state)
            self.calibration = calibration_from_state(checkpoint.state)
        else:
            self.measured = EndLatencies.measure(fleet, settings.num_samples)
            self.calibration = self.measured.calibration
            budgets = settings.fixed() or self.measured.budgets(settings.infeasible_share)
        setup = PolicySetup(controller=controller_config(self.d_model, budgets), budgets=budgets)
        for _ in range(MAX_LEARNER_RESTARTS):
            run = self._assemble(fleet, store, setup, checkpoint)
            try:
                self.train(run)
                self._finish(run, fleet)
                return 0
            except Stopped:
                run.save()
                run.reporter.say(f"stopped before step {run.next_step + 1}, checkpoint written")
                return 143
            except LearnerLostError as error:
                run.reporter.say(f"{error}: starting it again from the last checkpoint")
                checkpoint = store.load_latest()
            finally:
                run.reporter.close()
        raise RuntimeError(f"the learner was lost {MAX_LEARNER_RESTARTS} times: see the log above")

    def _assemble(
        self,
        fleet: RayFleet,
        store: CheckpointStore,
        setup: PolicySetup,
        checkpoint: Checkpoint | None,
    ) -> Run:
        config = self.config
        steering = LambdaByBudget(config.pid, setup.budgets)
        next_step = 0
        if checkpoint is not None:
            steering.load_state_dict(checkpoint.state["steering"])
            next_step = int(checkpoint.state["next_step"])
        state = self._warm_started(fleet, setup) if checkpoint is None else checkpoint.learner_state
        run = Run(
            config=config,
            setup=setup,
            fleet=fleet,
            learner=RemoteLearner(setup.controller, config, self.run_dir, state),
            reporter=Reporter(
                self.run_dir, first_step=next_step, num_steps=config.steps, label=self.label
            ),
            store=store,
            steering=steering,
            calibration=self.calibration,
            next_step=next_step,
            is_stopping=lambda: self.is_stopping,
            on_saved=functools.partial(mirror, uri=self.uri) if self.uri else lambda _path: None,
        )
        budgets = setup.budgets
        run.reporter.say(
            f"run {self.run_dir}  actors {len(fleet.slots)}  budgets {budgets.range.low_ms:.1f}.."
            f"{budgets.range.high_ms:.1f} ms, feasible from {budgets.feasible_from_ms:.1f} ms  "
            f"{'resumes at' if next_step else 'starts with'} step {next_step + 1}"
        )
        if checkpoint is None:
            run.save()
        return run

    def _warm_started(self, fleet: RayFleet, setup: PolicySetup) -> dict[str, Any] | None:
        """The learner's first state if the run starts from a profile, None from scratch."""
        config = self.config
        if config.warm_start_profile is None:
            return None
        profile = ProfileTable.load(config.warm_start_profile)
        table, scatter = calibrated(profile, self.measured)
        controller = initial_controller(setup.controller, config.seed)
        record = warm_start_from_profile(controller, table, setup.budgets, fleet, scatter=scatter)
        logging.info(
            "warm start from %s: its likeliest choices lose %.3f against the best, %.3f before",
            config.warm_start_profile,
            record.regret_after,
            record.regret_before,
        )
        return Learner(controller, config.learner, self.run_dir).state_dict()

    def _finish(self, run: Run, fleet: RayFleet) -> None:
        """One greedy sweep over the test split, and the run's curves as one picture.

        The devices are measured again: what the clock has drifted since is not the controller's.
        """
        settings = self.config.evaluation
        setup = recalibrated(
            run.setup,
            run.calibration,
            EndLatencies.measure(fleet, run.calibration.num_samples),
            keeps_budgets=self.config.budget.fixed() is not None,
        )
        result = evaluate(
            run.fleet,
            setup,
            run.learner.weights(),
            split="test",
            num_samples=settings.num_samples,
            budgets_ms=feasible_budgets(setup.budgets, settings.num_budgets).tolist(),
        )
        path = self.run_dir / "evaluation.json"
        row = {"latency_source": self.label or "measured", **result.to_json()}
        path.write_text(json.dumps(row) + "\n")
        curves_figure(run.reporter.rows()).savefig(self.run_dir / "curves.png", dpi=110)
        run.reporter.say(
            f"test split: in budget {result.in_budget_accuracy:.3f}, violations "
            f"{float(result.violations.mean()):.1%}  evaluation {path}  "
            f"curves {self.run_dir / 'curves.png'}  checkpoint {run.store.root}"
        )
