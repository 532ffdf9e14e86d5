"""Opens a run: its folder, its fleet, its budgets and its learner, new or from a checkpoint."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console

from envs.budgets import BudgetSampler
from envs.calibration import Calibration
from launch.analysis.interleaved import Comparison
from launch.analysis.settings import flat
from launch.cluster.connection import connect
from launch.cluster.faults import FaultInjector
from launch.cluster.fleet import RayFleet, check_census, open_fleet
from launch.cluster.remote_learner import RemoteLearner
from launch.cluster.signals import StopSignals
from launch.cluster.versions import differences
from launch.cluster.waiting import telling
from launch.run.final_evaluation import comparable, rival_levels
from launch.run.preflight import Preflight
from launch.run.recipes import JointGRPOConfig, to_json
from launch.run.reporting import Reporter
from launch.run.resume import (
    STATE_KEYS,
    budgets_from_state,
    calibration_from_state,
    check_resumable,
    fingerprint_from_state,
)
from launch.run.run_metrics import RunMetrics
from launch.run.state import Run, Stopwatch
from launch.run.warm_start import warm_start_from_profile
from launch.storage.inputs import is_uri
from launch.storage.lock import RunLock
from launch.storage.object_store import RunStore
from launch.storage.outputs import writable_folder
from launch.storage.retries import OUTAGE
from launch.storage.run_folder import claimed, resolve_run_dir, staging_folder
from launch.storage.starts import Start
from launch.storage.uploads import Uploader
from launch.tracking.choosing import open_trackers
from launch.tracking.tracker import TrackedRun
from learner.actor import initial_controller
from learner.checkpoint import Checkpoint, CheckpointStore
from learner.lambda_control import LambdaControl
from learner.learner import Learner
from policy.config import PolicySetup
from rollout.calibrate import ExtremeLatencies
from rollout.fingerprint import Fingerprint
from rollout.latency.simulated import SimulatedLatency
from rollout.profiling.conversion import calibrated


@contextlib.contextmanager
def open_run(config: JointGRPOConfig) -> Iterator[Run]:
    """A run that is ready for its next step; everything is closed again when the block ends.

    Users' mistakes are reported first; then the folder is locked and the newest checkpoint read.
    Only then is a cluster contacted.

    Raises:
        ValueError: the configuration cannot be run, or not resumed.
        Stopped: a signal came before there was a run.
    """
    with contextlib.ExitStack() as on_exit:
        if config.dry_run:
            folder = tempfile.mkdtemp(prefix="dry-run-")
            on_exit.callback(shutil.rmtree, folder, ignore_errors=True)
            config = replace(config, steps=1, run_dir=folder, trackers=("tensorboard",))
        run_dir = _checked_folder(config)
        simulated = None
        if config.simulated_latency:
            simulated = SimulatedLatency.from_file(config.simulated_latency)
        checked = Preflight.of(config)
        run_dir = run_dir if config.run_dir else claimed(run_dir)
        writable_folder(run_dir, "--run-dir")
        on_exit.enter_context(RunLock(run_dir))
        uploader = _fetched(config.run_dir, run_dir) if is_uri(config.run_dir) else None
        if uploader is not None:
            on_exit.callback(uploader.close)
        opening = Opening(config, run_dir, simulated)
        checkpoint = opening.newest_checkpoint()
        stop = StopSignals()
        connect(config.cluster.address)
        stop.listen()  # after ray.init, which installs handlers of its own
        say("loading the model on every actor and warming up")
        fleet = open_fleet(
            config.worker, config.cluster, simulated=simulated, is_stopping=stop.is_set
        )
        on_exit.callback(fleet.shutdown)
        run = opening.run(fleet, checked, checkpoint)
        on_exit.callback(run.reporter.close)
        run.is_stopping = stop.is_set
        if uploader is not None:
            run.uri, run.on_saved = uploader.store.uri, uploader.submit
        if checkpoint is None:
            run.reporter.begin_at(0)
            run.evaluation_pending = True
            run.commit()
        else:
            run.go_back_to(checkpoint)
        device = asdict(fleet.pool.first_facts().facts)
        Start.now(run.next_step, fleet.num_actors, device).append_to(run_dir)
        run.reporter.say(_first_line(run, run_dir, fleet))
        if config.faults.is_on:
            on_exit.enter_context(faults_of(run, fleet))
        yield run


def faults_of(run: Run, fleet: RayFleet) -> FaultInjector:
    """What injects the faults of a run's configuration."""

    def learner() -> Any:
        assert isinstance(run.learner, RemoteLearner)
        return run.learner.actor

    return FaultInjector(run.config.faults, lambda: fleet.pool.slots, learner, OUTAGE.begin)


