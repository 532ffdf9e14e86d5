import pytest
import torch

from rollout.estimator.fit import EstimatorFit, FitConfig, subnormals_as_zero
from rollout.estimator.latency_table import LatencyTable, split_by_sample
from rollout.profiling.records import DecodeReading, ProfileReader
from tests.rollout.estimator.synthetic import write_profiles

CONFIG = FitConfig(num_epochs=4, hidden_dim=16)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = write_profiles(tmp_path_factory.mktemp("p"), count=10, datasets=("okvqa",))
    table = LatencyTable.of(ProfileReader(folder), DecodeReading.RECORDED)
    return split_by_sample(table, train_share=0.8, seed=0)


def run(fit):
    return [fit.run_epoch() for _ in range(CONFIG.num_epochs - fit.epoch)]


def test_the_same_seed_gives_the_same_fit(tables):
    global_state = torch.get_rng_state()
    first = run(EstimatorFit(*tables, CONFIG))
    assert first == run(EstimatorFit(*tables, CONFIG))
    assert first != run(EstimatorFit(*tables, FitConfig(num_epochs=4, hidden_dim=16, seed=1)))
    assert torch.equal(global_state, torch.get_rng_state())


def test_a_resumed_fit_ends_where_an_unbroken_one_does(tables):
    whole = EstimatorFit(*tables, CONFIG)
    history = run(whole)
    broken = EstimatorFit(*tables, CONFIG)
    broken.run_epoch()
    state = broken.state_dict()
    resumed = EstimatorFit(*tables, CONFIG)
    resumed.load_state_dict(state)
    assert run(resumed) == history[1:]


def test_workers_share_every_batch(tables):
    one = EstimatorFit(*tables, CONFIG)
    halves = [EstimatorFit(*tables, CONFIG, rank=rank, world_size=2) for rank in range(2)]
    parts = zip(*(half._batches() for half in halves), strict=True)
    for batch, part in zip(one._batches(), parts, strict=True):
        assert sorted(batch.tolist()) == sorted(torch.cat(part).tolist())


def test_the_learning_rate_falls_along_a_cosine():
    config = FitConfig(lr=1.0, num_epochs=3, final_lr_share=0.1)
    assert [config.lr_at(epoch) for epoch in range(3)] == pytest.approx([1.0, 0.55, 0.1])
    assert FitConfig(num_epochs=1).lr_at(0) == pytest.approx(1e-3)


def test_senseless_options_are_refused(tables):
    for options in ({"batch_size": 0}, {"num_epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}):
        with pytest.raises(ValueError, match="positive"):
            FitConfig(**options)
    with pytest.raises(ValueError, match="not a multiple of 3 workers"):
        EstimatorFit(*tables, CONFIG, world_size=3)


def test_subnormal_numbers_are_zero_inside_only():
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU has no such mode")
    tiny = torch.full((64,), 1e-38)
    with subnormals_as_zero():
        assert (tiny * 0.01 == 0).all()
    assert (tiny * 0.01 > 0).all()
    with pytest.raises(ZeroDivisionError), subnormals_as_zero():
        _ = 1 / 0
    assert (tiny * 0.01 > 0).all()
