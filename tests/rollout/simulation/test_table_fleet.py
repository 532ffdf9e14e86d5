from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.budgets import BudgetRange, BudgetSampler
from envs.spec import Knobs, all_knobs
from policy.config import ControllerConfig, PolicySetup
from policy.controller import Controller
from policy.weights import PolicyWeights, weights_sha256
from rollout.profiling.profile_table import ProfileTable
from rollout.requests import GreedyRequest, GroupRequest
from rollout.simulation.stand_in_blocks import StandInBlocks
from rollout.simulation.table_fleet import TableFleet
from rollout.simulation.table_samples import TableSamples, mean_embeddings

D_MODEL, NUM_SAMPLES = 12, 7
SETUP = PolicySetup(
    controller=ControllerConfig(d_model=D_MODEL, budget_low_ms=10, budget_high_ms=50),
    budgets=BudgetSampler(
        range=BudgetRange(low_ms=10, high_ms=50), uniform_from_ms=15, share_below=0.1
    ),
)


def table() -> ProfileTable:
    rng = np.random.default_rng(0)
    names = tuple(f"s{row}" for row in range(NUM_SAMPLES))
    return ProfileTable(
        configurations=tuple(all_knobs()),
        sample_ids=names,
        tasks=("a",) * NUM_SAMPLES,
        prompts=names,
        scores=rng.random((NUM_SAMPLES, 225)).astype(np.float32),
        latencies_ms=rng.uniform(10, 60, (NUM_SAMPLES, 225)).astype(np.float32),
        cheapest_ms=np.full(NUM_SAMPLES, 12, np.float32),
    )


def fleet() -> TableFleet:
    features = np.random.default_rng(1).normal(size=(NUM_SAMPLES, D_MODEL)).astype(np.float32)
    samples = TableSamples(
        table=table(), language_feature_SD=features, image_feature_SI=features[:, :0]
    )
    return TableFleet({"train": samples}, StandInBlocks(D_MODEL))


def weights(seed: int = 0) -> PolicyWeights:
    torch.manual_seed(seed)
    arrays = Controller(SETUP.controller).to_numpy()
    return PolicyWeights(version=3, sha256=weights_sha256(arrays), arrays=arrays)


def requests(count: int = 4, size: int = 5) -> list[GroupRequest]:
    return [
        GroupRequest(
            group_id=n,
            run_seed=0,
            step=2,
            split="train",
            index=100 + n,
            budget_ms=12.0 + 9 * n,
            group_size=size,
        )
        for n in range(count)
    ]


def test_outcomes_are_the_tables():
    world, expected = fleet(), table()
    groups = world.collect(world.submit(requests(), SETUP, weights()))
    assert [g.group_id for g in groups] == [0, 1, 2, 3]
    for group in groups:
        row = (100 + group.group_id) % NUM_SAMPLES
        assert group.sample_id == f"s{row}"
        assert group.policy_version == 3
        for member, action in enumerate(group.actions):
            column = expected.column(Knobs.from_indices(action))
            assert group.scores[member] == expected.scores[row, column]
            assert group.latencies_ms[member] == expected.latencies_ms[row, column]


def test_a_group_does_not_depend_on_its_batch():
    world = fleet()
    whole = world.collect(world.submit(requests(), SETUP, weights()))
    alone = world.collect(world.submit(requests()[2:3], SETUP, weights()))
    assert np.array_equal(whole[2].actions, alone[0].actions)
    other = [replace(request, step=5) for request in requests()]
    assert any(
        not np.array_equal(a.actions, b.actions)
        for a, b in zip(whole, world.collect(world.submit(other, SETUP, weights())), strict=True)
    )


def test_groups_have_the_price_of_their_request():
    """A controller that knows prices sees them; one that does not acts as before."""
    world, prices = fleet(), (0.0, 0.05, 0.5, 2.0)
    asked = [replace(r, price=price) for r, price in zip(requests(), prices, strict=True)]
    plain, groups = (
        world.collect(world.submit(batch, SETUP, weights())) for batch in (requests(), asked)
    )
    assert [group.price for group in groups] == list(prices)
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(plain, groups, strict=True))
    config = replace(SETUP.controller, price_low=0.01, price_high=2.0)
    torch.manual_seed(0)
    priced, controller = replace(SETUP, controller=config), Controller(config)
    arrays = controller.to_numpy()
    knowing = PolicyWeights(version=3, sha256=weights_sha256(arrays), arrays=arrays)
    for group in world.collect(world.submit(asked, priced, knowing)):
        with torch.no_grad():
            terms = torch.tensor([[group.budget_ms], [group.price]])
            expected = controller.budget_tokens(*terms)[0].numpy()
        assert np.allclose(group.budget_token, expected, atol=1e-6)


