import numpy as np
import pytest

from rollout.estimator.latency_table import LatencyTable, split_by_sample
from rollout.profiling.records import DecodeReading, ProfileReader
from tests.rollout.estimator.synthetic import write_profiles


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = write_profiles(tmp_path_factory.mktemp("p"), count=20, datasets=("mmmu", "okvqa"))
    return LatencyTable.of(ProfileReader(folder), DecodeReading.RECORDED)


def test_no_sample_is_on_both_sides(table):
    train, val = split_by_sample(table, train_share=0.8, seed=3407)
    assert len(train) + len(val) == len(table) == 2 * 20 * 27
    assert not set(train.sample_N) & set(val.sample_N)
    assert len(set(train.sample_N)) == 32
    assert len(set(val.sample_N)) == 8
    assert set(val.configurations()) == set(table.configurations())


def test_the_split_follows_the_seed_and_not_the_order(table):
    order = np.random.default_rng(0).permutation(len(table))
    keys = lambda part: {part.samples[n] for n in part.sample_N}  # noqa: E731
    first = split_by_sample(table, train_share=0.8, seed=1)[1]
    assert keys(split_by_sample(table.rows(order), train_share=0.8, seed=1)[1]) == keys(first)
    assert keys(split_by_sample(table, train_share=0.8, seed=2)[1]) != keys(first)


def test_too_few_samples_to_split(table):
    with pytest.raises(ValueError, match="profile more samples"):
        split_by_sample(table.rows(table.sample_N == 0), train_share=0.8, seed=0)


def test_no_record_is_an_error():
    with pytest.raises(ValueError, match="no usable record"):
        LatencyTable.of([], DecodeReading.RECORDED)
