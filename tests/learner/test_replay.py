import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.reward import BudgetReward, budget_reward
from envs.spec import all_knobs
from learner.archive import name_of
from learner.config import LearnerConfig, OutcomeModelConfig, ReplayConfig
from learner.learner import Learner
from learner.outcome_model import OutcomeModel
from learner.replay import Replay
from learner.replay_buffer import Episodes, ReplayBuffer, TaskNames
from rollout.profiling.profile_table import ProfileTable
from tests.learner.synthetic import ACTIONS, D_MODEL, FrozenBlocks, make_controller, run_groups
from tests.pretended_accelerator import DEVICE

BLOCKS = FrozenBlocks()
SMALL = ReplayConfig(
    warm_up=8, batch_size=64, model=OutcomeModelConfig(input_dropout=0, dropout=0, weight_decay=0)
)
TOP_K_COST_MS = 20.0


def outcomes_of(actions_G4):
    """The right answer needs the high tier, and each step of top_k costs 20 ms."""
    scores = (actions_G4[:, 0] == 2).astype(np.float32)
    return scores, 100.0 + TOP_K_COST_MS * actions_G4[:, 2]


def make_groups(controller, seed=0, count=16, size=4, prices=(0.0,)):
    """The groups take turns at the prices."""
    rng = torch.Generator().manual_seed(seed)
    language_ND = torch.randn(count, D_MODEL, generator=rng)
    budgets_N = 130 + 60 * torch.rand(count, generator=rng)
    prices_N = torch.tensor(prices)[torch.arange(count) % len(prices)]
    groups = run_groups(controller, BLOCKS, language_ND, budgets_N, size, rng, prices_N=prices_N)
    done = []
    for group in groups:
        scores, latencies = outcomes_of(group.actions)
        done.append(replace(group, scores=scores, latencies_ms=latencies))
    return done


FULL_MS = 180.0
WORTH = BudgetReward(
    violation_cost=lambda budgets_ms: np.full(np.shape(budgets_ms), 0.8), full_ms=FULL_MS
)


class Follower:
    """A policy that follows the outcome model alone."""

    def __init__(self, controller):
        self.replay = Replay(controller, SMALL)
        weights = [*controller.stage1.parameters(), *controller.stage2.parameters()]
        self.optimizer = torch.optim.Adam(weights, lr=5e-3)

    def learn(self, groups, seed, temperature=0.02):
        """One step; returns the policy's regret in the middle of it."""
        self.replay.take_in(groups, seed)
        regrets = [0.0]
        if self.replay.is_ready:
            regrets = [self._update(temperature) for _ in range(SMALL.policy_updates)]
        return float(np.mean(regrets))

    def _update(self, temperature):
        self.optimizer.zero_grad()
        regret = self.replay.backward(WORTH, temperature)
        self.optimizer.step()
        return regret


def test_experience_keeps_the_latest_batches_and_draws_from_them_alone():
    controller, experience = make_controller(), ReplayBuffer(capacity=20)
    kept = []
    for seed in range(9):
        groups = make_groups(controller, seed, count=8 - seed % 3, prices=(0.0, 0.1, 1.0))
        experience.add(Episodes.of(groups, TaskNames()))
        kept.append(groups)
        while sum(map(len, kept)) > 20:
            del kept[0]
        latest = [group for batch in kept for group in batch]
        assert len(experience) == len(latest)
        assert len(experience.names) == len(kept)
        assert experience.episodes.budgets_ms_M.tolist() == [group.budget_ms for group in latest]
        assert experience.episodes.prices_M.tolist() == [group.price for group in latest]
        drawn = experience.draw(200, torch.Generator().manual_seed(0)).budgets_ms_M.tolist()
        assert set(drawn) == {group.budget_ms for group in latest}
    restored = ReplayBuffer(capacity=20)
    restored.add(Episodes.of(groups, TaskNames()))
    restored.restore(experience.names, experience.archive())
    for name, tensor in restored.episodes.tensors().items():
        assert torch.equal(tensor, experience.episodes.tensors()[name]), name


