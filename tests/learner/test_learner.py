import io
import pickle

import numpy as np
import pytest
import torch

from learner.config import EntropySchedule, LearnerConfig, LossConfig
from learner.learner import Learner
from learner.update import NonFiniteUpdateError
from policy.weights import weights_sha256
from tests.learner.synthetic import (
    D_MODEL,
    FrozenBlocks,
    flat_gradient,
    make_controller,
    run_groups,
)
from tests.policy.evaluating import evaluate

BLOCKS = FrozenBlocks()


def make_learner(tmp_path, **fields) -> Learner:
    return Learner(make_controller(head_std=0.3), LearnerConfig(**fields))


def make_groups(learner: Learner, count: int = 3, size: int = 4, seed: int = 0, version: int = 0):
    rng = torch.Generator().manual_seed(seed)
    language = torch.randn(count, D_MODEL, generator=rng)
    budgets = 100 + 200 * torch.rand(count, generator=rng)
    groups = run_groups(learner.controller, BLOCKS, language, budgets, size, rng, version)
    rewards = np.random.default_rng(seed).normal(size=(2, count, size))
    return groups, *rewards


def update(learner: Learner, groups, score, constraint):
    measured = learner.learn_from_groups(groups, score, constraint)
    return learner.update(measured, BLOCKS.vjp(learner.controller, measured))


def test_one_update_changes_all_trained_weights_and_the_version(tmp_path):
    learner = make_learner(tmp_path)
    before = learner.weights()
    record = update(learner, *make_groups(learner))
    after = learner.weights()
    assert (before.version, record.version, after.version) == (0, 1, 1)
    assert record.applied
    assert record.loss.ratio_mean == 1
    assert record.loss.clip_share == 0
    assert record.loss.importance_mean == pytest.approx(1, abs=1e-5)
    assert after.sha256 == weights_sha256(after.arrays) != before.sha256
    unchanged = [n for n in before.arrays if np.array_equal(before.arrays[n], after.arrays[n])]
    assert unchanged == []


def test_first_step_of_adam_by_hand(tmp_path):
    """Adam's first step is lr * sign(gradient), so the rates can be read off the weights."""
    ratios = {"stage1_lr_ratio": 0.5, "budget_lr_ratio": 0.1}
    learner = make_learner(tmp_path, learning_rate=1e-3, weight_decay=0.0, **ratios)
    before = learner.weights().arrays
    update(learner, *make_groups(learner))
    after = learner.weights().arrays
    rates = {
        "stage1.heads.bias": 5e-4,
        "stage2.heads.bias": 1e-3,
        "budget_encoder.mlp.3.weight": 1e-4,
    }
    for name, rate in rates.items():
        np.testing.assert_allclose(np.abs(after[name] - before[name]), rate, rtol=1e-2)


def test_zero_variance_groups_are_masked_and_counted(tmp_path):
    learner = make_learner(tmp_path, entropy=EntropySchedule(start=0, end=0))
    groups, score, constraint = make_groups(learner)
    score[1], constraint[1] = 0.5, -0.1
    measured = learner.learn_from_groups(groups, score, constraint)
    assert [bool(np.abs(grads).max() > 0) for grads in measured.latency_token_grads] == [
        True,
        False,
        True,
    ]
    record = learner.update(measured, BLOCKS.vjp(learner.controller, measured))
    assert record.num_zero_variance_groups == 1


ENTROPY_COEF = 0.7


def entropy_bonus(controller, groups, tokens_ND, latency_BD):
    """What the loss has of the entropies, differentiable by both kinds of token."""
    size = groups[0].group_size
    language_ND = torch.from_numpy(np.stack([group.language_feature for group in groups]))
    evaluation = evaluate(
        controller,
        language_ND.to(tokens_ND).repeat_interleave(size, 0),
        tokens_ND.repeat_interleave(size, 0),
        latency_BD,
        torch.from_numpy(np.concatenate([group.actions for group in groups])),
    )
    return -ENTROPY_COEF * evaluation.entropies_B4.sum(-1).mean()


