"""What the worker keeps, and which errors are a sample's fault."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.calibration import Calibration
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, Knobs
from envs.tasks import DataError
from launch.run.recipes import PriceConfig
from policy.controller import Controller
from policy.weights import PolicyWeights, weights_sha256
from rollout.executor import MolmoEExecutor
from rollout.group_rollout import GroupRollout
from rollout.molmoe import CoveringPreprocessor, Preprocessor
from rollout.requests import FailedGroup, GradientRequest, GreedyRequest, GroupRequest
from rollout.worker import RolloutWorker
from tests import launch_rig
from tests.rollout import rig

GREEDY = GreedyRequest(group_id=0, split="train", index=0, budget_ms=40.0)


def request(group_id, group_size=2):
    return GroupRequest(
        group_id=group_id,
        run_seed=0,
        step=0,
        split="train",
        index=group_id,
        budget_ms=40.0,
        group_size=group_size,
    )


@pytest.fixture
def worker():
    return with_policy(launch_rig.worker())


def with_policy(worker):
    arrays = rig.controller().to_numpy()
    weights = PolicyWeights(version=0, sha256=weights_sha256(arrays), arrays=arrays)
    worker.install(launch_rig.setup(), weights)
    return worker


def test_an_unusable_sample_is_a_failed_group_and_any_other_error_is_an_error(worker, monkeypatch):
    def broken(split, index):
        raise DataError(f"sample {split}/{index}: the image cannot be decoded")

    with monkeypatch.context() as patch:
        patch.setattr(worker.tasks, "sample", broken)
        failed = worker.rollout(request(3))
    assert isinstance(failed, FailedGroup)
    assert failed.reason == "sample train/3: the image cannot be decoded"

    empty = replace(worker.tasks.sample("train", 0), prompt=" ")
    with monkeypatch.context() as patch:
        patch.setattr(worker.tasks, "sample", lambda split, index: empty)
        assert isinstance(worker.rollout(request(3)), FailedGroup)

    def fault(*_arguments, **_options):
        raise ValueError("KV cache of 4 tokens cannot take token 5")

    monkeypatch.setattr(worker.executor.model, "run_blocks", fault)
    with pytest.raises(ValueError, match="KV cache"):
        worker.rollout(request(3))
    with pytest.raises(ValueError, match="latency budget -1"):
        worker.rollout(replace(request(3), budget_ms=-1.0))
    with pytest.raises(ValueError, match="price of time -1"):
        worker.rollout(replace(request(3), price=-1.0))


CALIBRATION = Calibration(
    cheapest_ms=10.0,
    full_ms=50.0,
    scatter=0.0,
    num_samples=2,
    probes_ms=((9.0, 50.0), (10.0, 49.0)),
)


def test_budgets_follow_a_device_that_has_become_slower(monkeypatch):
    worker = RolloutWorker(rig.executor(), rig.NoiseTask())
    probed = []

    def slower(split, index):
        probed.append((split, index))
        return [1.3 * ms for ms in CALIBRATION.probes_ms[index]]

    monkeypatch.setattr(worker, "extreme_latencies", slower)
    arrays = rig.controller().to_numpy()
    weights = PolicyWeights(version=0, sha256=weights_sha256(arrays), arrays=arrays)
    worker.install(replace(launch_rig.setup(), calibration=CALIBRATION), weights)
    group = worker.rollout(request(0))
    assert set(probed) == {("validation", 0), ("validation", 1)}
    assert group.device_budget_ms == pytest.approx(1.3 * group.budget_ms)
    assert group.latencies_ms == pytest.approx(group.device_ms / 1.3)
    assert [sum(stages.values()) for stages in group.stages_ms] == pytest.approx(group.device_ms)
    assert group.clock == worker.facts().clock == worker.fingerprint().clock == "thread_cpu_time"
    assert (group.wall_ms > 0).all()
    (record,) = worker.profile([CHEAPEST_KNOBS], "test", 0, CALIBRATION)
    assert record.calibrated_ms == pytest.approx(record.execution.latency_ms / 1.3)
    (record,) = worker.profile([CHEAPEST_KNOBS], "test", 0)
    assert record.calibrated_ms == record.execution.latency_ms


def test_simulated_latencies_never_drift(worker):
    plain = worker.rollout(request(0))
    arrays = rig.controller().to_numpy()
    weights = PolicyWeights(version=0, sha256=weights_sha256(arrays), arrays=arrays)
    worker.install(replace(launch_rig.setup(), calibration=CALIBRATION), weights)
    group = worker.rollout(request(0))
    assert group.clock == "simulated"
    assert group.device_budget_ms == group.budget_ms == 40.0
    assert (group.device_ms == group.latencies_ms).all()
    assert (group.latencies_ms == plain.latencies_ms).all()


@pytest.mark.parametrize(("budget_ms", "is_feasible"), [(14.0, False), (14.2, True), (80.0, True)])
def test_a_budget_is_feasible_if_the_cheapest_configuration_meets_it(
    worker, budget_ms, is_feasible
):
    """The cheapest configuration takes 14.1 ms on the simulated device, the members more."""
    group = worker.rollout(replace(request(0), budget_ms=budget_ms))
    assert (group.latencies_ms <= budget_ms).any() == (budget_ms == 80.0)
    assert group.feasible == is_feasible
    assert worker.cheapest_ms("train", 0, 2, None) == pytest.approx([14.1, 14.1])


@pytest.mark.parametrize("kind", [Preprocessor, CoveringPreprocessor])
def test_a_group_tells_the_sizes_of_its_prompts_and_answers(kind):
    """They are the preprocessor's own, for images of several shapes."""
    plain = launch_rig.worker()
    own = plain.executor
    preprocessor = kind(own.preprocessor.config, own.preprocessor.tokenizer)
    parts = (own.model, preprocessor, own.importance, own.config, own.simulated)
    worker = with_policy(RolloutWorker(MolmoEExecutor(*parts), plain.tasks))
    tilings = set()
    for number in range(3):
        group = worker.rollout(request(number, group_size=6))
        sample = worker.tasks.sample("train", number)
        overview = preprocessor.overview(sample.image)
        for member, action in enumerate(group.actions):
            knobs = Knobs.from_indices(action)
            inputs = preprocessor.at_tier(overview, sample.prompt, knobs.tier)
            assert group.num_vision_tokens[member] == inputs.num_vision_tokens
            assert group.tilings[member] == inputs.tiling
            assert group.num_text_tokens == inputs.num_text_tokens
            execution, _ = worker.execute(knobs, "train", number)
            assert group.num_output_tokens[member] == execution.num_output_tokens > 0
        tilings |= set(group.tilings)
    assert len(tilings) > 3


