"""The fleet on real Ray actors: exactness, SIGKILL, hangs, constructors that raise."""

import contextlib
import dataclasses
import functools
import logging
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ObjectLostError

from envs.spec import DataError, all_knobs
from launch.cluster import actor_pool
from launch.cluster.config import ClusterConfig
from launch.cluster.connection import connect
from launch.cluster.fleet import RayFleet, publish
from launch.cluster.remote_learner import LearnerLostError, RemoteLearner
from launch.cluster.slots import GroupFailedError, InputLostError
from launch.joint_grpo import train
from launch.run.supervise import train_over_lost_learners
from policy.controller import Controller
from policy.weights import PolicyWeights, weights_sha256
from rollout.actor import PublishedWeights
from rollout.requests import GroupRequest
from tests import launch_rig

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def local_ray():
    """One local Ray for the tests of this file."""
    if ray.is_initialized():
        ray.shutdown()
    connect("local", num_cpus=2)
    yield
    ray.shutdown()


SETTINGS = ClusterConfig(
    num_actors=2,
    start_timeout_s=300,
    group_timeout_s=60,
    step_timeout_s=300,
    learner_timeout_s=120,
    max_restarts=10,
)


def fleet(build=launch_rig.worker, **changes):
    config = dataclasses.replace(SETTINGS, **changes)
    return RayFleet(build, config, actor_options={"num_cpus": 0})


def remote_run(path, settings, ray_fleet):
    run = launch_rig.local_run(path, settings, ray_fleet)
    state = run.learner.state_dict()
    run.learner = RemoteLearner(
        run.setup.controller,
        settings.learner,
        seed=settings.seed,
        timeout_s=settings.cluster.learner_timeout_s,
        state=state,
    )
    return run


def final_sha256(run):
    controller, _ = run.learner.snapshot()
    return weights_sha256(controller.to_numpy())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = launch_rig.local_run(tmp_path_factory.mktemp("local"), launch_rig.config())
    train(run)
    return final_sha256(run)


@pytest.fixture(scope="module")
def two_actors():
    """A fleet shared by all tests that leave it intact, because starting it takes ten seconds."""
    ray_fleet = fleet()
    yield ray_fleet
    ray_fleet.shutdown()


def test_actors_give_the_weights_of_the_plain_loop_to_the_bit(two_actors, tmp_path, undisturbed):
    run = remote_run(tmp_path, launch_rig.config(), two_actors)
    train(run)
    assert final_sha256(run) == undisturbed
    assert set(two_actors.stats.busy_share) == {"rollout-0", "rollout-1"}
    assert two_actors.stats.reruns == two_actors.stats.rejected == 0


def test_health_answers_while_a_group_runs(two_actors):
    slot = two_actors.pool.slots[0]
    busy = slot.handle.profile.remote(tuple(all_knobs()), "train", 0, None)
    time.sleep(0.1)
    started = time.monotonic()
    status = ray.get(slot.handle.status.remote(), timeout=10)
    assert time.monotonic() - started < 1.0
    assert status["name"] == "rollout-0"
    ray.get(busy, timeout=300)


def test_sigkill_of_rollout_actors_changes_nothing(two_actors, tmp_path, undisturbed):
    run = remote_run(tmp_path, launch_rig.config(), two_actors)
    kills, done = [], threading.Event()

    def killer():
        rng = np.random.default_rng(0)
        while not done.is_set() and len(kills) < 3:
            time.sleep(float(rng.uniform(0.2, 1.5)))
            slot = two_actors.pool.slots[int(rng.integers(2))]
            if slot.facts is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(slot.facts.pid, signal.SIGKILL)
                    kills.append(slot.name)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        train(run)
    finally:
        done.set()
        thread.join()
    assert kills
    assert two_actors.stats.restarts >= 1
    assert final_sha256(run) == undisturbed


def hang(request, original):
    if request.group_id == 1 and not os.path.exists(f"{os.environ['TMPDIR_HANG']}/hung"):
        open(f"{os.environ['TMPDIR_HANG']}/hung", "w").close()
        time.sleep(1000)
    return original(request)


def hanging_worker(folder):
    os.environ["TMPDIR_HANG"] = folder
    worker = launch_rig.worker()
    worker.rollout = functools.partial(hang, original=worker.rollout)
    return worker


def fails_often(request, original, folder):
    marks = list(folder.glob("*"))
    if request.group_id == 4 and len(marks) < 2:
        (folder / str(os.getpid())).touch()
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    return original(request)


