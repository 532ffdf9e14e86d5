"""What gateway and replicas exchange; light, because the gateway has no model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from envs.checks import did_you_mean
from envs.price_curve import PriceCurve
from envs.prices import FREE
from envs.spec import CHEAPEST_KNOBS, Knobs, knobs_by_name
from launch.serving.errors import ApiError
from launch.serving.estimates import CheapestTimes

CHEAPEST = "cheapest"
"""Name of the policy that answers late requests."""

CONFIGURATIONS = knobs_by_name()
"""Each of these can be requested as a model, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRequest:
    """One question to a replica.

    Attributes:
        policy: name of the policy or configuration.
        text: the prompt.
        image: the encoded image, if there is one.
        budget_ms: latency budget of the episode, in ms.
        price: price of time; None for the policy's own.
        max_new_tokens: maximum length of the answer in tokens, None for the model's.
    """

    policy: str
    text: str
    image: bytes | None
    budget_ms: float
    price: float | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeResult:
    """An answer as a replica reports it; see `launch.answering.answerer.Answer`.

    Attributes:
        text: the answer.
        knobs: the configuration that ran.
        decided_by: what chose it, in words.
        stages_ms: time of each stage, in the order in which they run.
        latency_ms: sum of the stages, on the device's clock.
        wall_ms: the same on the wall clock.
        host_ms: decoding, tokenising and resizing, which is not part of the latency.
        clock: the device's clock.
        finished: whether the model ended the answer itself.
        num_output_tokens: number of decoded tokens.
        num_prompt_tokens: number of vision and text tokens of the prompt.
        price: price of time that it was chosen for.
    """

    text: str
    knobs: Knobs
    decided_by: str
    stages_ms: Mapping[str, float]
    latency_ms: float
    wall_ms: float
    host_ms: float
    clock: str
    finished: bool
    num_output_tokens: int
    num_prompt_tokens: int
    price: float = FREE

    @property
    def is_cheapest(self) -> bool:
        """Whether the cheapest configuration ran."""
        return self.knobs == CHEAPEST_KNOBS


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """What a replica says about itself.

    Attributes:
        policies: names of the policies that it offers, the default one first.
        cheapest: latencies of the cheapest configuration.
        budget_range_ms: budgets that the controller was trained for, in ms of the device; None
            without a controller.
        price: price of requests that state none, without load.
        price_curve: the controller's device time by price; None if its run wrote none.
    """

    policies: tuple[str, ...]
    cheapest: CheapestTimes
    budget_range_ms: tuple[float, float] | None
    price: float = FREE
    price_curve: PriceCurve | None = None

    def check_known(self, name: str) -> None:
        """Raises ApiError unless a name is that of a policy or a configuration."""
        if name not in self.policies and name not in CONFIGURATIONS:
            known = ", ".join(self.policies)
            message = f"there is no model {name[:80]!r}: use one of {known}"
            message += did_you_mean(name[:80], (*self.policies, *CONFIGURATIONS))
            raise ApiError(404, message, code="model_not_found", param="model")


class ReplicaLostError(Exception):
    """A replica died, or became unreachable, during an episode."""


class Replicas(Protocol):
    """The replicas, as the gateway sees them."""

    async def facts(self) -> ReplicaFacts:
        """What a replica says about itself; waits until there is one."""
        ...

    async def count(self) -> int:
        """Number of replicas that are ready."""
        ...

    def stream(self, request: EpisodeRequest) -> AsyncIterator[str | EpisodeResult]:
        """Yields the text piece by piece on a free replica, then the result.

        Raises:
            ApiError: the question cannot be answered.
            ReplicaLostError: the replica died.
        """
        ...
