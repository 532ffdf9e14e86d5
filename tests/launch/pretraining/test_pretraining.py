import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from envs.spec import TIERS, Tier
from envs.tasks import Question, load_tasks
from launch.pretraining import forward as fw
from launch.pretraining.batches import IGNORE, Encoder, Stream
from launch.pretraining.blueprint import build_tokenizer, new_model, write_folder
from launch.pretraining.config import StreamConfig, TrainConfig
from launch.pretraining.held_out import Evaluator, held_out
from launch.pretraining.muon import make_optimizers, orthogonalize
from launch.pretraining.pixels import label_targets, make_crops, tier_layout, tokens_under
from launch.pretraining.stages import Pretraining, rate_share
from launch.pretraining.steps import Trainee, shown_by_look
from rollout.molmoe import Preprocessor, load_model


def with_steps(config: TrainConfig, **steps: int) -> TrainConfig:
    """The configuration with other lengths of the named stages."""
    return replace(
        config,
        **{name: replace(getattr(config, name), steps=count) for name, count in steps.items()},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_folder(new_model(3), path)
    return path


@pytest.fixture(scope="module")
def trainee(folder: Path) -> Trainee:
    model = load_model(folder, dtype=torch.float32)
    return Trainee(model, dtype=torch.float32)


@pytest.mark.parametrize("tier", TIERS)
def test_training_forward_equals_the_model(folder: Path, trainee: Trainee, tier: Tier):
    preprocessor = Preprocessor.from_pretrained(folder)
    sample = load_tasks(["chain"])["chain"].sample("test", 1)
    inputs = preprocessor(sample.image, sample.prompt, max_crops=tier.max_crops)
    expected = trainee.model.forward_logits(inputs)[-1]
    evaluator = Evaluator(trainee, [sample, load_tasks(["digits"])["digits"].sample("test", 4)])
    batch = evaluator.batches[0]
    row = evaluator.samples.index(sample)
    with torch.no_grad():
        batch = type(batch)(**{n: getattr(batch, n) for n in batch.__slots__} | {"tier": tier})
        hidden = trainee.hidden(batch, trainee.see(batch))
        place = int((batch.targets[row] != IGNORE).nonzero()[0])
        got = fw.answer_logits(trainee.model, hidden.x_BTD[row, place], torch.float32)
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


def test_fewer_experts_and_blocks_equal_the_model(folder: Path, trainee: Trainee):
    sample = load_tasks(["chain"])["chain"].sample("test", 1)
    inputs = Preprocessor.from_pretrained(folder)(sample.image, sample.prompt)
    model = trainee.model
    with torch.no_grad():
        cache = model.new_cache(len(inputs.token_ids))
        x = model.run_blocks(
            model.embed_inputs(inputs), 0, 16, cache=cache, top_k=[8] + [4] * 15, skipped=(3, 9)
        )
        expected = model.logits(x[0, -1])
        batch = Evaluator(trainee, [sample]).batches[0]
        hidden = trainee.hidden(batch, trainee.see(batch), top_k=4, skipped=(3, 9))
        place = int((batch.targets[0] != IGNORE).nonzero()[0])
        got = fw.answer_logits(model, hidden.x_BTD[0, place], torch.float32)
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("tier", TIERS)
def test_batched_crops_equal_the_preprocessor(folder: Path, tier: Tier):
    preprocessor = Preprocessor.from_pretrained(folder)
    layout = tier_layout(preprocessor, tier)
    batch = Stream(StreamConfig(num_scenes=2))[0]
    image = load_tasks(["digits"])["digits"].sample("test", 0).image
    inputs = preprocessor(image, "x", max_crops=tier.max_crops)
    pixels = torch.tensor([list(image.get_flattened_data())], dtype=torch.uint8).view(
        1, 112, 140, 3
    )
    assert inputs.images is not None
    torch.testing.assert_close(make_crops(pixels, layout)[0], inputs.images, atol=1e-6, rtol=0)
    labels = label_targets(batch.labels, layout.token_points_CVS)
    assert labels.shape == (2, len(layout.masks_CP), 16, 16, 2)
    assert 0 < (labels[..., 0] > 0).float().mean() < 0.9


def test_questions_share_a_prefix_but_not_one_another(trainee: Trainee):
    batch = Stream(StreamConfig(num_scenes=1, tail_tokens=60, task_weights=(0, 1, 0, 0, 0, 0)))[5]
    assert int(batch.segments[batch.segments < 1000].max()) > 1
    changed = batch.tokens.clone()
    first = batch.segments == 1
    changed[first] = 20
    other = type(batch)(**{n: getattr(batch, n) for n in batch.__slots__} | {"tokens": changed})
    with torch.no_grad():
        seen = trainee.see(batch)
        one, two = trainee.hidden(batch, seen).x_BTD, trainee.hidden(other, seen).x_BTD
    assert not torch.allclose(one[first], two[first], atol=1e-3)
    torch.testing.assert_close(one[~first], two[~first])


def test_encoder_marks_answers_and_steps():
    encoder = Encoder()
    question = Question(
        prompt="chain: top left plus 3 zig",
        answers=("7",),
        trace=((22, "4"), (26, "7")),
    )
    encoded = encoder.encode("chain", question)
    words = [encoder.tokenizer.id_to_token(i) for i in encoded.ids]
    assert words == "chain : top left plus 3 zig Assistant : 7".split()
    assert [i for i, t in enumerate(encoded.traces) if t != IGNORE] == [5, 6]
    assert [i for i, t in enumerate(encoded.targets) if t != IGNORE] == [8, 9]
    assert encoded.targets[9] == 0
    spelt = encoder.encode("reading", Question(prompt="reading: what word top", answers=("tope",)))
    assert [encoder.tokenizer.id_to_token(i) for i in spelt.ids[-4:]] == ["t", "##o", "##p", "##e"]


def test_every_prompt_word_is_known():
    tokenizer = build_tokenizer()
    for task in load_tasks().values():
        for split in ("train", "validation", "test"):
            for index in range(30):
                sample = task.sample(split, index)
                tokens = tokenizer.encode(sample.prompt).tokens
                assert not [t for t in tokens if t.startswith("##") or t == "<|unknown|>"]
                answer = sample.answers[0]
                assert tokenizer.decode(tokenizer.encode(answer).ids) == answer


def test_muon_orthogonalises_each_matrix():
    torch.manual_seed(0)
    stack = torch.randn(3, 24, 16)
    values = torch.linalg.svdvals(orthogonalize(stack))
    assert values.min() > 0.5
    assert values.max() < 1.4
    names = {name for name, _ in new_model(0).named_parameters()}
    muon, adam = make_optimizers(new_model(0), TrainConfig().joint.optimizer)
    assert len(muon.param_groups) + len(adam.param_groups) == len(names)


def test_share_of_the_weaker_experts_is_what_they_add():
    chosen, hidden = torch.tensor([[0, 1, 2, 3]]), torch.ones(1, 4, 1)

    def share(weaker: list[float]) -> float:
        down = torch.tensor([[1.0, 1.0, weaker[0], weaker[0]], [0.0, 0.0, weaker[1], weaker[1]]])
        return float(fw.weaker_share(hidden, chosen, hidden.flatten(1) @ down.T, down))

    assert share([0.0, 0.0]) == 0.0
    assert share([5.0, 0.0]) == pytest.approx(0.0), "more of the same adds nothing"
    assert share([0.0, 1.0]) == pytest.approx(0.5)
    assert share([0.0, 2.0]) == pytest.approx(0.8)


def test_weaker_experts_should_add_much_and_in_easy_questions_little():
    is_easy = torch.tensor([True])
    for share, hard, easy in ((0.0, 0.7, 0.0), (0.5, 0.2, 0.3), (1.0, 0.0, 0.8)):
        shares = torch.tensor([share])
        assert float(fw.share_loss(shares, ~is_easy)) == pytest.approx(hard)
        assert float(fw.share_loss(shares, is_easy)) == pytest.approx(easy)


def test_experts_are_raised_between_the_first_and_the_last_two_blocks(trainee: Trainee):
    before = [block.mlp.down.detach().clone() for block in trainee.model.blocks]
    trainee.raise_experts(3.0)
    ratios = [
        float((block.mlp.down / old).nanmean())
        for block, old in zip(trainee.model.blocks, before, strict=True)
    ]
    trainee.raise_experts(1 / 3)
    assert ratios == pytest.approx([1.0, *[3.0] * (len(before) - 3), 1.0, 1.0])


def test_rates_warm_up_and_decay():
    stage = with_steps(TrainConfig(), vision=1, text=1, joint=1000).joint
    assert rate_share(0, stage) == pytest.approx(1 / stage.warmup_steps)
    assert rate_share(500, stage) == 1.0
    assert rate_share(775, stage) == pytest.approx(0.5)
    assert rate_share(999, stage) == pytest.approx(0.02)


@pytest.mark.slow
def test_interrupted_run_equals_an_undisturbed_one(tmp_path: Path):
    def config(name: str) -> TrainConfig:
        short = with_steps(TrainConfig(out=tmp_path / name), vision=3, text=0, joint=4, experts=0)
        return type(short)(
            **{f: getattr(short, f) for f in short.__slots__} | {"checkpoint_steps": 2}
        )

    whole = Pretraining(config("whole"))
    whole.run()
    part = Pretraining(config("part"))
    update, count = part._update, [0]

    def stop_after_five(*args):
        if count[0] == 6:
            raise KeyboardInterrupt
        count[0] += 1
        update(*args)

    part._update = stop_after_five
    with pytest.raises(KeyboardInterrupt):
        part.run()
    resumed = Pretraining(config("part"))
    assert (resumed.stage, resumed.step) == (2, 2)
    resumed.run()
    for one, two in zip(whole.trainee.parameters(), resumed.trainee.parameters(), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("content", [b"", b"half a file", None])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes | None):
    config = TrainConfig(out=tmp_path)
    pretraining = Pretraining(config, writes_curves=False)
    pretraining.save([])
    whole = pretraining.path.read_bytes()
    pretraining.path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt is not a complete checkpoint.*move it away"
    ):
        Pretraining(config, writes_curves=False)


