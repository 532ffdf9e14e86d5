import dataclasses

import numpy as np
import pytest
import torch

from envs.spec import Knobs, Tier
from learner.warm_start import WarmStartConfig, WarmStartExamples, warm_start
from tests.learner.synthetic import D_MODEL, FrozenBlocks, make_controller


def make_examples(controller, count: int = 60) -> WarmStartExamples:
    rng = torch.Generator().manual_seed(0)
    budgets = torch.linspace(100, 300, count, dtype=torch.float64)
    cheap = Knobs(tier=Tier.LOW, position=2, top_k=4, num_blocks=13).indices()
    full = Knobs(tier=Tier.HIGH, position=1, top_k=8, num_blocks=16).indices()
    actions = torch.tensor([cheap if budget < 200 else full for budget in budgets])
    language = torch.randn(count, D_MODEL, generator=rng)
    with torch.no_grad():
        latency = FrozenBlocks()(controller.budget_tokens(budgets), language, actions)
    return WarmStartExamples(
        language_feature_BD=language.numpy(),
        budgets_ms_B=budgets.numpy(),
        latency_token_BD=latency.numpy(),
        actions_B4=actions.numpy(),
        is_stage1_target_B=np.ones(count, dtype=bool),
    )


def test_both_stages_learn_the_targets_and_the_budget_encoder_keeps_its_weights():
    controller = make_controller()
    before = controller.to_numpy()
    record = warm_start(controller, make_examples(controller), WarmStartConfig(steps=200))
    assert record.cross_entropy_before == pytest.approx(np.log(3 * 5 * 5 * 4.5), abs=0.1)
    assert record.cross_entropy_after < 0.5
    assert min(record.accuracy_by_head.values()) > 0.9
    after = controller.to_numpy()
    encoder = [name for name in before if name.startswith("budget_encoder")]
    assert encoder
    assert all(np.array_equal(before[name], after[name]) for name in encoder)
    assert not np.array_equal(before["stage1.language.weight"], after["stage1.language.weight"])


def test_stage1_does_not_learn_from_detours():
    controller = make_controller()
    before = controller.to_numpy()
    examples = make_examples(controller)
    none = np.zeros(len(examples.budgets_ms_B), dtype=bool)
    config = WarmStartConfig(steps=20, entropy_coef=0.0)
    warm_start(controller, dataclasses.replace(examples, is_stage1_target_B=none), config)
    changed = {
        name.split(".")[0]
        for name, weight in controller.to_numpy().items()
        if not np.array_equal(before[name], weight)
    }
    assert changed == {"stage2"}


def test_same_seed_same_weights():
    digests = []
    for _ in range(2):
        controller = make_controller()
        warm_start(controller, make_examples(controller), WarmStartConfig(steps=5))
        digests.append(controller.to_numpy()["stage2.heads.weight"].tobytes())
    assert digests[0] == digests[1]


def test_shapes_are_checked():
    examples = make_examples(make_controller())
    with pytest.raises(ValueError, match="for B budgets"):
        dataclasses.replace(examples, actions_B4=examples.actions_B4[:5])
