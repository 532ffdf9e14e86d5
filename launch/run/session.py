"""One invocation of joint GRPO: from the command line to the exit code."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import inspect
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from envs.calibration import Calibration
from envs.spec import BudgetSampler
from envs.tasks.registry import check_names
from launch.cluster.connection import connect
from launch.cluster.console import check_local_paths, nearest
from launch.cluster.doctor import doctor
from launch.cluster.fleet import RayFleet, check_census, open_fleet
from launch.cluster.remote_learner import LearnerLostError, LearnerStateLostError, RemoteLearner
from launch.cluster.signals import Stopped, StopSignals
from launch.cluster.usage import options_from
from launch.cluster.versions import differences
from launch.cluster.waiting import telling
from launch.run.lock import RunLock
from launch.run.object_store import RunStore
from launch.run.outputs import writable_folder
from launch.run.recipes import RECIPES, JointGRPOConfig, to_json
from launch.run.remote_folder import is_uri
from launch.run.reporting import Reporter
from launch.run.resume import (
    STATE_KEYS,
    budgets_from_state,
    calibration_from_state,
    check_resumable,
    fingerprint_from_state,
)
from launch.run.run_folder import claimed, resolve_run_dir, staging_folder
from launch.run.run_metrics import RunMetrics
from launch.run.standing import best_table_accuracy, comparable, finish
from launch.run.state import Run, Stopwatch
from launch.run.uploads import Uploader
from launch.run.warm_start import warm_start_from_profile
from learner.actor import initial_controller
from learner.checkpoint import Checkpoint, CheckpointStore
from learner.lambda_control import LambdaControl
from learner.learner import Learner, NonFiniteUpdateError
from policy.config import PolicySetup
from rollout.block_skipping import BlockImportance
from rollout.build import model_source
from rollout.calibrate import ExtremeLatencies
from rollout.executor_config import check_knobs_fit
from rollout.fingerprint import Fingerprint
from rollout.image_feature import image_dim
from rollout.latency.simulated import SimulatedLatency
from rollout.molmoe.checkpoint import check_shards
from rollout.molmoe.config import resolve_config
from rollout.profiling.conversion import calibrated, check_held_out, places_in
from rollout.profiling.profile_table import ProfileTable

MAX_LEARNER_RESTARTS = 20


def run_command(train: Callable[[Run], None], arguments: list[str] | None = None) -> int:
    """Reads the command line and runs the given training loop; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["doctor"]:
        return doctor(arguments[1:])
    if arguments and not arguments[0].startswith("-") and arguments[0] not in RECIPES:
        known = [*RECIPES, "doctor"]
        close = nearest(arguments[0], known)
        hint = f"did you mean {close}?" if close else f"use one of {', '.join(known)}"
        raise ValueError(f"there is no recipe or command {arguments[0]!r}: {hint}")
    if not arguments or arguments[0] not in (*RECIPES, "-h", "--help"):
        arguments = ["embedded", *arguments]
    recipes = {name: (inspect.getdoc(recipe) or "", recipe()) for name, recipe in RECIPES.items()}
    config = options_from(
        lambda: tyro.extras.overridable_config_cli(
            recipes, args=arguments, prog="joint_grpo.py", description=__doc__
        )
    )
    check_local_paths(config)
    if config.print_config:
        Console().print_json(json.dumps(to_json(config)))
        return 0
    return Session(config, train).run()


