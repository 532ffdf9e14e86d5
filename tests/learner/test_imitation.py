import dataclasses

import numpy as np
import pytest
import torch

from envs.spec import HEAD_SIZES, Knobs, Tier
from learner.imitation import WarmStartConfig, WarmStartExamples, warm_start
from learner.objective import soft_value
from tests.learner.synthetic import D_MODEL, FrozenBlocks, make_controller

CHEAP = Knobs(tier=Tier.LOW, position=2, top_k=4, num_blocks=13).indices()
FULL = Knobs(tier=Tier.HIGH, position=1, top_k=8, num_blocks=16).indices()


def make_examples(controller, count: int = 60) -> WarmStartExamples:
    """Below 200 ms one configuration earns 1, above it another; all others earn nothing."""
    rng = torch.Generator().manual_seed(0)
    budgets = torch.linspace(100, 300, count, dtype=torch.float64)
    gains = np.zeros((count, *HEAD_SIZES), np.float32)
    gains[:30, *CHEAP], gains[30:, *FULL] = 1.0, 1.0
    language = torch.randn(count, D_MODEL, generator=rng)
    places = torch.cartesian_prod(torch.arange(3), torch.arange(5))
    with torch.no_grad():
        latency = FrozenBlocks()(
            controller.budget_tokens(budgets).repeat_interleave(15, 0),
            language.repeat_interleave(15, 0),
            torch.nn.functional.pad(places, (0, 2)).repeat(count, 1),
        )
    return WarmStartExamples(
        language_feature_BD=language.numpy(),
        image_feature_BI=np.zeros((count, 0), np.float32),
        budgets_ms_B=budgets.numpy(),
        prices_B=np.zeros(count),
        latency_token_BAPD=latency.view(count, 3, 5, -1).numpy(),
        gains_BAPKN=gains,
    )


def test_soft_value_by_hand():
    first = torch.tensor([0.0, np.log(3.0)], dtype=torch.float64)
    second = torch.tensor([0.0, -torch.inf, 0.0], dtype=torch.float64)
    gains = torch.tensor([[1.0, 9.0, 3.0], [5.0, 9.0, 7.0]], dtype=torch.float64)
    expected = 0.25 * 2 + 0.75 * 6
    entropies = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) + np.log(2)
    value = soft_value((first, second), gains, temperature=0.5)
    assert float(value) == pytest.approx(expected + 0.5 * entropies)
    assert float(soft_value((first, second), gains, temperature=0.0)) == pytest.approx(expected)


def test_both_stages_learn_what_earns_and_the_budget_encoder_keeps_its_weights():
    controller = make_controller()
    before = controller.to_numpy()
    record = warm_start(controller, make_examples(controller), WarmStartConfig(steps=300))
    assert record.regret_before > 0.9
    assert record.regret_after < 0.05
    after = controller.to_numpy()
    encoder = [name for name in before if name.startswith("budget_encoder")]
    assert encoder
    assert all(np.array_equal(before[name], after[name]) for name in encoder)
    assert not np.array_equal(before["stage1.language.weight"], after["stage1.language.weight"])


def test_stage2_answers_for_what_stage1_does_not_choose():
    """Behind the high tier, which earns less everywhere, all experts still earn most."""
    controller = make_controller()
    examples = make_examples(controller)
    gains = np.zeros_like(examples.gains_BAPKN)
    gains[:, 0] = 1.0
    gains[:, 2, :, 4] = 0.5
    examples = dataclasses.replace(examples, gains_BAPKN=gains)
    warm_start(controller, examples, WarmStartConfig(steps=300))
    tokens = torch.from_numpy(examples.latency_token_BAPD)
    features = torch.from_numpy(examples.language_feature_BD)
    with torch.no_grad():
        budget_tokens = controller.budget_tokens(torch.from_numpy(examples.budgets_ms_B))
        tier, _ = controller.stage1_logits(features, budget_tokens)
        assert (tier.argmax(-1) == 0).all()
        top_k, _ = controller.stage2_logits(tokens[:, 2, 1], torch.ones(60, dtype=torch.int64))
    assert (top_k.argmax(-1) == 4).all()


def test_unknown_configurations_count_as_the_worst():
    controller = make_controller()
    examples = make_examples(controller)
    gains = np.full_like(examples.gains_BAPKN, -np.inf)
    gains[:, *CHEAP], gains[:, *FULL] = 0.2, 0.1
    examples = dataclasses.replace(examples, gains_BAPKN=gains)
    record = warm_start(controller, examples, WarmStartConfig(steps=200))
    assert record.regret_after < 0.05


def test_same_seed_same_weights():
    digests = []
    for _ in range(2):
        controller = make_controller()
        warm_start(controller, make_examples(controller), WarmStartConfig(steps=5))
        digests.append(controller.to_numpy()["stage2.heads.weight"].tobytes())
    assert digests[0] == digests[1]


def test_temperature_falls_to_its_last():
    config = WarmStartConfig(steps=100, first_temperature=1.0, last_temperature=0.01)
    found = [config.temperature(step) for step in (0, 35, 70, 99)]
    assert found == pytest.approx([1.0, 0.1, 0.01, 0.01])


def test_shapes_and_gains_are_checked():
    examples = make_examples(make_controller())
    with pytest.raises(ValueError, match="for B budgets"):
        dataclasses.replace(examples, gains_BAPKN=examples.gains_BAPKN[:5])
    with pytest.raises(ValueError, match="finite gain"):
        dataclasses.replace(examples, gains_BAPKN=np.full_like(examples.gains_BAPKN, -np.inf))
