"""A model that is loaded once and answers many questions; on the random model."""

import json
import re
from dataclasses import FrozenInstanceError, replace

import pytest
from PIL import Image

from envs.spec import TIERS
from launch.answering.answerer import Answerer, grouped
from launch.answering.policies import DEFAULT_KNOBS, ControllerPolicy
from launch.joint_grpo import train
from policy.config import ControllerConfig
from policy.controller import Controller
from rollout import group_sharing
from rollout.fingerprint import Fingerprint
from rollout.group_sharing import MolmoEGroupSession
from rollout.image_feature import image_dim
from rollout.latency.drift import PROBES_KEPT, FollowedTime
from rollout.molmoe.config import resolve_config
from rollout.worker_config import EMBEDDED
from tests import launch_rig
from tests.conftest import ROOT
from tests.rollout import rig

IMAGE = rig.NoiseTask().sample("train", 3).image
HIGH_MS = rig.BUDGETS.range.high_ms


@pytest.fixture(scope="module")
def settings(model_folder):
    return {
        "worker_settings": {"model": str(model_folder), "device": "cpu"},
        "executor_settings": {"max_new_tokens": 3},
    }


@pytest.fixture(scope="module")
def controller_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controller")
    rig.controller().save(folder)
    return folder


@pytest.fixture(scope="module")
def fixed(settings):
    return Answerer.load(**settings)


@pytest.fixture(scope="module")
def trained(settings, controller_folder):
    return Answerer.load(str(controller_folder), **settings)


def test_without_a_controller_the_default_configuration_answers(fixed):
    answer = fixed.answer("what is it", image=IMAGE, budget_ms=1e6)
    assert answer.knobs == DEFAULT_KNOBS
    assert "no controller given" in answer.decided_by
    assert answer.within_budget
    assert answer.latency_ms == pytest.approx(sum(answer.stages_ms.values()))
    assert not fixed.answer("what is it", budget_ms=1e-9).within_budget


def test_a_controller_answers_one_question_after_the_other(trained, controller_folder):
    about_image, about_nothing, again = (
        trained.answer("what is it", image=image, budget_ms=HIGH_MS)
        for image in (IMAGE, None, IMAGE)
    )
    assert (again.text, again.knobs) == (about_image.text, about_image.knobs)
    assert about_image.stages_ms["stage1"] > 0
    assert about_image.stages_ms["vision_global"] > 0
    assert about_nothing.stages_ms["vision_global"] == 0
    assert about_image.decided_by == f"controller {controller_folder}"


@pytest.mark.slow
def test_the_readmes_lines(tmp_path, capsys):
    """On the model that ships, with a controller that has learned nothing."""
    config = resolve_config(EMBEDDED)
    widths = config.d_model, image_dim(config)
    Controller(ControllerConfig.for_budgets(*widths, rig.BUDGETS)).save(tmp_path)
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (lines,) = [block for block in blocks if "Answerer.load" in block]
    exec(lines.replace("runs/one", str(tmp_path)), {})
    printed = capsys.readouterr().out
    assert re.search(r"\w-p[1-5]-k[4-8]-b1[2-6] [\d.]+ (True|False)", printed), printed


def test_an_image_may_be_a_file(trained, tmp_path):
    path = tmp_path / "picture.png"
    IMAGE.save(path)
    answers = [
        trained.answer("what is it", image=image, budget_ms=HIGH_MS)
        for image in (IMAGE, path, str(path))
    ]
    assert len({(answer.text, answer.knobs) for answer in answers}) == 1


def test_an_answer_as_json(fixed):
    answer = fixed.answer("what is it", budget_ms=50)
    with pytest.raises(FrozenInstanceError):
        answer.text = ""
    shown = json.loads(json.dumps(answer.to_json()))
    assert list(shown) == [
        *("answer", "choices", "decided_by", "stages_ms", "host_ms", "latency_ms", "wall_ms"),
        *("clock", "budget_ms", "price", "within_budget", "finished"),
    ]
    assert shown["choices"] == {"tier": "medium", "position": 1, "top_k": 6, "num_blocks": 14}
    assert shown["latency_ms"] == round(answer.latency_ms, 3)
    assert list(shown["stages_ms"]) == list(answer.stages_ms)


@pytest.mark.parametrize(
    ("question", "budget_ms", "image", "message"),
    [
        ("what", float("nan"), None, "positive, finite"),
        ("what", 0, None, "positive, finite"),
        (" ", 50, None, "the prompt is empty"),
        ("\udcff", 50, None, "not valid UTF-8"),
        ("what", 50, "/no.png", "/no.png does not exist"),
        ("what", 50, __file__, "is not an image that can be read"),
    ],
)
def test_unusable_questions_are_refused(fixed, question, budget_ms, image, message):
    with pytest.raises(ValueError, match=message):
        fixed.answer(question, budget_ms=budget_ms, image=image)


