import time
from statistics import median

import numpy as np
import pytest
import torch

from envs.spec import TIERS, all_knobs
from rollout.estimator.estimator import INPUTS, TARGETS, LatencyEstimator, LatencyEstimatorTrainer
from rollout.estimator.fit import EstimatorFit, FitConfig
from rollout.estimator.latency_table import LatencyTable, split_by_sample
from rollout.estimator.metrics import LatencyMetrics, predict_table
from rollout.profiling.records import DecodeReading, ProfileReader
from tests.rollout.estimator.synthetic import Law, law_predictions, write_profiles

GRID = tuple(all_knobs())
GOOD = {
    "vision_tokens": 384.0,
    "text_tokens": 53.0,
    "tier_idx": 0.0,
    "top_k": 4.0,
    "num_active_blocks": 12.0,
}


def inputs(count: int = 1, **changes) -> dict[str, torch.Tensor]:
    return {name: torch.full((count,), value) for name, value in (GOOD | changes).items()}


def batch(count: int = 64, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    columns = {
        "vision_tokens": torch.randint(100, 1000, (count,), generator=rng),
        "text_tokens": torch.randint(20, 200, (count,), generator=rng),
        "tier_idx": torch.randint(0, 3, (count,), generator=rng),
        "top_k": torch.randint(4, 13, (count,), generator=rng),
        "num_active_blocks": torch.randint(8, 17, (count,), generator=rng),
    }
    columns["T_prefill_total"] = columns["vision_tokens"] * 0.2 + columns["num_active_blocks"]
    columns["T_decode_per_token"] = columns["num_active_blocks"] * 0.8
    return columns


def only_inputs(columns):
    return {name: columns[name] for name in INPUTS}


def trained(seed: int = 0, steps: int = 20) -> LatencyEstimator:
    torch.manual_seed(seed)
    trainer = LatencyEstimatorTrainer(LatencyEstimator())
    for step in range(steps):
        trainer.train_step(batch(seed=step))
    return trainer.model


def test_layers_are_those_of_the_specification():
    estimator = LatencyEstimator()
    kinds = [type(layer).__name__ for layer in estimator.network.encoder]
    assert kinds == ["Linear", "LayerNorm", "ReLU"] * 2
    # 5*256+256, 256*256+256, two LayerNorms of 2*256, two heads of 257.
    assert estimator.num_parameters == 1536 + 65792 + 1024 + 514
    assert LatencyEstimator(num_layers=3).num_parameters == 135_170
    assert 100_000 <= LatencyEstimator(num_layers=3).num_parameters <= 200_000


def test_output_has_a_value_a_record_and_is_never_negative():
    estimator = trained()
    latencies = estimator(**only_inputs(batch(7)))
    assert set(latencies) == set(TARGETS)
    assert all(values.shape == (7,) and (values >= 0).all() for values in latencies.values())
    far = estimator(**inputs(vision_tokens=1e6, text_tokens=1e6, num_active_blocks=1e4))
    assert all((values >= 0).all() and values.isfinite().all() for values in far.values())


@pytest.mark.parametrize("is_scaled", [False, True])
def test_no_head_starts_dead_for_any_input(is_scaled):
    for seed in range(20):
        torch.manual_seed(seed)
        estimator = LatencyEstimator()
        columns = batch(256, seed)
        if is_scaled:
            # One outlier makes the spread far larger than the mean.
            columns["T_prefill_total"][0] = 1e6
            columns["T_decode_per_token"][0] = 1e6
            estimator.fit_scaling(columns)
        latencies = estimator(**only_inputs(columns))
        assert all((values > 0).all() for values in latencies.values())
        sum(values.sum() for values in latencies.values()).backward()
        assert all(weight.grad.abs().sum() > 0 for weight in estimator.parameters())


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 0.0])
def test_senseless_inputs_are_named(name, value):
    if value == 0:  # the lowest tier, and text without an image, are no mistakes
        value = {"tier_idx": 3.0, "vision_tokens": -0.5}.get(name, value)
    with pytest.raises(ValueError, match=f"{name} is .* in row 0"):
        LatencyEstimator()(**inputs(**{name: value}))


def test_text_without_an_image_is_no_mistake():
    assert LatencyEstimator()(**inputs(vision_tokens=0.0))["T_prefill_total"] >= 0