class Session:
    """One invocation: a Ray connection, a fleet, and the loop until it is done."""

    calibration: Calibration
    comparison: ProfileTable | None = None

    def __init__(self, config: JointGRPOConfig, train: Callable[[Run], None]) -> None:
        self.train = train
        self.stop = StopSignals()
        self.uploader: Uploader | None = None
        if config.dry_run:
            folder = tempfile.mkdtemp(prefix="dry-run-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            config = dataclasses.replace(config, steps=1, run_dir=folder)
        self.config = config
        self.uri = config.run_dir if is_uri(config.run_dir) else ""
        self.run_dir = staging_folder(self.uri) if self.uri else resolve_run_dir(config.run_dir)
        self.simulated = (
            SimulatedLatency.from_file(config.simulated_latency)
            if config.simulated_latency
            else None
        )
        self.label = f"SIMULATED LATENCY {self.simulated.label}" if self.simulated else ""

    def run(self) -> int:
        """Trains to the end; returns 0, or 143 if the run was asked to stop."""
        self._check_before_ray()
        if not self.config.run_dir:
            self.run_dir = claimed(self.run_dir)
        writable_folder(self.run_dir, "--run-dir")
        with contextlib.ExitStack() as on_exit:
            on_exit.enter_context(RunLock(self.run_dir))
            if self.uri:
                store = RunStore(self.uri, self.run_dir)
                with telling(f"the download of {self.uri}"):
                    store.fetch()
                self.uploader = Uploader(store)
                on_exit.callback(self.uploader.close)
            return self._run_on_ray(self._checkpoint())

    def _run_on_ray(self, checkpoint: Checkpoint | None) -> int:
        connect(self.config.cluster.address)
        self.stop.listen()  # after ray.init, which installs handlers of its own
        fleet = None
        try:
            _say("loading the model on every actor and warming up")
            fleet = open_fleet(
                self.config.worker,
                self.config.cluster,
                simulated=self.simulated,
                is_stopping=self.stop.is_set,
            )
            store = self._store()
            return self._train_until_done(fleet, store, checkpoint)
        except Stopped:
            logging.warning("stopped before the first step: there was nothing to save")
            return 143
        finally:
            if fleet is not None:
                fleet.shutdown()

    def _check_before_ray(self) -> None:
        """Finds users' mistakes that can be found without a cluster."""
        worker = self.config.worker
        check_names(worker.tasks, worker.data)
        if self.config.warm_start_profile is not None:
            self.profile = ProfileTable.load(self.config.warm_start_profile)
            check_held_out(
                self.profile, self.config.evaluation.indices, str(self.config.warm_start_profile)
            )
        comparison = self.config.comparison_profile or self.config.warm_start_profile
        if comparison is not None:
            self.comparison = ProfileTable.load(comparison)
            places_in("validation", self.comparison, str(comparison))
        with telling(f"the configuration of {worker.model}"):
            model = resolve_config(model_source(worker))
        check_shards(Path(model_source(worker)))
        check_knobs_fit(model)
        for path in filter(None, (worker.importance, *worker.importance_by_task.values())):
            BlockImportance.from_file(path, model.n_layers)
        self.widths = model.d_model, image_dim(model) if self.config.sees_image else 0
        if self.run_dir.exists() and not self.run_dir.is_dir():
            raise ValueError(f"--run-dir {self.run_dir} is a file: give a folder")

    def _checkpoint(self) -> Checkpoint | None:
        """The checkpoint to resume from, None for a new run."""
        if not (self.run_dir / "checkpoints").is_dir():
            return None
        store = self._store()
        store.recover()
        checkpoint = store.load_latest()
        if checkpoint is not None:
            self.config = check_resumable(checkpoint, self.config, self.label)
            if changed := differences(checkpoint.state):
                logging.warning("the run goes on with other code or packages: %s", changed)
        return checkpoint

    def _store(self) -> CheckpointStore:
        return CheckpointStore(self.run_dir / "checkpoints", self.config.keep_last, STATE_KEYS)

    def _train_until_done(
        self, fleet: RayFleet, store: CheckpointStore, checkpoint: Checkpoint | None
    ) -> int:
        facts = fleet.pool.first_facts()
        check_census(self.config.worker, facts.census, "train", "validation", "test")
        self.config = self.config.sized_for(fleet.num_actors, self._epoch_samples(facts.census))
        budgets = self._budgets(fleet, checkpoint)
        calibration = None if self.simulated else self.calibration
        setup = PolicySetup.of(*self.widths, budgets, calibration)
        fingerprint = facts.fingerprint
        self._check_fingerprint(fingerprint, checkpoint)
        if self.comparison is not None:
            self.comparison = comparable(self.comparison, fingerprint, calibration)
        run = self._assemble(fleet, store, setup, fingerprint, checkpoint)
        try:
            self._train_over_lost_learners(run, fleet)
            finish(run, fleet, self.comparison, self.label)
        except Stopped:
            run.commit()
            run.reporter.say(
                f"stopped after {run.next_step} of {run.config.steps} steps, checkpoint written"
            )
            return 143
        except NonFiniteUpdateError as error:
            _commit_on_the_way_out(run)
            raise RuntimeError(f"{error}; the batch is in {error.save(self.run_dir)}") from None
        except Exception:
            _commit_on_the_way_out(run)
            raise
        finally:
            run.reporter.close()
        return 0

    def _epoch_samples(self, census: Mapping[str, Mapping[str, int]]) -> int:
        """Training samples of all data sets, which are written down; 0 without data sets."""
        if census:
            path = self.run_dir / "data.json"
            path.write_text(json.dumps(census, indent=1) + "\n")
            for name, counts in census.items():
                _say(f"{name}: " + ", ".join(f"{count:,} {key}" for key, count in counts.items()))
        return sum(counts["train"] for counts in census.values())

    def _budgets(self, fleet: RayFleet, checkpoint: Checkpoint | None) -> BudgetSampler:
        """The run's budgets: saved ones, or measured ones, or given ones checked by measuring."""
        if checkpoint is not None:
            self.calibration = calibration_from_state(checkpoint.state)
            return budgets_from_state(checkpoint.state)
        settings = self.config.budget
        _say(f"measuring latencies on {settings.num_samples} samples")
        measured, stated = ExtremeLatencies.measure(fleet, settings.num_samples), settings.fixed()
        self.calibration = measured.calibration
        if stated is not None:
            measured.check_straddles(stated)
        return stated or measured.budgets(settings.share_below)

    def _check_fingerprint(self, fingerprint: Fingerprint, checkpoint: Checkpoint | None) -> None:
        """Refuses a checkpoint or profile of another model, other tasks or another device."""
        if checkpoint is not None:
            saved = fingerprint_from_state(checkpoint.state)
            if saved is not None:
                saved.check_same(
                    fingerprint,
                    f"the run in {self.run_dir}",
                    "this fleet",
                    "resume with the same settings, or use a new run-dir",
                )
        elif self.config.warm_start_profile is not None:
            self.profile.check_fingerprint(
                fingerprint, str(self.config.warm_start_profile), "this fleet"
            )

    def _train_over_lost_learners(self, run: Run, fleet: RayFleet) -> None:
        """Runs the loop, and enters it again whenever the learner was lost and replaced."""
        assert isinstance(run.learner, RemoteLearner)
        is_lost = False
        for _ in range(MAX_LEARNER_RESTARTS):
            try:
                if is_lost:
                    run.learner.restart()
                self.train(run)
                return
            except LearnerStateLostError:
                self._restore(run, fleet)
                is_lost = False
            except LearnerLostError as error:
                run.reporter.say(f"{error}: another one continues where the last update left off")
                is_lost = True
        raise RuntimeError(
            f"the learner was lost {MAX_LEARNER_RESTARTS} times: the log above says why"
        )

    def _restore(self, run: Run, fleet: RayFleet) -> None:
        """Returns to the last checkpoint, because the learner's state was lost with its node."""
        checkpoint = run.store.load_latest()
        if checkpoint is None:
            raise RuntimeError("the learner's state was lost and there is no checkpoint yet")
        fleet.drop_batches()
        run.learner = self._learner(run.setup, checkpoint.learner_state)
        run.go_back_to(checkpoint)
        run.reporter.say(f"the learner's node was lost: back to step {run.next_step + 1}")

    def _learner(self, setup: PolicySetup, state: dict[str, Any] | None) -> RemoteLearner:
        return RemoteLearner(
            setup.controller,
            self.config.learner,
            seed=self.config.seed,
            timeout_s=self.config.cluster.learner_timeout_s,
            state=state,
        )

    def _assemble(
        self,
        fleet: RayFleet,
        store: CheckpointStore,
        setup: PolicySetup,
        fingerprint: Fingerprint | None,
        checkpoint: Checkpoint | None,
    ) -> Run:
        config, metrics = self.config, RunMetrics()
        if checkpoint is not None:
            fleet.stats.continue_from(checkpoint.state.get("fleet_counts", {}))
            state: dict[str, Any] | None = checkpoint.learner_state
        else:
            state = self._warm_started(fleet, setup)
        run = Run(
            config=config,
            setup=setup,
            fleet=fleet,
            learner=self._learner(setup, state),
            reporter=Reporter(
                self.run_dir, num_steps=config.steps, clock=fleet.clock_name, label=self.label
            ),
            store=store,
            lambda_control=LambdaControl(config.pid, setup.budgets),
            calibration=self.calibration,
            fingerprint=fingerprint,
            best_table_accuracy=best_table_accuracy(
                self.comparison, setup.budgets.evenly(config.evaluation.num_budgets)
            ),
            uri=self.uri,
            is_stopping=self.stop.is_set,
            on_saved=self.uploader.submit if self.uploader else lambda _path: None,
            on_step=metrics.step,
            watch=Stopwatch(on_part=metrics.enter),
        )
        if checkpoint is None:
            run.reporter.begin_at(0)
            run.commit()
        else:
            run.go_back_to(checkpoint)
        run.reporter.say(_first_line(run, self.run_dir, fleet))
        return run

    def _warm_started(self, fleet: RayFleet, setup: PolicySetup) -> dict[str, Any] | None:
        """The learner's initial state after the warm start; None without a profile."""
        config = self.config
        if config.warm_start_profile is None:
            return None
        _say("warm start from the profile, converted to this run's milliseconds")
        table = calibrated(self.profile, self.calibration).denoised()
        controller = initial_controller(setup.controller, config.seed)
        record = warm_start_from_profile(
            controller, table, setup.budgets, fleet, scatter=self.calibration.scatter
        )
        logging.info(
            "warm start from %s: regret of the most likely choices %.3f, before it %.3f",
            config.warm_start_profile,
            record.regret_after,
            record.regret_before,
        )
        return Learner(controller, config.learner, config.seed).state_dict()


def _first_line(run: Run, run_dir: Path, fleet: RayFleet) -> str:
    budgets, steps = run.setup.budgets, run.config.steps
    begins = (
        f"{'resumes at' if run.next_step else 'starts with'} step {run.next_step + 1} of {steps}"
    )
    return (
        f"run {run_dir}  actors {fleet.num_actors}  groups per step {run.config.groups_per_step}  "
        f"clock {fleet.clock_name}  budgets {budgets.uniform_from_ms:.1f}.."
        f"{budgets.range.high_ms:.1f} ms  "
        f"{f'all {steps} steps are done' if run.next_step == steps else begins}"
    )


def _say(text: str) -> None:
    """Prints progress before there is a run that reports it."""
    Console(soft_wrap=True, highlight=False).print(f"{text} ...", markup=False)


def _commit_on_the_way_out(run: Run) -> None:
    """Saves the last whole step, whatever ended the run; best effort."""
    try:
        run.commit()
        run.reporter.say(f"step {run.next_step} is in {run.store.root}")
    except Exception as error:  # the first error is what the user must see
        logging.warning("no checkpoint could be written on the way out: %s", error)