def test_what_was_remembered_is_archived_once():
    controller, experience = make_controller(), ReplayBuffer(capacity=100)
    experience.add(Episodes.of(make_groups(controller, 0), TaskNames()))
    first = experience.archive()
    experience.add(Episodes.of(make_groups(controller, 1), TaskNames()))
    both = experience.archive()
    assert list(both)[: len(first)] == list(first)
    assert len(both) == 2
    assert all(name_of(content) == name for name, content in both.items())


def test_a_batch_beyond_the_capacity_leaves_its_last_groups():
    controller, experience = make_controller(), ReplayBuffer(capacity=5)
    groups = make_groups(controller, 0, count=8)
    experience.add(Episodes.of(groups, TaskNames()))
    assert experience.episodes.budgets_ms_M.tolist() == [g.budget_ms for g in groups[-5:]]


def test_the_policy_finds_the_best_configurations_and_keeps_the_budget_encoder():
    controller = make_controller()
    follower = Follower(controller)
    before = copy.deepcopy(controller.budget_encoder.state_dict())
    follower.learn(make_groups(controller, seed=0), seed=0)
    first_spread = float(follower.replay.model.spread)
    for seed in range(1, 40):
        follower.learn(make_groups(controller, seed), seed)
    assert len(follower.replay.buffer) == 40 * 16
    assert float(follower.replay.model.spread) < 0.05 < first_spread
    groups = make_groups(controller, seed=1000, count=100)
    actions = np.concatenate([group.actions for group in groups])
    budgets = np.repeat([group.budget_ms for group in groups], 4)
    _, latencies = outcomes_of(actions)
    assert (actions[:, 0] == 2).mean() > 0.95
    assert (latencies <= budgets).mean() > 0.95
    for name, weight in controller.budget_encoder.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_without_entropy_the_policy_still_learns_what_earns():
    controller = make_controller()
    follower = Follower(controller)
    before = controller.to_numpy()
    for seed in range(6):
        regret = follower.learn(make_groups(controller, seed), seed, temperature=0.0)
    after = controller.to_numpy()
    for name in ("stage1.heads.weight", "stage2.heads.weight"):
        assert not np.array_equal(before[name], after[name]), name
        assert np.isfinite(after[name]).all()
    assert 0 <= regret < 2


def test_regret_is_the_policys_own():
    """An untrained policy has more of it on the same episodes than one that learned from them."""
    controller = make_controller()
    follower = Follower(controller)
    untrained = copy.deepcopy(controller.state_dict())
    for seed in range(30):
        trained = follower.learn(make_groups(controller, seed=0), seed)
    controller.load_state_dict(untrained)
    assert trained < 0.2 < follower.learn(make_groups(controller, seed=0), 31)


def test_the_runs_seed_reaches_replay():
    first, again, other = (replayed(seed) for seed in (0, 0, 1))
    assert [torch.equal(a, b) for a, b in zip(first, again, strict=True)] == [True, True]
    assert [torch.equal(a, b) for a, b in zip(first, other, strict=True)] == [False, False]


def replayed(seed):
    """Weights of a new learner's outcome model, and what one update has made of them."""
    learner = Learner(make_controller(), LearnerConfig(replay=SMALL), seed)
    weight = learner.replay.model.score_net[1].weight
    before = weight.detach().clone()
    groups = make_groups(learner.controller, count=8)
    score = np.array([group.scores for group in groups], np.float64)
    measured = learner.learn_from_groups(groups, score, np.zeros_like(score), WORTH)
    learner.learn_from_memory(groups)
    learner.update(measured, BLOCKS.vjp(learner.controller, measured))
    return before, weight.detach() - before