def test_a_tier_between_two_is_refused():
    with pytest.raises(ValueError, match=r"tier_idx is 0\.5"):
        LatencyEstimator()(**inputs(tier_idx=0.5))


def test_shapes_must_agree():
    columns = inputs(3) | {"top_k": torch.full((2,), 4.0)}
    with pytest.raises(ValueError, match="one length"):
        LatencyEstimator()(**columns)
    with pytest.raises(ValueError, match="at least 1"):
        LatencyEstimator()(**inputs(0))
    with pytest.raises(TypeError, match="top_k"):
        LatencyEstimator()(**{name: x for name, x in inputs().items() if name != "top_k"})


def test_predict_from_config_takes_names_indices_and_single_values():
    estimator = trained()
    config = {"vision_tokens": torch.tensor([384]), "text_tokens": [53], "top_k": [4]}
    config |= {"num_active_blocks": 12}
    wanted = estimator(**inputs())
    for tier in (["low"], "low", torch.tensor([0]), [0], 0):
        assert estimator.predict_from_config(config | {"tier": tier}) == wanted
    three = estimator.predict_from_config(config | {"tier": ["low", "medium", "high"]})
    assert three["T_prefill_total"].shape == (3,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tier": ["huge"]}, "unknown tier 'huge'"),
        ({"tier": [3]}, "unknown tier 3"),
        ({"tier": torch.tensor([3])}, "tier_idx is 3"),
        ({"tiers": ["low"]}, "unknown .'tiers'"),
        ({"top_k": [4, 5]}, "lengths differ"),
        ({"top_k": [None]}, "top_k is"),
        ({"text_tokens": 0}, "text_tokens is 0"),
    ],
)
def test_predict_from_config_refuses(change, message):
    config = {name: [value, value, value] for name, value in GOOD.items() if name != "tier_idx"}
    config |= {"tier": ["low", "low", "low"]} | change
    with pytest.raises(ValueError, match=message):
        LatencyEstimator().predict_from_config(config)


def test_predict_from_config_names_what_is_missing():
    with pytest.raises(ValueError, match=r"lacks .'num_active_blocks', 'tier', 'top_k'"):
        LatencyEstimator().predict_from_config({"vision_tokens": [1], "text_tokens": [1]})


def test_feasibility_is_the_arithmetic_on_every_configuration():
    estimator = trained()
    grid = {
        "vision_tokens": torch.tensor([150 + 200 * int(c.tier) for c in GRID]),
        "text_tokens": torch.full((len(GRID),), 40),
        "tier_idx": torch.tensor([int(c.tier) for c in GRID]),
        "top_k": torch.tensor([c.top_k for c in GRID]),
        "num_active_blocks": torch.tensor([c.num_blocks for c in GRID]),
    }
    latencies = estimator(**grid)
    counts = []
    for budget_ms in (1.0, 60.0, 120.0, 180.0, 250.0, 1e4):
        for tokens in (1, 5, 11.5):
            total = latencies["T_prefill_total"] + latencies["T_decode_per_token"] * tokens
            feasible = estimator.check_budget_feasibility(
                **grid, latency_budget=budget_ms, expected_output_tokens=tokens
            )
            assert feasible.dtype == torch.bool
            assert torch.equal(feasible, total <= budget_ms)
            counts.append(int(feasible.sum()))
    assert min(counts) == 0
    assert max(counts) == len(GRID)
    assert len(set(counts)) > 4
    by_row = estimator.check_budget_feasibility(
        **grid, latency_budget=total, expected_output_tokens=torch.full((len(GRID),), tokens)
    )
    assert by_row.all()


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_budgets_are_refused(value):
    with pytest.raises(ValueError, match="latency_budget"):
        LatencyEstimator().check_budget_feasibility(
            **inputs(), latency_budget=value, expected_output_tokens=5
        )
    with pytest.raises(ValueError, match="expected_output_tokens"):
        LatencyEstimator().check_budget_feasibility(
            **inputs(), latency_budget=100, expected_output_tokens=value
        )


