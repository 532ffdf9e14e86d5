import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from envs.budgets import BudgetRange
from envs.prices import PriceRange
from envs.spec import NUM_BLOCKS, NUM_SIZES, POSITIONS, Knobs, all_knobs
from policy.config import ControllerConfig
from policy.controller import Controller, choose
from policy.distributions import entropy, kl_divergence
from policy.weights import PolicyWeights, weights_sha256
from tests.policy.evaluating import evaluate

CONFIG = ControllerConfig(d_model=24, budget_low_ms=170.0, budget_high_ms=380.0)


def make_controller(head_std: float = 0.5, seed: int = 0) -> Controller:
    torch.manual_seed(seed)
    controller = Controller(CONFIG)
    for stage in (controller.stage1, controller.stage2):
        torch.nn.init.normal_(stage.heads.weight, std=head_std)
    return controller


@pytest.fixture
def controller():
    return make_controller()


def inputs(batch: int):
    rng = torch.Generator().manual_seed(1)
    language = torch.randn(batch, 24, generator=rng)
    latency = 200.0 * torch.randn(batch, 24, generator=rng)
    return language, torch.linspace(170, 380, batch), latency


def test_masked_choices_have_probability_zero(controller):
    _, _, latency = inputs(5)
    logits = controller.stage2_logits(latency, torch.arange(5))
    probabilities = logits[1].softmax(-1)
    for row, position in enumerate(POSITIONS):
        allowed = [n - position >= 11 for n in NUM_BLOCKS]
        assert ((probabilities[row] > 0) == torch.tensor(allowed)).all()
        assert (probabilities[row][~torch.tensor(allowed)] == 0).all()
    assert probabilities[4, 4] == 1
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(5))


def test_log_probs_sum_to_one_over_the_225_configurations(controller):
    language, budgets_ms, latency = inputs(1)
    actions = torch.tensor([knobs.indices() for knobs in all_knobs()])
    assert len(actions) == 225
    token = controller.budget_tokens(budgets_ms)
    evaluation = evaluate(
        controller,
        language.expand(225, -1),
        token.expand(225, -1),
        latency.expand(225, -1),
        actions,
    )
    assert evaluation.log_probs_B4.sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_entropy_counts_allowed_choices_only():
    log_distribution = torch.tensor([-math.inf, -math.inf, 0.0, 0.0, 0.0]).log_softmax(-1)
    assert entropy(log_distribution).item() == pytest.approx(math.log(3))
    alone = torch.tensor([-math.inf, -math.inf, -math.inf, -math.inf, 3.0]).log_softmax(-1)
    assert entropy(alone).item() == 0


def test_kl_by_hand():
    p = torch.tensor([[0.0, 0.25, 0.75]]).log()
    q = torch.tensor([[0.0, 0.5, 0.5]]).log()
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert kl_divergence(p, q).item() == pytest.approx(expected)
    assert kl_divergence(p, p).item() == 0


def test_gradients_are_finite_at_every_mask(controller):
    language, budgets_ms, latency = inputs(5)
    actions = torch.tensor([[0, p, 1, 4] for p in range(5)])
    latency.requires_grad_()
    evaluation = evaluate(
        controller, language, controller.budget_tokens(budgets_ms), latency, actions
    )
    (evaluation.log_probs_B4.sum() + evaluation.entropies_B4.sum()).backward()
    gradients = [latency.grad, *(weight.grad for weight in controller.parameters())]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_choose_agrees_with_evaluate(controller):
    language, budgets_ms, latency = inputs(6)
    generators = [torch.Generator().manual_seed(seed) for seed in range(6)]
    token = controller.budget_tokens(budgets_ms)
    first = choose(controller.stage1_logits(language, token), generators)
    second = choose(controller.stage2_logits(latency, first.indices_B2[:, 1]), generators)
    actions = torch.cat((first.indices_B2, second.indices_B2), dim=-1)
    for row in actions:
        Knobs.from_indices(row)
    evaluation = evaluate(controller, language, token, latency, actions)
    chosen = torch.cat((first.log_probs_B2, second.log_probs_B2), dim=-1)
    torch.testing.assert_close(chosen, evaluation.log_probs_B4)