def test_masked_groups_send_the_gradient_of_the_entropy_bonus_alone(tmp_path):
    entropy = EntropySchedule(start=ENTROPY_COEF, end=ENTROPY_COEF)
    learner = make_learner(tmp_path, entropy=entropy)
    groups, score, constraint = make_groups(learner)
    score[1], constraint[1] = 0.5, -0.1
    measured = learner.learn_from_groups(groups, score, constraint)
    tokens_ND = learner.controller.budget_tokens(torch.tensor([g.budget_ms for g in groups]))
    latency_BD = torch.from_numpy(np.concatenate([group.latency_tokens for group in groups]))
    bonus = entropy_bonus(learner.controller, groups, tokens_ND, latency_BD.requires_grad_())
    (expected_BD,) = torch.autograd.grad(bonus, latency_BD)
    expected = expected_BD.view(3, 4, D_MODEL).numpy()
    same = [
        np.array_equal(*pair) for pair in zip(measured.latency_token_grads, expected, strict=True)
    ]
    assert same == [False, True, False]
    assert (np.abs(expected[1]).max(-1) > 0).all(), "in every episode"


def test_the_entropy_of_masked_groups_reaches_the_budget_encoder_by_both_ways(tmp_path):
    """The whole gradient is that of autograd through stage 1's input and the frozen blocks."""
    entropy = EntropySchedule(start=ENTROPY_COEF, end=ENTROPY_COEF)
    settings = {"learning_rate": 1e-30, "weight_decay": 0.0, "grad_clip": 1e9, "entropy": entropy}
    learner = Learner(make_controller(head_std=0.3).double(), LearnerConfig(**settings))
    controller, blocks = learner.controller, FrozenBlocks(torch.float64)
    rng = torch.Generator().manual_seed(0)
    language_ND = torch.randn(3, D_MODEL, generator=rng).double()
    budgets_N = torch.tensor([110.0, 200.0, 290.0])
    groups = run_groups(controller, blocks, language_ND, budgets_N, 4, rng)
    nothing = np.zeros((3, 4))
    measured = learner.learn_from_groups(groups, nothing, nothing)
    record = learner.update(measured, blocks.vjp(controller, measured))
    assert record.num_zero_variance_groups == 3
    found = flat_gradient(controller).clone()

    actions_B4 = torch.from_numpy(np.concatenate([group.actions for group in groups]))
    expected = {}
    for way in ("both", "stage 1"):
        tokens_ND = controller.budget_tokens(budgets_N)
        through_ND = tokens_ND if way == "both" else tokens_ND.detach()
        token_BD, language_BD = (x.repeat_interleave(4, 0) for x in (through_ND, language_ND))
        latency_BD = blocks(token_BD, language_BD, actions_B4)
        controller.zero_grad()
        entropy_bonus(controller, groups, tokens_ND, latency_BD).backward()
        expected[way] = flat_gradient(controller).clone()
    torch.testing.assert_close(found, expected["both"], rtol=1e-5, atol=1e-8)
    encoder = slice(sum(w.numel() for w in controller.budget_encoder.parameters()))
    lost = (expected["both"] - expected["stage 1"])[encoder].norm()
    assert lost > 0.1 * expected["both"][encoder].norm(), "neither way is negligible"
    assert lost < 0.9 * expected["both"][encoder].norm()


def test_several_epochs_clip_against_the_first(tmp_path):
    learner = make_learner(tmp_path, learning_rate=0.05, epochs=4)
    record = update(learner, *make_groups(learner))
    assert record.version == 1
    assert record.loss.ratio_max > 1.01
    assert record.loss.clip_share > 0


def test_kl_holds_on_to_the_initial_controller(tmp_path):
    distances = []
    for kl_coef in (0.0, 10.0):
        learner = make_learner(
            tmp_path,
            learning_rate=0.01,
            loss=LossConfig(kl_coef=kl_coef),
            entropy=EntropySchedule(start=0, end=0),
        )
        for seed in range(20):
            groups, score, constraint = make_groups(learner, seed=seed)
            favoured = np.stack([group.actions[:, 0] for group in groups]).astype(float)
            update(learner, groups, score + 5 * favoured, constraint)
        groups, *_ = make_groups(learner, count=40, seed=100)
        tiers = np.concatenate([group.actions[:, 0] for group in groups])
        distances.append((tiers == 2).mean())
    assert distances[1] < distances[0] - 0.2