def test_a_refused_question_does_not_spoil_the_next_one(trained):
    before = trained.answer("what is it", budget_ms=HIGH_MS)
    with pytest.raises(ValueError, match="the prompt is empty"):
        trained.answer("", budget_ms=HIGH_MS)
    after = trained.answer("what is it", budget_ms=HIGH_MS)
    assert (after.text, after.knobs) == (before.text, before.knobs)


def test_large_pictures_are_reduced_or_refused(fixed, tmp_path):
    for size in (12_000, 20_000):
        Image.new("1", (size, size)).save(tmp_path / f"{size}.png")
    assert fixed.answer("what", budget_ms=50, image=tmp_path / "12000.png").finished is not None
    with pytest.raises(ValueError, match="is too large: give an image of at most"):
        fixed.answer("what", budget_ms=50, image=tmp_path / "20000.png")


@pytest.mark.parametrize("budget_ms", [1e-9, 1e308])
def test_a_budget_outside_the_controllers_range_is_said(settings, controller_folder, budget_ms):
    lines = []
    answerer = Answerer.load(controller_folder, say=lines.append, **settings)
    assert lines == ["warming up ..."]
    own = rig.BUDGETS.range
    answer = answerer.answer("what", budget_ms=budget_ms)
    as_for = f"{own.low_ms if budget_ms < 1 else own.high_ms:g} ms"
    assert lines[1:] == [
        f"the controller was trained for budgets of {own.low_ms:g} to {own.high_ms:g} ms: it "
        f"chooses as if the budget were {as_for}"
    ]
    assert answer.within_budget == (budget_ms > 1)
    answerer.answer("what", budget_ms=own.high_ms)
    assert len(lines) == 2


def test_a_budget_is_put_on_the_devices_present_clock():
    """On a device that is half as fast as in training, 90 ms are 45 ms to the controller."""
    lines, probes = [], []

    def twice_as_slow(number):
        probes.append(number)
        return 30.0, 170.0

    present = FollowedTime(
        replace(launch_rig.CALIBRATION, probes_ms=((15.0, 85.0),)), twice_as_slow, now=lambda: 0.0
    )
    policy = ControllerPolicy(rig.executor(), rig.controller(), present, "it", lines.append)
    answer = Answerer(policy).answer("what is it", budget_ms=90.0)
    assert lines == ["90 ms of this device now are 45.0 ms of the run's calibration"]
    assert answer.budget_ms == 90.0
    assert answer.latency_ms == pytest.approx(sum(answer.stages_ms.values()))
    Answerer(policy).answer("what is it", budget_ms=90.0)
    assert len(probes) == PROBES_KEPT, "the next probe is not due"


def test_loading_runs_every_tier_that_a_controller_may_choose(
    settings, controller_folder, monkeypatch
):
    begun = []

    class Recording(MolmoEGroupSession):
        def begin(self, choices, *arguments):
            begun.extend(tier for tier, _ in choices)
            return super().begin(choices, *arguments)

    monkeypatch.setattr(group_sharing, "MolmoEGroupSession", Recording)
    answerer = Answerer.load(controller_folder, **settings)
    assert begun[: len(TIERS)] == list(TIERS)
    assert answerer.answer("what is it", image=IMAGE, budget_ms=HIGH_MS).text is not None


def test_a_controller_of_another_model_is_refused(settings, tmp_path):
    run = launch_rig.local_run(tmp_path, launch_rig.config(steps=1))
    ours = Fingerprint.of(launch_rig.worker().executor, rig.NoiseTask())
    run.fingerprint = replace(ours, weights="0" * 64)
    train(run)
    with pytest.raises(ValueError, match=r"weights: 0000.* leave --worker options out"):
        Answerer.load(tmp_path, **settings)


def test_a_folder_without_a_controller_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no controller: give a run folder"):
        Answerer.load(tmp_path)


def test_stages_are_added_up_in_the_order_in_which_they_run():
    found = grouped({"decode_1": 1.0, "block_3": 2.0, "block_4": 3.0, "decode_2": 4.0, "copy": 5.0})
    assert {name: ms for name, ms in found.items() if ms} == {
        "copy": 5.0,
        "blocks": 5.0,
        "decode": 5.0,
    }
    assert (next(iter(found)), next(reversed(found))) == ("copy", "decode")