def faulty_worker(folder):
    worker = hanging_worker(str(folder))
    worker.rollout = functools.partial(
        fails_often, original=worker.rollout, folder=folder / "marks"
    )
    return worker


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A folder, the number of restarts, and the weights of a run whose actors hang and raise."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "marks").mkdir()
    ray_fleet = fleet(functools.partial(faulty_worker, folder), group_timeout_s=12)
    run = remote_run(folder / "run", launch_rig.config(), ray_fleet)
    train(run)
    ray_fleet.shutdown()
    return folder, ray_fleet.stats.restarts, final_sha256(run)


@pytest.mark.slow
def test_an_actor_that_hangs_is_replaced(faulty, undisturbed):
    folder, restarts, sha256 = faulty
    assert (folder / "hung").exists()
    assert restarts == 3, "one that hung, and two that raised"
    assert sha256 == undisturbed


@pytest.mark.slow
def test_an_actor_that_raises_is_started_again_and_its_group_runs_elsewhere(faulty, undisturbed):
    folder, restarts, sha256 = faulty
    assert len(list((folder / "marks").glob("*"))) == 2
    assert restarts == 3
    assert sha256 == undisturbed


def always_fails(request, original):
    if request.group_id == 4:
        raise RuntimeError("this group cannot be run")
    return original(request)


def poisoned_worker():
    worker = launch_rig.worker()
    worker.rollout = functools.partial(always_fails, original=worker.rollout)
    return worker


@pytest.mark.slow
def test_a_group_that_fails_on_three_actors_ends_the_run_with_its_cause(tmp_path):
    ray_fleet = fleet(poisoned_worker)
    run = remote_run(tmp_path, launch_rig.config(), ray_fleet)
    message = r"group 4 \(train sample \d+\) failed on 3 actors.* this group cannot be run"
    with pytest.raises(GroupFailedError, match=message) as caught:
        train(run)
    assert "\n" not in str(caught.value)
    assert run.store.load_latest().state["next_step"] == 1, "the previous complete step is kept"
    ray_fleet.shutdown()


def other_model():
    worker = launch_rig.worker()
    if not os.path.exists(os.environ["OTHER_MODEL_MARK"]):
        open(os.environ["OTHER_MODEL_MARK"], "w").close()
        with torch.no_grad():
            worker.executor.model.lm_head.weight[3] += 1
    return worker


def other_model_of(mark):
    os.environ["OTHER_MODEL_MARK"] = mark
    return other_model()


@pytest.mark.slow
def test_an_actor_with_other_weights_is_left_out(tmp_path, caplog):
    ray_fleet = fleet(functools.partial(other_model_of, str(tmp_path / "mark")))
    assert ray_fleet.num_actors == 1
    assert "differs from the rest of the fleet (weights:" in caplog.text
    ray_fleet.shutdown()


def broken_worker():
    raise ValueError("the weights are not where they should be")


def test_a_constructor_that_raises_is_one_clear_error():
    with pytest.raises(RuntimeError, match=r"rollout-0.*weights are not where they should be"):
        fleet(broken_worker, num_actors=1)


def test_too_few_resources_are_named():
    with pytest.raises(RuntimeError, match=r"actor asks for 1 GPU, .* has 2 CPUs and no GPU"):
        RayFleet(
            launch_rig.worker,
            ClusterConfig(num_actors=1, start_timeout_s=2, max_restarts=0),
            wants_gpu=True,
        )


@pytest.mark.slow
def test_an_actor_without_a_place_is_named_at_once_and_not_counted(caplog):
    caplog.set_level(logging.INFO)
    config = dataclasses.replace(SETTINGS, start_timeout_s=60)
    ray_fleet = RayFleet(launch_rig.worker, config, actor_options={"num_cpus": 2})
    assert ray_fleet.num_actors == 1
    said = [r.message for r in caplog.records if "to get a place" in r.message]
    wanted = "asks for 2 CPUs, the cluster has 2 CPUs and no GPU, free: no CPU and no GPU"
    assert wanted in said[0]
    assert float(re.search(r"\((\d+) of 60 s\)", said[0])[1]) < 10, "it is said at once"
    assert "1 of 2 rollout actors are warm and start" in caplog.text
    ray_fleet.shutdown()


def no_samples(_split, _index):
    raise DataError("none of ai2d has a validation split: add a data set")


def worker_without_samples():
    worker = launch_rig.worker()
    worker.extreme_latencies = no_samples
    return worker


def test_an_error_of_the_data_ends_the_run_at_once():
    ray_fleet = fleet(worker_without_samples, num_actors=1)
    with pytest.raises(GroupFailedError, match="none of ai2d has a validation split: add a data"):
        ray_fleet.extreme_latencies("validation", 1)
    assert ray_fleet.stats.restarts == 0
    ray_fleet.shutdown()


