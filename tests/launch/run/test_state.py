"""The loop in one process: it updates everything, resumes exactly, stops cleanly."""

import copy
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from launch.cluster.signals import Stopped
from launch.joint_grpo import train
from learner.config import LearnerConfig, ReplayConfig
from policy.weights import weights_sha256
from rollout.group_rollout import GroupRollout
from rollout.requests import FailedGroup, GradientRequest
from tests import launch_rig
from tests.in_process import LocalFleet
from tests.policy.evaluating import evaluate


def sha256(run):
    return weights_sha256(run.learner.controller.to_numpy())


def test_every_trained_part_moves_and_everything_is_written(tmp_path):
    run = launch_rig.local_run(tmp_path, launch_rig.config(steps=3))
    before = run.learner.controller.to_numpy()
    train(run)
    after = run.learner.controller.to_numpy()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    for part in ("budget_encoder.mlp.0", "stage1", "stage2"):
        assert any(name.startswith(part) for name in moved), part
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"reward/mean", "violation/all", "latency/p95_ms", "learner_entropy/tier"} <= set(
        rows[0]
    )
    assert rows[-1]["at_a_glance/accuracy_held_out"] >= 0
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert run.store.steps() == [1, 2, 3]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Undisturbed runs of five steps by their staleness, each run once."""

    @cache
    def run_with(max_staleness):
        settings = launch_rig.config(steps=5, max_staleness=max_staleness)
        run = launch_rig.local_run(tmp_path_factory.mktemp("whole"), settings)
        train(run)
        return run

    return run_with


FURTHER_CUTS = ((1, 0), (1, 2), (4, 2))


@pytest.mark.parametrize(
    ("cut", "max_staleness"),
    [(4, 0), (2, 1), *(pytest.param(*more, marks=pytest.mark.slow) for more in FURTHER_CUTS)],
)
def test_a_cut_and_resumed_run_has_the_same_weights_to_the_bit(
    tmp_path, whole_run, cut, max_staleness
):
    whole = whole_run(max_staleness)
    settings = whole.config
    first = launch_rig.local_run(tmp_path / "cut", settings)
    finished_steps = iter(range(1, 6))
    first.is_stopping = lambda: next(finished_steps) >= cut
    with pytest.raises(Stopped):
        train(first)
    first.commit()
    second = launch_rig.local_run(tmp_path / "cut", settings)
    assert second.next_step == cut
    train(second)
    assert sha256(second) == sha256(whole)
    assert second.lambda_control.state_dict() == whole.lambda_control.state_dict()
    steps = [json.loads(s)["step"] for s in (tmp_path / "cut/metrics.jsonl").open()]
    assert sorted(set(steps)) == list(range(5))


def test_a_resumed_run_has_its_scores_and_its_memory(tmp_path):
    """With replay and scores off the clock, which are part of what is remembered."""
    learner = LearnerConfig(learning_rate=1e-3, replay=ReplayConfig(warm_up=4, batch_size=16))
    settings = launch_rig.config(steps=5, num_scored=3, learner=learner)
    whole = launch_rig.local_run(tmp_path / "whole", settings)
    train(whole)
    first = launch_rig.local_run(tmp_path / "cut", settings)
    finished_steps = iter(range(1, 6))
    first.is_stopping = lambda: next(finished_steps) >= 3
    with pytest.raises(Stopped):
        train(first)
    first.commit()
    second = launch_rig.local_run(tmp_path / "cut", settings)
    train(second)
    assert sha256(second) == sha256(whole)
    memories = [run.learner.replay.buffer.episodes for run in (whole, second)]
    assert memories[0].scored_ME.shape == (15, 3)
    assert memories[0].scored_ME.isfinite().all()
    assert all(torch.equal(a, memories[1].tensors()[n]) for n, a in memories[0].tensors().items())


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_run_killed_between_two_commits_does_one_step_again(tmp_path, whole_run, max_staleness):
    class Killed(BaseException):
        """An error that no handler of the program catches."""

    whole = whole_run(max_staleness)
    settings = whole.config
    first = launch_rig.local_run(tmp_path / "cut", settings)
    collects = iter(range(5))
    original = first.fleet.collect

    def collect(ticket):
        if next(collects) == 2:
            raise Killed
        return original(ticket)

    first.fleet.collect = collect
    with pytest.raises(Killed):
        train(first)
    second = launch_rig.local_run(tmp_path / "cut", settings)
    assert second.next_step == first.next_step == 2, "both complete steps are committed"
    train(second)
    assert sha256(second) == sha256(whole)


def test_the_best_checkpoint_is_the_one_that_was_evaluated(tmp_path, monkeypatch):
    metrics = iter([0.9, 0.2])

    class Result:
        budgets_ms, price, actions, latencies_ms = (
            np.array([10.0]),
            0.02,
            np.zeros((1, 1, 4), int),
            np.ones((1, 1)),
        )

        def __init__(self):
            self.in_budget_accuracy = next(metrics)

        def scalars(self, _cost_per_ms):
            return {"at_a_glance/accuracy_held_out": 0.0, "at_a_glance/violation_held_out": 0.0}

    monkeypatch.setattr("launch.run.held_out.greedy_sweep", lambda *_a, **_k: Result())
    settings = launch_rig.config(steps=6, keep_last=6)
    run = launch_rig.local_run(tmp_path, settings)
    train(run)
    found = {
        step: run.store.load(run.store.root / f"step_{step:08d}").metric for step in range(7)[1:]
    }
    spent = 0.02 * 1.0 / run.calibration.full_ms
    assert found == {1: None, 2: None, 3: 0.9 - spent, 4: None, 5: None, 6: 0.2 - spent}
    assert run.store.best().name == "step_00000003"


def test_results_do_not_depend_on_the_order_of_groups(tmp_path):
    ran = {"forwards": [], "backwards": []}

    class Backwards(LocalFleet):
        """Runs the groups of a batch in reverse, and returns them in the order of their ids."""

        def collect(self, ticket):
            requests, setup, weights = self._batches.pop(ticket)
            self.worker.install(setup, weights)
            return [self._run(request) for request in requests[::-1]][::-1]

    fleets = {
        "forwards": LocalFleet(launch_rig.worker()),
        "backwards": Backwards(launch_rig.worker("else")),
    }
    runs = {}
    for name, fleet in fleets.items():
        rollout = fleet.worker.rollout

        def noted(request, name=name, rollout=rollout):
            ran[name].append(request.group_id)
            return rollout(request)

        fleet.worker.rollout = noted
        runs[name] = launch_rig.local_run(tmp_path / name, launch_rig.config(steps=2), fleet)
        train(runs[name])
    assert ran["backwards"][:3] == ran["forwards"][:3][::-1]
    assert sha256(runs["backwards"]) == sha256(runs["forwards"])


def test_gradient_through_the_model_reaches_the_budget_encoder(tmp_path, monkeypatch):
    seen = []
    original = LocalFleet.budget_gradients

    def watched(self, groups, gradients):
        result = original(self, groups, gradients)
        seen.extend(float(np.abs(r).sum()) for r in result)
        return result

    monkeypatch.setattr(LocalFleet, "budget_gradients", watched)
    train(launch_rig.local_run(tmp_path, launch_rig.config(steps=1)))
    assert max(seen) > 0


def test_an_unusable_sample_is_replaced_counted_and_logged(tmp_path, monkeypatch, caplog):
    worker = launch_rig.worker()
    original = worker.rollout
    broken = set()

    def sometimes(request):
        if request.group_id == 1 and request.index not in broken and len(broken) < 2:
            broken.add(request.index)
            return FailedGroup(group_id=1, reason="sample s: the image cannot be decoded")
        return original(request)

    monkeypatch.setattr(worker, "rollout", sometimes)
    run = launch_rig.local_run(tmp_path, launch_rig.config(steps=1), LocalFleet(worker))
    train(run)
    assert run.fleet.stats.failed_samples == 2
    assert "cannot be decoded" in caplog.text


def test_endless_bad_samples_end_the_run_with_their_reason(tmp_path, monkeypatch):
    worker = launch_rig.worker()
    monkeypatch.setattr(
        worker, "rollout", lambda r: FailedGroup(group_id=r.group_id, reason="disk gone")
    )
    run = launch_rig.local_run(tmp_path, launch_rig.config(steps=1), LocalFleet(worker))
    with pytest.raises(ValueError, match="in a row were unusable, the last one: disk gone"):
        train(run)


def test_staleness_is_bounded(tmp_path):
    staleness = []
    settings = launch_rig.config(steps=5, max_staleness=1)
    run = launch_rig.local_run(tmp_path, settings)
    original = run.learner.update

    def watched(measured, gradients):
        record = original(measured, gradients)
        staleness.append(record.staleness_max)
        return record

    run.learner.update = watched
    train(run)
    assert staleness == [0, 1, 1, 1, 1]


def test_stale_episodes_are_weighted_by_how_likely_they_are_now(tmp_path):
    settings = launch_rig.config(
        steps=3, max_staleness=1, learner=LearnerConfig(learning_rate=0.05, grad_clip=1e3)
    )
    run = launch_rig.local_run(tmp_path, settings)
    seen, original = [], run.learner.learn_from_groups

    def watched(groups, *rewards):
        measured = original(groups, *rewards)
        seen.append((groups, rewards[:2], copy.deepcopy(run.learner.controller), measured.metrics))
        return measured

    run.learner.learn_from_groups = watched
    train(run)
    assert seen[0][-1].importance_mean == pytest.approx(1, abs=1e-5)
    groups, (scores, constraints), controller, metrics = seen[2]
    assert {group.policy_version for group in groups} == {1}
    weights = []
    for group, score_G, constraint_G in zip(groups, scores, constraints, strict=True):
        size = group.group_size
        now = evaluate(
            controller,
            torch.from_numpy(group.language_feature).expand(size, -1),
            controller.budget_tokens(*torch.tensor([[group.budget_ms], [group.price]])).expand(
                size, -1
            ),
            torch.from_numpy(group.latency_tokens),
            torch.from_numpy(group.actions),
            torch.from_numpy(group.image_feature).expand(size, -1),
        )
        ratios = now.log_probs_B4.sum(-1).detach().numpy() - group.log_probs.sum(-1)
        if np.ptp(score_G) or np.ptp(constraint_G):
            weights.append(np.exp(ratios).clip(max=settings.learner.loss.importance_cap))
    expected = np.mean(weights)
    assert abs(expected - 1) > 1e-3, "the policy has changed since these groups were collected"
    assert metrics.importance_mean == pytest.approx(expected, rel=1e-3)


def test_without_prices_budgets_are_drawn_as_if_there_were_none(tmp_path):
    settings = launch_rig.config(price=launch_rig.FREE_TIME)
    run = launch_rig.local_run(tmp_path, settings)
    for step in range(3):
        rng = np.random.default_rng([settings.seed, step])
        requests = run.draw(step)
        assert [request.budget_ms for request in requests] == [
            run.setup.budgets.draw(rng) for _ in range(3)
        ]
        assert {request.price for request in requests} == {0.0}


def test_every_request_has_a_price_which_is_the_same_on_resume(tmp_path):
    settings = launch_rig.config(groups_per_step=20)
    run = launch_rig.local_run(tmp_path, settings)
    requests = run.draw(0)
    prices = [request.price for request in requests]
    own = settings.price
    assert 0 < prices.count(0.0) < 10
    priced = {price for price in prices if price}
    assert len(priced) == 20 - prices.count(0.0), "every one is drawn anew"
    assert own.low <= min(priced) < 0.1 < max(priced) <= own.high
    assert len({request.budget_ms for request in requests}) == 20
    assert [request.price for request in run.draw(1)] != prices
    run.commit()
    resumed = launch_rig.local_run(tmp_path, settings)
    assert resumed.store.load_latest() is not None
    for step in range(2):
        assert resumed.draw(step) == run.draw(step)


def test_rewards_charge_each_group_its_own_price(tmp_path):
    run = launch_rig.local_run(tmp_path, launch_rig.config())
    run.broadcast()
    groups = run.collect()
    assert any(group.price for group in groups)
    assert [group.price for group in groups] == [request.price for request in run.draw(0)]
    free = run.rewards([replace(group, price=0.0) for group in groups])
    charged = run.rewards(groups)
    cost_NG = [
        group.price * group.latencies_ms / launch_rig.CALIBRATION.full_ms for group in groups
    ]
    assert np.allclose(free.constraint - charged.constraint, cost_NG)
    assert np.array_equal(free.score, charged.score)


def test_worker_records_are_whole(tmp_path):
    worker = launch_rig.worker()
    run = launch_rig.local_run(tmp_path, launch_rig.config())
    worker.install(run.setup, run.learner.weights())
    request = run.draw(0)[0]
    first, again = worker.rollout(request), worker.rollout(request)
    assert isinstance(first, GroupRollout)
    assert np.array_equal(first.actions, again.actions)
    assert first.policy_sha256 == run.learner.weights().sha256
    gradient = np.ones((4, 32), dtype=np.float32)
    kept = worker.budget_gradient(GradientRequest.of(again, gradient))
    worker._kept.clear()
    rebuilt = worker.budget_gradient(GradientRequest.of(first, gradient))
    assert np.array_equal(kept, rebuilt)