def test_a_device_that_stands_still_for_a_moment_teaches_nothing():
    """One episode in 64 takes seven times as long; neither the spread nor a prediction follows."""
    ends = []
    for slow in (1.0, 7.0):
        controller = make_controller()
        replay = Replay(controller, SMALL)
        for step in range(60):
            groups = make_groups(controller, seed=step)
            struck = groups[step % 16]
            groups[step % 16] = replace(
                struck, latencies_ms=struck.latencies_ms * np.array([slow, 1, 1, 1])
            )
            replay.take_in(groups, seed=step)
        replay.model.eval()
        with torch.no_grad():
            log_ms = replay.model(replay.buffer.episodes.to(torch.zeros(()))).log_ms_BAPKN
        ends.append((float(replay.model.spread), log_ms.mean().item()))
    (spread, log_ms), (struck_spread, struck_log_ms) = ends
    assert struck_spread < spread + 0.01
    assert abs(struck_log_ms - log_ms) < 0.01


def test_the_measured_residual_repairs_a_model_that_is_wrong():
    """The model is told that the low tier is right; the measured episodes know better."""
    shares = {weight: share_of_high_tier(weight) for weight in (0.0, 1.0)}
    assert shares[0.0] < 0.1
    assert shares[1.0] > 0.6


def share_of_high_tier(residual_weight):
    config = replace(SMALL, residual_weight=residual_weight, policy_updates=4)
    settings = LearnerConfig(learning_rate=5e-3, budget_lr_ratio=0.01, replay=config)
    learner = Learner(make_controller(), settings)

    def wrong(episodes, _worth):
        gains = torch.zeros(len(episodes), 3, 5, 5, 5)
        gains[:, 0] = 0.3
        return gains

    learner.replay.model.gains = wrong
    for seed in range(60):
        groups = make_groups(learner.controller, seed)
        score = np.array([group.scores for group in groups], np.float64)
        measured = learner.learn_from_groups(groups, score, np.zeros_like(score), WORTH)
        learner.learn_from_memory(groups)
        learner.update(measured, BLOCKS.vjp(learner.controller, measured))
    actions = np.concatenate([g.actions for g in make_groups(learner.controller, 1000, count=50)])
    return (actions[:, 0] == 2).mean()


def test_both_parts_of_the_gradient_are_told():
    learner = Learner(make_controller(), LearnerConfig(learning_rate=1e-3, replay=SMALL))
    for seed in range(2):
        groups = make_groups(learner.controller, seed)
        score = np.array([group.scores for group in groups], np.float64)
        measured = learner.learn_from_groups(groups, score, np.zeros_like(score), WORTH)
        learner.learn_from_memory(groups)
        record = learner.update(measured, BLOCKS.vjp(learner.controller, measured)).replay
    assert measured.batch.is_residual
    assert record.residual > 0
    assert 0 < record.measured_share < 1
    total = record.measured_norm + record.remembered_norm
    assert record.measured_share == pytest.approx(record.measured_norm / total)


@pytest.mark.parametrize("log_ms", [4.5, 5.0, 5.4])
def test_gains_are_expected_rewards(log_ms):
    """Against the reward of many draws, where the budget is feasible for certain."""
    groups = make_groups(make_controller(), count=1)
    episodes = Episodes.of(groups, TaskNames()).to(torch.zeros(1))
    budget_ms = float(episodes.budgets_ms_M[0])
    model = OutcomeModel(D_MODEL, 0, OutcomeModelConfig())
    model.observe(episodes)
    model.mean_log_ms.fill_(log_ms)
    model.spread.fill_(0.08)
    for net, full in ((model.score_net, 0.4), (model.latency_net, 0.0)):
        net[-1].bias.data.fill_(-30.0)  # no step costs or saves anything
        net[-1].bias.data[0] = full
    model.latency_net[-1].bias.data[1] = 9.0  # the low tier always fits
    gains = model.gains(episodes, WORTH)
    draws = np.exp(log_ms + 0.08 * np.random.default_rng(0).normal(size=200_000))
    score = 1 / (1 + np.exp(-0.4))
    expected = budget_reward(score, draws, budget_ms, violation_cost=0.8).total.mean()
    assert gains[0, 1, 2, 0, 4].item() == pytest.approx(expected, abs=0.02)
    allowed = {knobs.indices() for knobs in all_knobs()}
    finite = {tuple(place) for place in gains[0].isfinite().nonzero().tolist()}
    assert finite == allowed


