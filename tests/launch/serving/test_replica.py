"""A replica without Ray, on the random model."""

import asyncio
import threading
import time

import pytest

from envs.spec import CHEAPEST_KNOBS
from launch.answering.policy_set import PolicySet
from launch.serving import replica as module
from launch.serving.episodes import EpisodeRequest, EpisodeResult
from launch.serving.errors import ApiError
from launch.serving.limits import Limits
from launch.serving.replica import Replica
from tests.launch.serving.malformed import encoded_image
from tests.rollout import rig


@pytest.fixture(scope="module")
def replica(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controller")
    rig.controller().save(folder)
    settings = {"model": str(model_folder), "device": "cpu"}
    return Replica(
        lambda: PolicySet.load(
            folder, worker_settings=settings, executor_settings={"max_new_tokens": 6}
        ),
        Limits(episode_timeout_s=5.0),
    )


def request(policy="controller", text="what is it", **fields):
    values = {"image": encoded_image(), "budget_ms": 1e5, **fields}
    return EpisodeRequest(policy=policy, text=text, **values)


async def collected(reports):
    return [report async for report in reports]


def ask(replica, *arguments, **fields):
    return asyncio.run(collected(replica.stream(request(*arguments, **fields))))


def test_pieces_and_then_the_result(replica):
    *pieces, result = ask(replica)
    assert isinstance(result, EpisodeResult)
    assert "".join(pieces) == result.text
    assert result.latency_ms == pytest.approx(sum(result.stages_ms.values()))
    assert result.stages_ms["stage1"] > 0
    assert result.num_prompt_tokens > 10
    assert ask(replica, max_new_tokens=1)[-1].num_output_tokens == 1


def test_policies_share_the_model(replica):
    assert replica.facts.policies == ("controller", "full", "cheapest")
    assert ask(replica, "cheapest")[-1].knobs == CHEAPEST_KNOBS
    assert str(ask(replica, "medium-p2-k5-b14")[-1].knobs) == "medium-p2-k5-b14"
    assert min(replica.facts.cheapest.by_size_ms.values()) > 0
    low_ms, high_ms = replica.facts.budget_range_ms
    assert (low_ms, high_ms) == (rig.BUDGETS.range.low_ms, rig.BUDGETS.range.high_ms)


def test_the_deployments_price_is_stated_or_the_controllers_own(replica):
    own = rig.controller().config.default_price
    assert (replica.facts.price, replica.facts.price_curve) == (own, None)
    assert Replica(lambda: replica.policies, 5.0, price=0.3).facts.price == 0.3


def test_what_cannot_be_asked_is_refused_and_the_next_question_answered(replica):
    for fields in ({"text": " "}, {"text": "what is it " * 5000}, {"policy": "other"}):
        with pytest.raises(ApiError) as refusal:
            ask(replica, **fields)
        assert 400 <= refusal.value.status < 500
    assert ask(replica, image=None)[-1].stages_ms["vision_global"] == 0


def test_one_episode_at_a_time(replica, monkeypatch):
    running, most = [], []
    answerer = replica.policies.answerer("full")
    original = type(answerer).run

    def watched(self, *arguments, **options):
        running.append(threading.current_thread().name)
        most.append(len(running))
        try:
            return original(self, *arguments, **options)
        finally:
            running.pop()

    monkeypatch.setattr(type(answerer), "run", watched)

    async def several():
        return await asyncio.gather(*(collected(replica.stream(request())) for _ in range(4)))

    assert len(asyncio.run(several())) == 4
    assert set(most) == {1}


def test_a_wait_for_another_episode_comes_off_the_budget(replica, monkeypatch):
    given = []
    monkeypatch.setattr(
        replica, "_run", lambda _answerer, request, _tell: given.append(request.budget_ms)
    )
    monkeypatch.setattr(module, "as_result", lambda answer: answer)
    replica._thread.submit(time.sleep, 0.2)

    async def late():
        with pytest.raises(AttributeError):  # this answer has no text
            await collected(replica.stream(request(budget_ms=1000.0)))

    asyncio.run(late())
    assert 500 < given[0] <= 830


def test_the_device_is_probed_when_nobody_asks(replica, monkeypatch):
    probed = threading.Event()
    answerer = type(replica.policies.answerer("full"))
    monkeypatch.setattr(answerer, "follow", lambda self: probed.set())
    monkeypatch.setattr(module, "IDLE_S", 0.1)

    async def ask_and_wait():
        await collected(replica.stream(request()))
        assert not probed.is_set()
        await asyncio.sleep(0.3)

    asyncio.run(ask_and_wait())
    assert probed.wait(5)


def test_a_stuck_episode_fails_the_health_check(replica, monkeypatch):
    replica.check_alive()
    monkeypatch.setattr(replica, "_started_s", time.monotonic() - 6)
    with pytest.raises(RuntimeError, match="takes longer than 5 s"):
        replica.check_alive()