def test_staleness_is_corrected_and_reported(tmp_path):
    learner = make_learner(tmp_path, learning_rate=0.02)
    old_groups = make_groups(learner, version=0)
    update(learner, *make_groups(learner, seed=1))
    record = update(learner, *old_groups)
    assert (record.staleness_mean, record.staleness_max) == (1.0, 1)
    assert record.loss.behaviour_kl > 0
    assert record.loss.ratio_mean == 1


@pytest.mark.parametrize("where", ["reward", "budget_token_grad"])
def test_nonfinite_update_is_skipped_then_stops_with_the_batch_saved(tmp_path, where):
    learner = make_learner(tmp_path, max_nonfinite_updates=1)
    update(learner, *make_groups(learner))
    before = learner.weights()

    def bad_update():
        groups, score, constraint = make_groups(learner)
        if where == "reward":
            score[0, 0] = np.nan
        measured = learner.learn_from_groups(groups, score, constraint)
        grads = BLOCKS.vjp(learner.controller, measured)
        if where == "budget_token_grad":
            grads[0][2] = np.inf
        return learner.update(measured, grads)

    record = bad_update()
    assert (record.applied, record.version, record.num_nonfinite_total) == (False, 1, 1)
    assert learner.weights().sha256 == before.sha256
    assert update(learner, *make_groups(learner)).applied
    assert not bad_update().applied
    before = learner.weights()
    with pytest.raises(NonFiniteUpdateError, match="2 consecutive updates") as caught:
        bad_update()
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert learner.weights().sha256 == before.sha256
    path = error.save(tmp_path)
    assert path.name == "nonfinite_version_00000002.npz"
    with np.load(path, allow_pickle=False) as saved:
        assert saved["actions"].shape == (3, 4, 4)
        assert saved["sample_id"].tolist() == ["0", "1", "2"]
        assert saved["price"].tolist() == [0.0, 0.0, 0.0]
        assert not np.isfinite(saved["score_rewards"].sum() + saved["budget_token_grads"].sum())


def test_resume_is_bit_identical(tmp_path):
    whole, cut = make_learner(tmp_path), make_learner(tmp_path)
    for seed in range(3):
        update(whole, *make_groups(whole, seed=seed))
        update(cut, *make_groups(cut, seed=seed))
    buffer = io.BytesIO()
    torch.save(cut.state_dict(), buffer)
    buffer.seek(0)
    resumed = Learner(make_controller(seed=5), LearnerConfig())
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for seed in range(3, 6):
        update(whole, *make_groups(whole, seed=seed))
        update(resumed, *make_groups(resumed, seed=seed))
    assert whole.weights().version == resumed.weights().version == 6
    assert whole.weights().sha256 == resumed.weights().sha256


def test_only_the_last_gradient_can_be_taken(tmp_path):
    learner = make_learner(tmp_path)
    batch = make_groups(learner)
    first = learner.learn_from_groups(*batch)
    second = learner.learn_from_groups(*batch)
    grads = BLOCKS.vjp(learner.controller, second)
    with pytest.raises(ValueError, match="compute it again"):
        learner.update(first, grads)
    learner.update(second, grads)
    with pytest.raises(ValueError, match="compute it again"):
        learner.update(second, grads)


def test_wrong_batches_are_refused(tmp_path):
    learner = make_learner(tmp_path)
    groups, score, constraint = make_groups(learner)
    other, *_ = make_groups(learner, size=3)
    with pytest.raises(ValueError, match=r"sizes \[3, 4\]"):
        learner.learn_from_groups([*groups, *other], score, constraint)
    with pytest.raises(ValueError, match="one for each episode"):
        learner.learn_from_groups(groups, score[:2], constraint[:2])
    with pytest.raises(ValueError, match="unknown advantage"):
        LearnerConfig(advantage="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="learning_rate is 0"):
        LearnerConfig(learning_rate=0)


def test_learning_rates_fall_linearly_and_stay(tmp_path):
    learner = make_learner(
        tmp_path, learning_rate=1e-2, stage1_lr_ratio=0.5, final_lr_ratio=0.2, lr_steps=4
    )
    rates = []
    for seed in range(6):
        update(learner, *make_groups(learner, seed=seed))
        rates.append([group["lr"] for group in learner.optimizer.param_groups])
    expected = np.array([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    np.testing.assert_allclose(rates, np.outer(expected, [1e-2, 5e-3, 1e-2]))
    with pytest.raises(ValueError, match="final_lr_ratio"):
        LearnerConfig(final_lr_ratio=1.5)