def test_a_members_choice_depends_on_its_own_generator_only(controller):
    language, budgets_ms, _ = inputs(1)
    logits = controller.stage1_logits(language, controller.budget_tokens(budgets_ms))
    seeds = range(40)
    together = choose(logits, [torch.Generator().manual_seed(seed) for seed in seeds])
    alone = [choose(logits, torch.Generator().manual_seed(seed)) for seed in seeds]
    assert torch.equal(together.indices_B2, torch.cat([choice.indices_B2 for choice in alone]))
    assert torch.equal(together.log_probs_B2, torch.cat([choice.log_probs_B2 for choice in alone]))


@pytest.mark.parametrize("size", [1, 3])
def test_a_member_draws_noise_for_all_heads_as_wide_as_the_widest(controller, size):
    """Other draws from the same generators would make runs of one seed differ between versions."""
    language, budgets_ms, latency = inputs(size)
    positions = torch.tensor([4, 0, 2])[:size]
    for logits in (
        controller.stage1_logits(language, controller.budget_tokens(budgets_ms)),
        controller.stage2_logits(latency, positions),
    ):
        mine, expected = (
            [torch.Generator().manual_seed(seed) for seed in range(size)] for _ in range(2)
        )
        for _ in range(20):
            padded = [F.pad(head, (0, 5 - head.shape[-1]), value=-torch.inf) for head in logits]
            noise = [torch.empty(2, 5).exponential_(generator=one) for one in expected]
            wanted = (torch.stack(padded, 1) - torch.stack(noise).log()).argmax(-1)
            assert torch.equal(choose(logits, mine).indices_B2, wanted)
        for one, other in zip(mine, expected, strict=True):
            assert torch.equal(one.get_state(), other.get_state())


def test_sampling_frequencies(controller):
    _, _, latency = inputs(1)
    logits = controller.stage2_logits(latency, torch.tensor([2]))
    rng = torch.Generator().manual_seed(3)
    choices = choose(logits, [rng] * 20_000).indices_B2
    for head, head_logits in enumerate(logits):
        frequency = torch.bincount(choices[:, head], minlength=5) / len(choices)
        torch.testing.assert_close(frequency, head_logits.softmax(-1)[0], rtol=0, atol=0.015)
    assert (choices[:, 1] >= 2).all()


def test_argmax_without_a_generator(controller):
    _, _, latency = inputs(3)
    logits = controller.stage2_logits(latency, torch.tensor([4, 0, 2]))
    choice = choose(logits)
    assert choice.indices_B2[0, 1] == 4
    assert torch.equal(choice.indices_B2[:, 0], logits[0].argmax(-1))


def test_initial_policy_is_near_uniform_at_any_input_scale():
    torch.manual_seed(0)
    controller = Controller(CONFIG)
    language, budgets_ms, latency = inputs(5)
    actions = torch.tensor([[0, p, 0, 4] for p in range(5)])
    evaluation = evaluate(
        controller, 1e-3 * language, controller.budget_tokens(budgets_ms), 1e3 * latency, actions
    )
    uniform = torch.tensor([[math.log(n) for n in (3, 5, 5, 5 - p)] for p in range(5)])
    torch.testing.assert_close(evaluation.entropies_B4, uniform, rtol=0, atol=0.01)


def test_stages_are_light_at_full_width():
    controller = Controller(
        ControllerConfig(d_model=2048, image_dim=1029, budget_low_ms=170.0, budget_high_ms=380.0)
    )
    assert controller.num_stage_weights() < 250_000


def test_save_and_load(controller, tmp_path):
    controller.save(tmp_path / "best")
    loaded = Controller.load(tmp_path / "best")
    assert loaded.config == controller.config
    assert weights_sha256(loaded.to_numpy()) == weights_sha256(controller.to_numpy())