def environment_of(_actor):
    return os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.is_initialized()


def test_actors_that_ask_for_no_gpu_see_none(two_actors, tmp_path):
    run = remote_run(tmp_path, launch_rig.config(), two_actors)
    for actor in (run.learner.actor, two_actors.pool.slots[0].handle):
        found = ray.get(actor.__ray_call__.remote(environment_of), timeout=240)
        assert found == ("", False)
    run.learner.shutdown()


def test_a_killed_learner_goes_on_where_it_was(two_actors, tmp_path, undisturbed, monkeypatch):
    run = remote_run(tmp_path, launch_rig.config(), two_actors)
    kill_at = iter(range(100))
    original = run.learner.learn_from_groups

    def prepare(*arguments):
        if next(kill_at) == 2:
            ray.kill(run.learner.actor)
        return original(*arguments)

    run.learner.learn_from_groups = prepare
    with pytest.raises(LearnerLostError, match="learn from groups"):
        train(run)
    assert run.store.load_latest().state["next_step"] == 2
    collected = []
    collect = two_actors.collect
    monkeypatch.setattr(
        two_actors, "collect", lambda ticket: collected.append(ticket) or collect(ticket)
    )
    run.learner.restart()
    train(run)
    assert len(collected) == 5, "three steps and two evaluations: the step in flight was kept"
    assert final_sha256(run) == undisturbed


@ray.remote(num_cpus=0)
class Owner:
    """A process that keeps an object."""

    def put(self):
        return [ray.put(np.zeros(1_000_000))]


def lost_weights():
    """Weights that nobody has any more, as after the loss of the learner's node."""
    owner = Owner.remote()
    refs = ray.get(owner.put.remote(), timeout=240)
    ray.kill(owner)
    deadline = time.monotonic() + 60
    with contextlib.suppress(ObjectLostError):
        while time.monotonic() < deadline:
            ray.get(refs, timeout=60)
            time.sleep(0.1)
    return PublishedWeights(version=99, sha256="lost", refs=tuple(refs))


def test_weights_that_were_lost_end_the_batch_and_blame_no_actor(two_actors):
    setup = launch_rig.setup()
    requests = [
        GroupRequest(
            group_id=number,
            run_seed=0,
            step=0,
            split="train",
            index=number,
            budget_ms=50.0,
            group_size=2,
        )
        for number in range(4)
    ]
    before = two_actors.stats.restarts
    ticket = two_actors.submit(requests, setup, lost_weights())
    with pytest.raises(InputLostError, match="input was lost with its node"):
        two_actors.collect(ticket)
    two_actors.drop_batches()
    controller = Controller(setup.controller)
    arrays = controller.to_numpy()
    weights = publish(PolicyWeights(version=0, sha256=weights_sha256(arrays), arrays=arrays))
    groups = two_actors.collect(two_actors.submit(requests, setup, weights))
    assert [group.group_id for group in groups] == [0, 1, 2, 3]
    assert two_actors.stats.restarts == before


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["state", "weights"])
def test_a_learner_whose_state_is_gone_too_goes_back_to_the_last_commit(
    two_actors, tmp_path, undisturbed, lost
):
    settings = launch_rig.config(max_staleness=1, run_dir=str(tmp_path))
    expected = launch_rig.local_run(tmp_path / "local", settings)
    train(expected)
    run = remote_run(tmp_path, settings, two_actors)
    steps, original = iter(range(100)), run.learner.learn_from_groups

    def prepare(*arguments):
        if next(steps) == 2 and lost == "weights":
            run.learner.weights = lost_weights
        elif lost == "state":
            run.learner.snapshot = lambda: (_ for _ in ()).throw(LearnerLostError("node lost"))
            ray.kill(run.learner.actor)
        return original(*arguments)

    run.learner.learn_from_groups = prepare
    train_over_lost_learners(run, train)
    assert final_sha256(run) == final_sha256(expected) != undisturbed


def test_a_wait_that_takes_too_long_says_what_for(two_actors, tmp_path, monkeypatch):
    hurried = dataclasses.replace(SETTINGS, step_timeout_s=1e-9)
    monkeypatch.setattr(two_actors, "config", hurried)
    monkeypatch.setattr(actor_pool, "PATIENCE", 0.0)
    run = remote_run(tmp_path, launch_rig.config(steps=1), two_actors)
    with pytest.raises(TimeoutError, match=r"3 of 3 groups of rollouts .* the cluster has"):
        train(run)