def test_a_damaged_checkpoint_is_one_error_before_any_worker_starts(tmp_path: Path):
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    program = Path(__file__).resolve().parents[3] / "launch" / "pretrain_tiny.py"
    command = [sys.executable, str(program), "--out", str(tmp_path), "--num-workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "ray").exists()


def test_held_out_samples_are_scored_by_task(trainee: Trainee):
    evaluator = Evaluator(trainee, held_out("test", 2), rows=5)
    scores = evaluator.scores(Tier.LOW)
    assert scores.shape == (12,)
    assert set(evaluator.by_task(scores)) == set(load_tasks())


def test_two_boxes_go_to_a_head_each_and_others_to_both():
    look = torch.tensor([0, 0, 1, 2, 2, 2])
    shown = shown_by_look(look, torch.eye(6, dtype=torch.bool), 4)
    assert shown[0].int().tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert shown[1, 0].equal(shown[1, 1])
    assert shown[1, 0].nonzero().tolist() == [[2]]
    assert shown[2, 1].nonzero().flatten().tolist() == [3, 4, 5]
    assert not shown[3].any(), "a look at nothing"


def test_boxes_cover_the_tokens_that_show_them(trainee):
    layout = trainee.layouts[Tier.HIGH]
    everything = torch.tensor([[0, 0, 140, 112], [0, 0, 3, 3]])
    length = len(trainee.prefix_ids(Tier.HIGH))
    whole, corner = tokens_under(everything, layout, length)
    used = layout.idx_CV[1:][layout.idx_CV[1:] >= 0]
    assert whole.nonzero().flatten().tolist() == sorted(used.tolist())
    assert corner.sum() == 1
    assert corner.nonzero().item() == used.min()