def _checked_folder(config: JointGRPOConfig) -> Path:
    """The run's local folder, which need not exist yet."""
    is_remote = is_uri(config.run_dir)
    run_dir = staging_folder(config.run_dir) if is_remote else resolve_run_dir(config.run_dir)
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"--run-dir {run_dir} is a file: give a folder")
    return run_dir


def _fetched(uri: str, run_dir: Path) -> Uploader:
    """Brings a run from its object store up to date here; gives what uploads it again."""
    home = RunStore(uri, run_dir)
    with telling(f"the download of {uri}"):
        home.fetch()
    return Uploader(home)


class Opening:
    """The steps from a folder and a fleet to a run.

    Args:
        config: the configuration as given; `run` completes it.
        run_dir: the run's local folder, locked.
        simulated: latencies that replace the clock's.
    """

    def __init__(
        self, config: JointGRPOConfig, run_dir: Path, simulated: SimulatedLatency | None = None
    ) -> None:
        self.config, self.run_dir, self.simulated = config, run_dir, simulated
        self.label = f"SIMULATED LATENCY {simulated.label}" if simulated else ""

    def store(self) -> CheckpointStore:
        """The run's checkpoints; makes their folder, so not before there is a run to keep."""
        return CheckpointStore(self.run_dir / "checkpoints", self.config.keep_last, STATE_KEYS)

    def newest_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to resume from, None for a new run.

        Raises:
            ValueError: it cannot be resumed with this configuration.
        """
        if not (self.run_dir / "checkpoints").is_dir():
            return None
        store = self.store()
        store.recover()
        checkpoint = store.load_latest(to_resume=True)
        if checkpoint is not None:
            self.config = check_resumable(checkpoint, self.config, self.label)
            if changed := differences(checkpoint.state):
                logging.warning("the run continues with other code or packages: %s", changed)
        return checkpoint

    def run(self, fleet: RayFleet, checked: Preflight, checkpoint: Checkpoint | None) -> Run:
        """The run on a fleet that is warm.

        Raises:
            ValueError: the fleet runs another model, other tasks or another device than the
                checkpoint or a profile was made on, or a split has no samples.
        """
        facts = fleet.pool.first_facts()
        check_census(self.config.worker, facts.census, "train", "validation", "test")
        samples = self._epoch_samples(facts.census)
        config = self.config.sized_for(fleet.num_actors, samples)
        budgets, calibration = self._budgets(fleet, checkpoint)
        calibrated_to = None if self.simulated else calibration
        setup = PolicySetup.of(
            *checked.widths, budgets, calibrated_to, config.price.sampler(), config.price.deployed
        )
        self._check_fingerprint(facts.fingerprint, checked, checkpoint)
        comparison = checked.comparison
        if comparison is not None:
            comparison = comparable(comparison, facts.fingerprint, calibrated_to)
        if checkpoint is not None:
            fleet.stats.continue_from(checkpoint.state.get("fleet_counts", {}))
            state: dict[str, Any] | None = checkpoint.learner_state
        else:
            state = self._warm_started(checked, fleet, setup, calibration)
        metrics = RunMetrics()
        return Run(
            config=config,
            setup=setup,
            fleet=fleet,
            learner=remote_learner(config, setup, state),
            reporter=Reporter(
                self.run_dir,
                num_steps=config.steps,
                clock=fleet.clock_name,
                label=self.label,
                trackers=open_trackers(config.trackers, self._tracked(config)),
            ),
            store=self.store(),
            lambda_control=LambdaControl(config.pid, budgets),
            calibration=calibration,
            fingerprint=facts.fingerprint,
            comparison=(
                None if comparison is None else Comparison(profile=comparison, fleet=fleet)
            ),
            rival_levels=rival_levels(
                comparison,
                budgets.evenly(config.evaluation.num_budgets),
                config.price.deployed,
                calibration.full_ms,
            ),
            on_step=metrics.step,
            watch=Stopwatch(on_part=metrics.enter),
        )

    def _tracked(self, config: JointGRPOConfig) -> TrackedRun:
        """What trackers call the run, and its settings."""
        name = PurePosixPath(config.run_dir).name or self.run_dir.name
        return TrackedRun(name=name, folder=self.run_dir, config=flat(to_json(config)))

    def _epoch_samples(self, census: Mapping[str, Mapping[str, int]]) -> int:
        """Training samples of all data sets, which are written down; 0 without data sets."""
        if census:
            path = self.run_dir / "data.json"
            path.write_text(json.dumps(census, indent=1) + "\n")
            for name, counts in census.items():
                say(f"{name}: " + ", ".join(f"{count:,} {key}" for key, count in counts.items()))
        return sum(counts["train"] for counts in census.values())

    def _budgets(
        self, fleet: RayFleet, checkpoint: Checkpoint | None
    ) -> tuple[BudgetSampler, Calibration]:
        """The run's budgets: saved ones, or measured ones, or given ones checked by measuring."""
        if checkpoint is not None:
            return budgets_from_state(checkpoint.state), calibration_from_state(checkpoint.state)
        settings = self.config.budget
        say(f"measuring latencies on {settings.num_samples} samples")
        measured, stated = ExtremeLatencies.measure(fleet, settings.num_samples), settings.fixed()
        if stated is not None:
            measured.check_straddles(stated)
        return stated or measured.budgets(settings.share_below), measured.calibration

    def _check_fingerprint(
        self, fingerprint: Fingerprint, checked: Preflight, checkpoint: Checkpoint | None
    ) -> None:
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
        elif checked.warm_start is not None:
            name = str(self.config.warm_start_profile)
            checked.warm_start.check_fingerprint(fingerprint, name, "this fleet")

    def _warm_started(
        self, checked: Preflight, fleet: RayFleet, setup: PolicySetup, calibration: Calibration
    ) -> dict[str, Any] | None:
        """The learner's initial state after the warm start; None without a profile."""
        if checked.warm_start is None:
            return None
        config = self.config
        say("warm start from the profile, converted to this run's milliseconds")
        table = calibrated(checked.warm_start, calibration).denoised()
        controller = initial_controller(setup.controller, config.seed)
        learner = Learner(controller, config.learner, config.seed)
        record = warm_start_from_profile(
            learner,
            table,
            setup,
            fleet,
            full_ms=calibration.full_ms,
            scatter=calibration.scatter,
        )
        logging.info(
            "warm start from %s: regret of the most likely choices %.3f, before it %.3f",
            config.warm_start_profile,
            record.regret_after,
            record.regret_before,
        )
        return learner.state_dict()


def remote_learner(
    config: JointGRPOConfig, setup: PolicySetup, state: dict[str, Any] | None
) -> RemoteLearner:
    """A learner in an actor of its own, new or in the given state."""
    return RemoteLearner(
        setup.controller,
        config.learner,
        seed=config.seed,
        timeout_s=config.cluster.learner_timeout_s,
        state=state,
    )


def say(text: str) -> None:
    """Prints progress before there is a run that reports it."""
    Console(soft_wrap=True, highlight=False).print(f"{text} ...", markup=False)


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