def test_gains_at_two_prices_differ_by_the_cost_of_the_expected_time():
    """Every group has its own price: three copies of one group, which differ in nothing else."""
    (group,) = make_groups(make_controller(), count=1)
    prices = (0.0, 0.3, 1.5)
    episodes = Episodes.of([replace(group, price=price) for price in prices], TaskNames()).to(
        torch.zeros(1)
    )
    torch.manual_seed(0)
    model = OutcomeModel(D_MODEL, 0, OutcomeModelConfig()).eval()
    model.observe(episodes)
    model.spread.fill_(0.2)
    for net in (model.score_net, model.latency_net):
        torch.nn.init.normal_(net[-1].weight)
    free, *priced = model.gains(episodes, WORTH)
    expected_ms = (model(episodes).log_ms_BAPKN[0].double() + 0.2**2 / 2).exp()
    allowed = free.isfinite()
    assert allowed.sum() == 225
    assert expected_ms[allowed].std() > 1
    for price, gains in zip(prices[1:], priced, strict=True):
        difference = (free - gains)[allowed].double()
        cost = price / FULL_MS * expected_ms[allowed]
        torch.testing.assert_close(difference, cost, rtol=1e-5, atol=1e-5)


def test_the_policy_saves_time_where_it_has_a_price():
    """Experts cost 20 ms each and earn nothing: worthless at a price, free without."""
    controller = make_controller(price_low=0.01, price_high=2.0)
    follower, prices = Follower(controller), (0.0, 1.0)
    for seed in range(25):
        follower.learn(make_groups(controller, seed, prices=prices), seed)
    groups = make_groups(controller, seed=1000, count=100, prices=prices)
    top_k = {p: np.concatenate([g.actions[:, 2] for g in groups if g.price == p]) for p in prices}
    assert top_k[1.0].mean() < 0.1
    assert top_k[0.0].mean() > 0.2
    tiers = np.concatenate([group.actions[:, 0] for group in groups])
    assert (tiers == 2).mean() > 0.9, "the right answer is worth its time"


def test_a_larger_choice_never_costs_accuracy_or_saves_time():
    torch.manual_seed(0)
    model = OutcomeModel(D_MODEL, 0, OutcomeModelConfig()).eval()
    episodes = Episodes.of(make_groups(make_controller()), TaskNames()).to(torch.zeros(1))
    model.observe(episodes)
    for net in (model.score_net, model.latency_net):
        torch.nn.init.normal_(net[-1].weight)
        torch.nn.init.normal_(net[-1].bias)
    for values in model(episodes)[:2]:  # scores and latencies
        for knob in range(2, 5):
            assert (values.diff(dim=knob) >= 0).all()
            assert values.diff(dim=knob).std() > 0.1
        assert (values[:, :, -1, -1, -1].diff(dim=1) >= 0).all()


def test_features_beyond_half_precision_are_clipped():
    (group,) = make_groups(make_controller(), count=1)
    wide = replace(group, latency_tokens=np.full_like(group.latency_tokens, 1e6))
    tokens = Episodes.of([wide], TaskNames()).latency_token_MGD
    assert tokens.isfinite().all()
    assert (tokens > 6e4).all()


def test_without_image_the_model_is_blind():
    blind = OutcomeModel(D_MODEL, 0, OutcomeModelConfig())
    assert blind.sums.shape == (2, D_MODEL)
    seeing = OutcomeModel(D_MODEL, 5, OutcomeModelConfig())
    assert seeing.sums.shape == (2, D_MODEL + 5)


