"""Which actors a fleet takes: the majority's model, and a second fleet that waits for its turn."""

import logging
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import ray

from launch.cluster.config import ClusterConfig
from launch.cluster.connection import connect
from launch.cluster.fleet import RayFleet
from launch.cluster.membership import Membership
from launch.cluster.slots import Slot
from tests import launch_rig


@dataclass(frozen=True)
class Model:
    """Stands for a fingerprint."""

    name: str

    def differences(self, other):
        return "" if self == other else f"weights: {self.name} and {other.name}"


def membership_of(*names):
    members = object.__new__(Membership)
    members.config, members.fingerprint, members.facts = ClusterConfig(), None, None
    members.slots = [
        Slot(
            name=f"rollout-{number}",
            state="ready",
            facts=SimpleNamespace(fingerprint=Model(name), reference_latency_ms=50.0),
        )
        for number, name in enumerate(names)
    ]
    return members


def test_most_actors_decide_which_model_the_run_has(caplog):
    members = membership_of("odd", "right", "right")
    members.agree()
    assert members.fingerprint == Model("right")
    assert [slot.name for slot in members.ready] == ["rollout-1", "rollout-2"]
    assert members.facts is members.slots[1].facts
    assert members.slots[0].state == "given up"
    assert members.slots[0].again_at == float("inf")
    assert "rollout-0 is given up, it differs from the rest" in caplog.text


def test_an_actor_that_joins_with_another_model_is_left_out(caplog):
    members = membership_of("right")
    members.agree()
    late = Slot(name="rollout-1", state="starting")
    members.slots.append(late)
    members.admit(late, SimpleNamespace(fingerprint=Model("odd"), reference_latency_ms=50.0))
    assert late.state == "given up"
    assert "rollout-1 is given up" in caplog.text


def test_a_fleet_of_which_too_many_differ_ends():
    members = membership_of("a", "a", "b")
    members.config = ClusterConfig(min_actors=3)
    members.shutdown = lambda: None
    members.asked_and_has = lambda: "each actor asks for 1 GPU"
    with pytest.raises(RuntimeError, match=r"rollout-2 is given up.* at least 3 are required"):
        members.agree()


@pytest.mark.slow
def test_a_second_fleet_says_what_it_waits_for_and_takes_its_turn(caplog):
    caplog.set_level(logging.INFO)
    if ray.is_initialized():
        ray.shutdown()
    connect("local", num_cpus=1)
    config = ClusterConfig(start_timeout_s=240)
    first, found = RayFleet(launch_rig.worker, config), []
    second = threading.Thread(target=lambda: found.append(RayFleet(launch_rig.worker, config)))
    second.start()
    second.join(25)
    assert second.is_alive(), "the only core is taken"
    said = [r.message for r in caplog.records if "to get a place" in r.message]
    assert all("the cluster has 1 CPU and no GPU, free: no CPU" in line for line in said)
    assert len(said) >= 2, "at once, and again"
    first.shutdown()
    second.join(200)
    assert found[0].num_actors == 1
    found[0].shutdown()
    ray.shutdown()