def test_a_saved_controller_keeps_its_prices(tmp_path):
    priced = replace(CONFIG, price_low=0.01, price_high=2.0, default_price=0.02)
    torch.manual_seed(0)
    controller = Controller(priced)
    controller.save(tmp_path)
    loaded = Controller.load(tmp_path)
    assert loaded.config == priced
    assert loaded.config.price_range == PriceRange(low=0.01, high=2.0)
    assert loaded.config.default_price == 0.02
    asked = torch.tensor([200.0, 200.0, 300.0]), torch.tensor([0.0, 0.1, 0.1])
    assert torch.equal(loaded.budget_tokens(*asked), controller.budget_tokens(*asked))
    Controller(CONFIG).save(tmp_path / "free")
    free = Controller.load(tmp_path / "free")
    assert free.config.price_range is None
    assert free.config.default_price == 0.0
    with pytest.raises(ValueError, match=r"budget_encoder\.mlp\.0\.weight"):
        free.load_numpy(controller.to_numpy())


def test_broken_files_are_refused_with_one_clear_error(controller, tmp_path):
    controller.save(tmp_path)
    weights, description = tmp_path / "controller.safetensors", tmp_path / "controller.json"
    good_weights, good_json = weights.read_bytes(), description.read_text()
    weights.write_bytes(good_weights[:-10])
    with pytest.raises(ValueError, match="restore it from another checkpoint"):
        Controller.load(tmp_path)
    weights.write_bytes(good_weights[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match="its hash differs"):
        Controller.load(tmp_path)
    weights.write_bytes(good_weights)
    for broken in ("", "{", "[]", "{}", '{"format_version": 1, "knobs": {}, "config": 3}'):
        description.write_text(broken)
        with pytest.raises(ValueError, match="name a folder"):
            Controller.load(tmp_path)
    with pytest.raises(ValueError, match="name a folder"):
        Controller.load(tmp_path / "absent")
    edited = good_json.replace('"d_model": 24', '"d_model": 32')
    description.write_text(edited)
    with pytest.raises(ValueError, match="has been edited or damaged"):
        Controller.load(tmp_path)
    fields = json.loads(edited)
    del fields["sha256"]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    description.write_text(json.dumps(fields | {"sha256": digest}))
    with pytest.raises(ValueError, match="do not describe one controller"):
        Controller.load(tmp_path)


@pytest.mark.parametrize(
    "field", ["budget_low_ms", "budget_high_ms", "sinusoid_scale", "price_high", "default_price"]
)
def test_an_edited_configuration_is_refused(tmp_path, field):
    prices = {"price_low": 0.01, "price_high": 2.0, "default_price": 0.02}
    Controller(replace(CONFIG, **prices)).save(tmp_path)
    path = tmp_path / "controller.json"
    fields = json.loads(path.read_text())
    fields["config"][field] *= 10
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="has been edited or damaged"):
        Controller.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 99, "format version 99"),
        ("format_version", 1, "format version 1 and this program reads 4"),
        ("knobs", {"top_ks": [1]}, "other knobs"),
    ],
)
def test_other_format_or_knobs_are_refused(controller, tmp_path, field, value, message):
    controller.save(tmp_path)
    path = tmp_path / "controller.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=message):
        Controller.load(tmp_path)


def test_check_compatible(controller):
    fits = {"d_model": 24, "image_dim": 11}
    controller.check_compatible(**fits, budget_range=BudgetRange(low_ms=170, high_ms=380))
    with pytest.raises(ValueError, match="d_model 24 and the model has 2048"):
        controller.check_compatible(d_model=2048, image_dim=11)
    with pytest.raises(ValueError, match=r"170\.\.380 ms and the run has 50\.\.500 ms"):
        controller.check_compatible(**fits, budget_range=BudgetRange(low_ms=50, high_ms=500))
    seeing = Controller(replace(CONFIG, image_dim=9))
    with pytest.raises(ValueError, match="image features of length 9 and the model gives 11"):
        seeing.check_compatible(**fits)


def test_a_controller_that_sees_the_image_is_told_from_one_that_does_not(controller, tmp_path):
    seeing = Controller(replace(CONFIG, image_dim=9))
    seeing.save(tmp_path)
    assert Controller.load(tmp_path).config.sees_image
    with pytest.raises(ValueError, match="do not fit this controller"):
        controller.load_numpy(seeing.to_numpy())