def test_a_learner_resumes_with_its_replay(tmp_path):
    config = LearnerConfig(learning_rate=1e-3, replay=SMALL)
    learners = [Learner(make_controller(), config) for _ in range(2)]

    def update(learner, seed):
        groups = make_groups(learner.controller, seed, count=8)
        score = np.array([group.scores for group in groups], np.float64)
        late = np.array([group.latencies_ms > group.budget_ms for group in groups])
        measured = learner.learn_from_groups(groups, score, -0.8 * late, WORTH)
        learner.learn_from_memory(groups)
        return learner.update(measured, BLOCKS.vjp(learner.controller, measured))

    for learner in learners:
        for seed in range(2):
            record = update(learner, seed)
        assert record.replay is not None
        assert record.replay.num_groups == 16
    file = io.BytesIO()
    torch.save(learners[1].state_dict(), file)
    file.seek(0)
    resumed = Learner(make_controller(seed=9), config)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(2, 4):
        assert update(learners[0], seed).replay == update(resumed, seed).replay
    assert resumed.weights().sha256 == learners[0].weights().sha256


def test_without_knowing_what_outcomes_are_worth_nothing_is_replayed(tmp_path):
    learner = Learner(make_controller(), LearnerConfig(replay=SMALL))
    groups = make_groups(learner.controller)
    score = np.array([group.scores for group in groups], np.float64)
    measured = learner.learn_from_groups(groups, score, np.zeros_like(score))
    assert learner.update(measured, BLOCKS.vjp(learner.controller, measured)).replay is None


@pytest.mark.parametrize("field", ["scores", "latency_tokens"])
def test_a_group_that_is_not_finite_is_not_remembered(field):
    learner = Learner(make_controller(), LearnerConfig(learning_rate=1e-3, replay=SMALL))
    applied = []
    for seed in range(4):
        groups = make_groups(learner.controller, seed)
        if seed == 1:
            broken = getattr(groups[3], field).copy()
            broken.flat[0] = np.nan
            groups[3] = replace(groups[3], **{field: broken})
        score = np.array([group.scores for group in groups], np.float64)
        measured = learner.learn_from_groups(groups, score, np.zeros_like(score), WORTH)
        learner.learn_from_memory(groups)
        applied.append(learner.update(measured, [np.zeros(D_MODEL)] * 16).applied)
    assert applied == [True, False, True, True]
    assert len(learner.replay.buffer) == 4 * 16 - 1


def test_epochs_and_replay_exclude_each_other():
    with pytest.raises(ValueError, match=r"set replay\.policy_updates"):
        LearnerConfig(epochs=2, replay=SMALL)


def test_a_learner_on_an_accelerator_learns_the_same(accelerator):
    config = LearnerConfig(learning_rate=1e-3, replay=replace(SMALL, policy_updates=2))
    here, there = Learner(make_controller(), config), Learner(make_controller().to(DEVICE), config)
    for seed in range(2):
        groups = make_groups(make_controller(), seed)
        score = np.array([group.scores for group in groups], np.float64)
        records = []
        for learner in (here, there):
            measured = learner.learn_from_groups(groups, score, np.zeros_like(score), WORTH)
            learner.learn_from_memory(groups)
            records.append(learner.update(measured, [np.zeros(D_MODEL)] * len(groups)))
    assert measured.expected is not None
    assert records[1].replay.residual == pytest.approx(records[0].replay.residual, rel=1e-4)
    weights = there.controller.to_numpy()
    for name, weight in here.controller.to_numpy().items():
        assert np.allclose(weights[name], weight, rtol=1e-3, atol=1e-4), name


def with_scores(groups, seed=0, count=30):
    """Groups with scores off the clock; those of every other group are not a number."""
    rng, found = np.random.default_rng(seed), []
    for number, group in enumerate(groups):
        actions = ACTIONS.numpy()[rng.choice(len(ACTIONS), count, replace=False)]
        scores = outcomes_of(actions)[0] if number % 2 else np.full(count, np.nan, np.float32)
        found.append(replace(group, scored_actions=actions, scored=scores))
    return found