def test_greedy_groups_have_one_episode_with_the_likeliest_choices():
    world = fleet()
    greedy = [
        GreedyRequest(group_id=r.group_id, split=r.split, index=r.index, budget_ms=r.budget_ms)
        for r in requests()
    ]
    first, again = (world.evaluate(greedy, SETUP, weights()) for _ in range(2))
    assert all(group.group_size == 1 for group in first)
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(first, again, strict=True))


def test_gradients_are_exact():
    """Against finite differences in float64, over members of all tiers and positions."""
    world = fleet()
    rng = torch.Generator().manual_seed(0)
    token_ND = torch.randn(3, D_MODEL, generator=rng, dtype=torch.float64)
    groups = world.collect(world.submit(requests(3, 30), SETUP, weights()))
    world.blocks.double()
    batch = world._collected
    assert batch is not None
    world._collected = replace(
        batch, budget_token_ND=token_ND, feature_ND=batch.feature_ND.double()
    )
    upstream_NGD = torch.randn(3, 30, D_MODEL, generator=rng, dtype=torch.float64)
    result_ND = np.stack(world.budget_gradients(groups, list(upstream_NGD.numpy())))

    def loss(token_ND: torch.Tensor) -> float:
        actions = torch.from_numpy(np.concatenate([g.actions for g in groups]))
        features = torch.from_numpy(np.stack([g.language_feature for g in groups])).double()
        latency_BD = world.blocks(
            token_ND.repeat_interleave(30, 0),
            features.repeat_interleave(30, 0),
            actions[:, 0],
            actions[:, 1],
        )
        return float((latency_BD * upstream_NGD.flatten(0, 1)).sum())

    for n in range(3):
        for d in range(D_MODEL):
            nudge = torch.zeros_like(token_ND)
            nudge[n, d] = 1e-5
            numeric = (loss(token_ND + nudge) - loss(token_ND - nudge)) / 2e-5
            assert result_ND[n, d] == pytest.approx(numeric, rel=1e-5, abs=1e-7)


def test_latency_tokens_tell_tier_position_sample_and_budget_apart():
    blocks = StandInBlocks(D_MODEL)
    rng = torch.Generator().manual_seed(0)
    token, feature = (torch.randn(1, D_MODEL, generator=rng) for _ in range(2))
    base = blocks(token, feature, torch.tensor([0]), torch.tensor([0]))
    for other in (
        blocks(token, feature, torch.tensor([1]), torch.tensor([0])),
        blocks(token, feature, torch.tensor([0]), torch.tensor([1])),
        blocks(token, -feature, torch.tensor([0]), torch.tensor([0])),
        blocks(-token, feature, torch.tensor([0]), torch.tensor([0])),
    ):
        assert (base - other).norm() > 0.1 * base.norm()


def test_language_features_are_mean_embeddings():
    embedding = np.eye(3, dtype=np.float32)
    found = mean_embeddings(
        ("0 1", "2"), lambda p: np.array([int(w) for w in p.split()]), embedding
    )
    assert np.array_equal(found, [[0.5, 0.5, 0], [0, 0, 1]])


def test_a_profile_of_some_configurations_is_refused():
    whole = table()
    part = replace(
        whole,
        configurations=whole.configurations[:200],
        scores=whole.scores[:, :200],
        latencies_ms=whole.latencies_ms[:, :200],
    )
    features = np.zeros((NUM_SAMPLES, D_MODEL), np.float32)
    blind = features[:, :0]
    samples = TableSamples(table=part, language_feature_SD=features, image_feature_SI=blind)
    with pytest.raises(ValueError, match="200 of 225"):
        TableFleet({"train": samples}, StandInBlocks(D_MODEL))
    with pytest.raises(ValueError, match="one row each"):
        TableSamples(table=whole, language_feature_SD=features[:3], image_feature_SI=blind)
