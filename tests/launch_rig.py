"""A run of the loop on the tiny random model, in process, with a deterministic latency source."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.calibration import Calibration
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, all_knobs
from launch.run.recipes import EvaluationConfig, JointGRPOConfig, PriceConfig
from launch.run.reporting import Reporter
from launch.run.state import Run
from learner.checkpoint import CheckpointStore
from learner.config import LearnerConfig
from learner.lambda_control import LambdaControl
from learner.local import LocalLearner
from policy.config import PolicySetup
from policy.controller import Controller
from rollout.executor import MolmoEExecutor
from rollout.image_feature import image_dim
from rollout.latency.simulated import SimulatedLatency
from rollout.profiling.profile_table import ProfileTable
from rollout.worker import RolloutWorker
from tests.in_process import LocalFleet
from tests.rollout import rig


def simulated() -> SimulatedLatency:
    """Simulated latencies that grow with every knob, from about 9 to about 90 ms."""
    table = {
        str(k): 2.0 + (1 + k.tier) * k.num_blocks * (1 + k.top_k) / 5 + k.position / 10
        for k in all_knobs()
    }
    return SimulatedLatency(table_ms=table, label="SIMULATED LATENCY (test law)")


CALIBRATION = Calibration(
    cheapest_ms=simulated().latency_ms(CHEAPEST_KNOBS),
    full_ms=simulated().latency_ms(FULL_KNOBS),
    scatter=0.0,
    num_samples=4,
)
"""What a fleet of these workers measures."""


def worker(name: str = "local") -> RolloutWorker:
    measured = rig.executor()
    executor = MolmoEExecutor(
        measured.model, measured.preprocessor, measured.importance, measured.config, simulated()
    )
    return RolloutWorker(executor, rig.NoiseTask(), name)


def config(**changes: Any) -> JointGRPOConfig:
    defaults = {
        "recipe": "test",
        "steps": 6,
        "groups_per_step": 3,
        "group_size": 4,
        "checkpoint_every": 1,
        "evaluation": EvaluationConfig(every=3, num_samples=2, num_test_samples=2, num_budgets=2),
        "learner": LearnerConfig(learning_rate=1e-3),
    }
    return JointGRPOConfig(**{**defaults, **changes})


FREE_TIME = PriceConfig(low=None, high=None)


def setup(price: PriceConfig = FREE_TIME) -> PolicySetup:
    """The setup of a run, by default without prices, as for `rig.controller`."""
    widths = rig.SIXTEEN.d_model, image_dim(rig.SIXTEEN)
    return PolicySetup.of(*widths, rig.BUDGETS, None, price.sampler(), price.deployed)


def local_run(
    run_dir: Path, settings: JointGRPOConfig, fleet: Any = None, trackers: Any = None
) -> Run:
    """A new run, or one that is resumed from the newest checkpoint in its folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    own = setup(settings.price)
    learner = LocalLearner(Controller(own.controller), settings.learner)
    store = CheckpointStore(run_dir / "checkpoints", settings.keep_last)
    store.recover()
    checkpoint = store.load_latest(to_resume=True)
    if checkpoint is not None:
        learner.load_state_dict(checkpoint.learner_state)
    run = Run(
        config=settings,
        setup=own,
        fleet=fleet or LocalFleet(worker()),
        learner=learner,
        reporter=Reporter(run_dir, num_steps=settings.steps, clock="simulated", trackers=trackers),
        store=store,
        lambda_control=LambdaControl(settings.pid, rig.BUDGETS),
        calibration=CALIBRATION,
    )
    if checkpoint is None:
        run.reporter.begin_at(0)
    else:
        run.go_back_to(checkpoint)
    return run


class ProfilingFleet(LocalFleet):
    """A local fleet that runs single configurations as well."""

    def profile_each(self, plan, split, what, calibration=None):
        assert what == "episodes of the rivals"
        for index, configurations in plan:
            yield self.worker.profile(configurations, split, index, calibration)


def random_profile() -> ProfileTable:
    """Latencies of the simulated device, scores that grow with none of the knobs."""
    rng, rows = np.random.default_rng(0), []
    latencies_ms = dict(simulated().table_ms)
    for index in range(4):
        row = {"sample_id": f"noise/validation/{index}", "task": "noise", "prompt": ""}
        row["scores"] = {str(knobs): float(rng.integers(2)) for knobs in all_knobs()}
        row["latencies_ms"] = latencies_ms
        row["cheapest_ms"] = latencies_ms[str(CHEAPEST_KNOBS)]
        rows.append(row)
    return ProfileTable.from_rows(rows)