def test_scores_off_the_clock_teach_what_no_episode_ran():
    """All episodes are at the low tier, where no answer is right; the high tier's always are."""
    controller, errors = make_controller(), []
    for add in (lambda groups: groups, with_scores):
        replay = Replay(controller, SMALL)
        for seed in range(20):
            groups = make_groups(controller, seed)
            low = [g.actions * np.array([0, 1, 1, 1]) for g in groups]
            groups = [
                replace(group, actions=actions, scores=np.zeros_like(group.scores))
                for group, actions in zip(groups, low, strict=True)
            ]
            replay.take_in(add(groups), seed)
        like = next(controller.parameters())
        unseen = Episodes.of(make_groups(controller, 99), replay.tasks).to(like)
        outcomes = replay.model.eval()(unseen)
        found = outcomes.score_logit_BAPKN.sigmoid().mean(0)
        errors.append(float((found[2].detach() - 1).abs().mean()))
        assert found[0].mean() < 0.1
    assert errors[0] > 0.5, "without scores the high tier is unknown"
    assert errors[1] < 0.1


def test_scores_do_not_touch_latencies():
    controller = make_controller()
    groups = make_groups(controller, 1)
    losses = []
    for some in (groups, with_scores(groups)):
        replay = Replay(controller, SMALL)
        episodes = Episodes.of(some, replay.tasks).to(next(controller.parameters()))
        replay.model.observe(episodes)
        replay.model.loss(episodes).backward()
        losses.append([p.grad.clone() for p in replay.model.latency_net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))
    assert episodes.is_finite_M.all(), "a score that is missing does not forget the group"


def profile_episodes(controller, tasks, seed=50, count=40):
    """Samples with the outcomes of all configurations, as of a device that is 10 % slower."""
    groups = make_groups(controller, seed, count=count, size=1)
    scores, latencies_ms = outcomes_of(ACTIONS.numpy())
    table = ProfileTable(
        configurations=tuple(all_knobs()),
        sample_ids=tuple(group.sample_id for group in groups),
        tasks=("synthetic",) * count,
        prompts=("",) * count,
        scores=np.tile(scores, (count, 1)),
        latencies_ms=np.tile(1.1 * latencies_ms, (count, 1)).astype(np.float32),
        cheapest_ms=np.full(count, 110, np.float32),
    )
    language = np.stack([group.language_feature for group in groups])
    return Episodes.of_profile(table, language, np.zeros((count, 0), np.float32), tasks)


def test_a_profile_is_experience_from_the_first_step_and_the_run_corrects_it():
    controller = make_controller()
    replay = Replay(controller, replace(SMALL, profile_updates=200))
    replay.take_in_profile(profile_episodes(controller, replay.tasks), seed=0)
    assert replay.is_ready
    unseen = Episodes.of(make_groups(controller, 99), replay.tasks).to(
        next(controller.parameters())
    )

    def errors():
        with torch.no_grad():
            outcomes = replay.model.eval()(unseen)
        right = torch.tensor(outcomes_of(ACTIONS.numpy())[0])
        rows = tuple(ACTIONS.T)
        scores = outcomes.score_logit_BAPKN.sigmoid()[:, *rows]
        log_ms = outcomes.log_ms_BAPKN[:, *rows]
        truth = torch.tensor(outcomes_of(ACTIONS.numpy())[1]).log()
        return float((scores - right).abs().mean()), float((log_ms - truth).mean())

    score_error, slower = errors()
    assert score_error < 0.1
    assert slower == pytest.approx(np.log(1.1), abs=0.02)
    for seed in range(30):
        replay.take_in(make_groups(controller, seed), seed)
    assert errors()[1] == pytest.approx(0, abs=0.03), "the run's own latencies are right"


def test_a_profile_is_part_of_the_state():
    controller = make_controller()
    states = []
    for resumes in (False, True):
        replay = Replay(controller, replace(SMALL, profile_updates=20))
        replay.take_in_profile(profile_episodes(controller, replay.tasks), seed=0)
        replay.take_in(make_groups(controller, 1), 1)
        if resumes:
            saved = io.BytesIO()
            torch.save(replay.state_dict(), saved)
            archive = replay.archive()
            saved.seek(0)
            replay = Replay(controller, replay.config)
            replay.load_state_dict(torch.load(saved, weights_only=True), archive)
        replay.take_in(make_groups(controller, 2), 2)
        states.append(replay.model.state_dict())
    assert all(torch.equal(a, states[1][name]) for name, a in states[0].items())