def test_train_step_learns_and_returns_its_losses():
    torch.manual_seed(0)
    trainer = LatencyEstimatorTrainer(LatencyEstimator(), device="cpu", lr=1e-3)
    first = trainer.train_step(batch())
    assert first["loss"] == first["loss_prefill"] + first["loss_decode"]
    # Both heads start near the mean, so each loss starts near one squared scale.
    assert first["loss_prefill"] == pytest.approx(1, abs=0.2)
    assert first["loss_decode"] == pytest.approx(1, abs=0.2)
    for _ in range(200):
        last = trainer.train_step(batch())
    assert last["loss"] < 0.02


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_train_step_refuses_senseless_times(name, value):
    columns = batch()
    columns[name][3] = value
    with pytest.raises(ValueError, match=f"{name} is .* in row 3"):
        LatencyEstimatorTrainer(LatencyEstimator()).train_step(columns)


def test_train_step_names_what_is_missing():
    with pytest.raises(ValueError, match="lacks T_prefill_total, T_decode_per_token"):
        LatencyEstimatorTrainer(LatencyEstimator()).train_step(only_inputs(batch()))


def test_constant_columns_and_a_single_record_train():
    for count in (1, 8):
        columns = inputs(count)
        columns |= {"T_prefill_total": torch.full((count,), 120.0)}
        columns |= {"T_decode_per_token": torch.full((count,), 9.0)}
        trainer = LatencyEstimatorTrainer(LatencyEstimator())
        for _ in range(20):
            assert np.isfinite(trainer.train_step(columns)["loss"])
        assert trainer.model(**inputs())["T_prefill_total"].item() == pytest.approx(120, rel=0.02)


def test_a_saved_estimator_predicts_the_same(tmp_path):
    estimator = trained()
    estimator.save(tmp_path / "new" / "estimator.safetensors")
    loaded = LatencyEstimator.load(tmp_path / "new" / "estimator.safetensors")
    columns = only_inputs(batch())
    assert loaded.is_scaled
    for name in TARGETS:
        assert torch.equal(loaded(**columns)[name], estimator(**columns)[name])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["estimator.safetensors"]


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "estimator.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"estimator\.safetensors cannot be read"):
        LatencyEstimator.load(path)


def test_a_cut_file_is_named(tmp_path):
    path = tmp_path / "estimator.safetensors"
    LatencyEstimator().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        LatencyEstimator.load(path)


def test_batched_prediction_is_under_a_tenth_of_a_millisecond_a_sample():
    estimator = LatencyEstimator(num_layers=3)
    for count in (64, 256, 1024):
        columns = only_inputs(batch(count))
        times_ms = []
        with torch.no_grad():
            for _ in range(30):
                start = time.perf_counter()
                estimator(**columns)
                times_ms.append((time.perf_counter() - start) * 1e3)
        print(f"batch {count}: {median(times_ms) / count * 1e3:.1f} us a sample")
        assert median(times_ms) / count < 0.1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("num_layers", [2, 3])
def test_ten_seeds_reach_the_noise_floor(tmp_path, num_layers):
    folder = write_profiles(tmp_path / "profiles", count=60, datasets=("okvqa", "text_vqa"))
    table = LatencyTable.of(ProfileReader(folder), DecodeReading.RECORDED)
    for seed in range(10):
        train, val = split_by_sample(table, train_share=0.8, seed=seed)
        config = FitConfig(num_epochs=20, seed=seed, num_layers=num_layers)
        fit = EstimatorFit(train, val, config)
        for _ in range(config.num_epochs):
            metrics = fit.run_epoch().val
        floor = LatencyMetrics.of(law_predictions(Law(), val.inputs_N5), val.targets_ms_N2)
        prefill = metrics.mae_prefill_ms / floor.mae_prefill_ms
        decode = metrics.mae_decode_per_token_ms / floor.mae_decode_per_token_ms
        print(
            f"seed {seed}: prefill {prefill:.3f} x floor, {metrics.rel_error_prefill:.2%}, "
            f"R2 {metrics.r2_prefill:.3f}; decode {decode:.3f} x floor, "
            f"{metrics.rel_error_decode_per_token:.2%}, R2 {metrics.r2_decode_per_token:.3f}"
        )
        assert max(prefill, decode) < 1.3
        assert metrics.rel_error_prefill < 0.05
        assert metrics.rel_error_decode_per_token < 0.1
        spread = predict_table(fit.estimator, val).std(0) / val.targets_ms_N2.std(0)
        assert (spread > 0.9).all(), "a head is a constant"
        assert {int(tier) for tier in val.inputs_N5[:, 2]} == {int(tier) for tier in TIERS}