def test_stage1_sees_the_image_and_whether_there_is_one():
    torch.manual_seed(0)
    controller = Controller(replace(CONFIG, image_dim=9))
    torch.nn.init.normal_(controller.stage1.heads.weight, std=0.5)
    language, budgets_ms, _ = inputs(4)
    token = controller.budget_tokens(budgets_ms[:1]).expand(4, -1)
    bright = torch.tensor([3.0, 1.0, 2.0, 5.0, *[0.0] * NUM_SIZES, 1.0])
    grey, none = torch.tensor([2.0] * 4 + [0.0] * NUM_SIZES + [1.0]), torch.zeros(9)
    large = torch.tensor([2.0] * 4 + [0.5] * NUM_SIZES + [1.0])
    logits = controller.stage1_logits(
        language[:1].expand(4, -1), token, torch.stack([bright, grey, none, large])
    )
    for head in logits:
        assert not torch.allclose(head[0], head[1])
        assert not torch.allclose(head[1], head[2]), "an even image and no image differ by the flag"
        assert not torch.allclose(head[1], head[3]), "sizes are not normalised away"
    with pytest.raises(AssertionError, match="sees the image"):
        controller.stage1_logits(language, controller.budget_tokens(budgets_ms))


def test_numpy_weights_travel_as_copies(controller):
    arrays = controller.to_numpy()
    for array in arrays.values():
        array.flags.writeable = False
    other = make_controller(seed=7)
    other.load_numpy(arrays)
    assert weights_sha256(other.to_numpy()) == weights_sha256(arrays)
    with torch.no_grad():
        other.stage1.heads.weight.add_(1)
    assert weights_sha256(controller.to_numpy()) == weights_sha256(arrays)


def test_foreign_numpy_weights_are_refused_whole(controller):
    before = weights_sha256(controller.to_numpy())
    arrays = make_controller(seed=7).to_numpy()
    arrays["stage2.heads.bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"stage2\.heads\.bias"):
        controller.load_numpy(arrays)
    del arrays["stage2.heads.bias"]
    with pytest.raises(ValueError, match=r"stage2\.heads\.bias"):
        controller.load_numpy(arrays)
    assert weights_sha256(controller.to_numpy()) == before


def test_weights_hash_covers_names_shapes_dtypes_and_bytes():
    base = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    digest = weights_sha256(base)
    assert digest == weights_sha256(dict(reversed(base.items())))
    variants = [
        {"c": base["a"], "b": base["b"]},
        base | {"a": base["a"].reshape(3, 2)},
        base | {"a": base["a"].astype(np.int32)},
        base | {"b": 2 * base["b"]},
    ]
    assert digest not in [weights_sha256(variant) for variant in variants]
    PolicyWeights(version=1, sha256=digest, arrays=base).check()
    with pytest.raises(ValueError, match="arrived damaged"):
        PolicyWeights(version=1, sha256=digest, arrays=variants[3]).check()


def test_config_refuses_nonsense():
    with pytest.raises(ValueError, match="is empty"):
        ControllerConfig(d_model=8, budget_low_ms=380.0, budget_high_ms=170.0)
    with pytest.raises(ValueError, match="d_model is 0"):
        ControllerConfig(d_model=0, budget_low_ms=170.0, budget_high_ms=380.0)
    with pytest.raises(ValueError, match="image_dim is 5: give 0, or"):
        replace(CONFIG, image_dim=NUM_SIZES + 1)
    with pytest.raises(ValueError, match="both price_low and price_high"):
        replace(CONFIG, price_low=0.1)
    with pytest.raises(ValueError, match="give 0 < low < high"):
        replace(CONFIG, price_low=2.0, price_high=0.1)
    with pytest.raises(ValueError, match=r"default_price is 0\.1 for a controller without prices"):
        replace(CONFIG, default_price=0.1)
    with pytest.raises(ValueError, match="finite number of at least 0"):
        replace(CONFIG, price_low=0.1, price_high=1.0, default_price=-1.0)