def test_a_group_without_an_image_has_no_vision_tokens(worker, monkeypatch):
    text = replace(worker.tasks.sample("train", 0), image=None)
    monkeypatch.setattr(worker.tasks, "sample", lambda split, index: text)
    group = worker.rollout(request(0))
    assert group.num_vision_tokens.tolist() == [0, 0]
    assert group.tilings == ((0, 0), (0, 0))
    assert group.num_text_tokens > 0


def test_a_group_has_the_price_of_its_request():
    """The controller that acts sees it too: its budget token is that of budget and price."""
    worker = launch_rig.worker()
    setup = launch_rig.setup(PriceConfig())
    torch.manual_seed(0)
    controller = Controller(setup.controller)
    arrays = controller.to_numpy()
    weights = PolicyWeights(version=0, sha256=weights_sha256(arrays), arrays=arrays)
    worker.install(setup, weights)
    tokens = []
    for price in (0.0, 0.5):
        for group in (
            worker.rollout(replace(request(0), price=price)),
            worker.greedy(replace(GREEDY, price=price)),
        ):
            assert group.price == price
            with torch.no_grad():
                expected = controller.budget_tokens(*torch.tensor([[40.0], [price]]))
            assert np.allclose(group.budget_token, expected[0].numpy(), atol=1e-6)
        tokens.append(group.budget_token)
    assert not np.allclose(*tokens)


def test_greedy_groups_are_not_kept(worker):
    assert isinstance(worker.greedy(GREEDY), GroupRollout)
    assert not worker._kept
    worker.rollout(request(1))
    assert list(worker._kept) == [1]


def test_kept_groups_stay_within_their_memory(worker):
    for index in range(4):
        worker.rollout(request(index))
    sizes = [group.num_bytes for group in worker._kept.values()]
    assert list(worker._kept) == [0, 1, 2, 3]
    worker.rollout(request(1))
    assert list(worker._kept) == [0, 2, 3, 1], "one that runs again is the newest"
    worker.kept_bytes = sum(sizes)
    worker.rollout(request(4))
    assert list(worker._kept)[-2:] == [1, 4]
    assert 0 not in worker._kept
    assert sum(group.num_bytes for group in worker._kept.values()) <= worker.kept_bytes
    worker.kept_bytes = min(sizes) - 1
    worker.rollout(request(2))
    assert 2 not in worker._kept, "none fits"


def test_a_group_that_found_no_room_has_its_gradient_all_the_same(worker):
    group = worker.rollout(request(1))
    rows = np.ones((2, rig.SIXTEEN.d_model), np.float32)
    kept = worker.budget_gradient(GradientRequest.of(group, rows))
    executor, tasks = worker.executor, worker.tasks
    forgetful = with_policy(RolloutWorker(executor, tasks, kept_groups_mib=0))
    forgetful.rollout(request(1))
    assert not forgetful._kept
    again = forgetful.budget_gradient(GradientRequest.of(group, rows))
    assert np.array_equal(again, kept)


def test_fixed_configurations_run_without_a_budget_token(monkeypatch):
    measured, tokens = RolloutWorker(rig.executor(), rig.NoiseTask()), []
    begin = measured.executor.begin
    monkeypatch.setattr(
        measured.executor, "begin", lambda *given: tokens.append(given[2]) or begin(*given)
    )
    execution, _ = measured.execute(CHEAPEST_KNOBS, "train", 0)
    assert execution.latency_ms == pytest.approx(sum(execution.stages_ms.values()))
    (record,) = measured.profile([CHEAPEST_KNOBS], "train", 0)
    assert tokens == [None, None]
    fields = record.to_json()
    parts = ("T_vision_total", "T_LLM_prefill", "T_LLM_decode")
    assert sum(fields[name] for name in parts) == pytest.approx(fields["latency_ms"])


def test_the_pace_of_a_cold_device_is_forgotten_after_the_warm_up():
    worker = launch_rig.worker()
    worker.warm_up(rounds=1)
    assert worker.executor.pace.ms is None
    worker.execute(FULL_KNOBS, "train", 0)
    assert worker.executor.pace.ms > 0
