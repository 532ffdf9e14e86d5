"""The server on Ray Serve: replicas with a model each, and the gateway in front of them."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.middleware import Middleware

from launch.cluster.signals import Stopped
from launch.cluster.waiting import Waiting, telling
from launch.serving.admission import Admission
from launch.serving.app import AppConfig, build_app
from launch.serving.body import BoundedBodies
from launch.serving.config import ServeConfig, config_from
from launch.serving.episodes import EpisodeRequest, EpisodeResult, ReplicaFacts, ReplicaLostError
from launch.serving.errors import ApiError
from launch.serving.exposition import cluster_metrics
from launch.serving.gateway import Gateway
from launch.serving.limits import Limits
from launch.serving.metrics import ServingMetrics, count_replica_start
from launch.serving.page import render, shipped_examples
from launch.storage.fetched_run import absolute_run

APPLICATION = "latency-budget"
REPLICAS = "replicas"

LIMITS_VARIABLE = "LATENCY_BUDGET_LIMITS"
"""Environment variable by which Serve's proxies know the limits of one request, as JSON."""

PROXY_CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Environment variable that names a function with further middleware of Serve's proxies."""

START_CHECK_S = 0.2
"""How often a starting server is asked whether it is ready."""

GATEWAY_REQUESTS = 1000
"""Number of requests in the gateway at a time, including those about to be refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """What a replica loads.

    Attributes:
        run: run folder or folder of a checkpoint, if there is one, as an absolute path or URI.
        worker: fields of `WorkerConfig`.
        executor: fields of `ExecutorConfig`.
        episode_timeout_s: time after which an episode counts as stuck.
        price: price of requests that state none, if it is not the controller's own.
    """

    run: str | None
    worker: dict[str, str]
    executor: dict[str, int]
    episode_timeout_s: float
    price: float | None


class ReplicaDeployment:
    """A `Replica` in a process of its own."""

    def __init__(self, settings: ReplicaSettings) -> None:
        # The gateway, which imports this module too, needs no PyTorch.
        from launch.answering.policy_set import PolicySet
        from launch.serving.replica import Replica

        load = partial(
            PolicySet.load,
            settings.run,
            worker_settings=settings.worker,
            executor_settings=settings.executor,
        )
        self._replica = Replica(load, settings.episode_timeout_s, settings.price)
        count_replica_start()

    async def facts(self) -> ReplicaFacts:
        """What the replica says about itself."""
        return self._replica.facts

    async def episode(
        self, request: EpisodeRequest
    ) -> AsyncIterator[str | EpisodeResult | ApiError]:
        """See `Replica.stream`; refusals are yielded, because Ray would wrap them."""
        try:
            async for report in self._replica.stream(request):
                yield report
        except ApiError as error:
            yield error

    def check_health(self) -> None:
        """Called by Serve from time to time; an exception restarts the replica."""
        self._replica.check_alive()


class RayReplicas:
    """The replicas behind a Serve handle; implements `launch.serving.episodes.Replicas`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def facts(self) -> ReplicaFacts:
        """See `Replicas.facts`."""
        return await self._handle.facts.remote()

    async def count(self) -> int:
        """See `Replicas.count`."""
        return await asyncio.to_thread(_count_running)

    async def stream(self, request: EpisodeRequest) -> AsyncIterator[str | EpisodeResult]:
        """See `Replicas.stream`."""
        try:
            reports: Any = self._handle.options(stream=True).episode.remote(request)
            async for report in reports:
                if isinstance(report, ApiError):
                    raise report
                yield report
        except RayTaskError:
            raise
        except RayError as error:
            raise ReplicaLostError from error


def _count_running() -> int:
    application = serve.status().applications.get(APPLICATION)
    deployment = application and application.deployments.get(REPLICAS)
    states = deployment.replica_states.items() if deployment else ()
    return sum(number for state, number in states if state == "RUNNING")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What the gateway is given: the server's configuration, its token and its page."""

    config: ServeConfig
    token: str
    page: str


@serve.ingress()
class GatewayDeployment:
    """The `Gateway` and its HTTP interface in a process of their own."""

    def __init__(self, replicas: DeploymentHandle, settings: GatewaySettings) -> None:
        self._replicas, self._settings = RayReplicas(replicas), settings

    def __serve_build_asgi_app__(self) -> Starlette:
        """The ASGI application; Serve calls this once."""
        config = self._settings.config
        gateway = Gateway(
            self._replicas, Admission(config=config.queue), config.limits, ServingMetrics()
        )
        return build_app(
            gateway,
            AppConfig(
                page=self._settings.page,
                default_budget_ms=config.budget_ms,
                token=self._settings.token,
                metrics=cluster_metrics,
            ),
        )


def set_proxy_limits(limits: Limits) -> None:
    """Makes the proxies of a local cluster that starts after this keep to the limits.

    Otherwise a proxy would collect a request of any size before the gateway could refuse it.
    """
    os.environ[LIMITS_VARIABLE] = json.dumps(asdict(limits))
    os.environ[PROXY_CALLBACK_VARIABLE] = f"{__name__}:proxy_middleware"


def proxy_middleware() -> list[Middleware]:
    """Called by Serve's proxies when they start."""
    limits = Limits(**json.loads(os.environ.get(LIMITS_VARIABLE, "{}")))
    return [Middleware(BoundedBodies, limits=limits)]


def start(config: ServeConfig, page: str, is_stopping: Callable[[], bool]) -> None:
    """Starts the server on the connected cluster and waits until it answers.

    Args:
        config: the server.
        page: HTML of its page.
        is_stopping: called while waiting.

    Raises:
        Stopped: `is_stopping` returned True.
        RuntimeError: it does not start, for instance because the model cannot be loaded, or the
            cluster has no room for the replicas.
    """
    with telling("Ray Serve to start"):
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": config.host,
                "port": config.port,
                "request_timeout_s": config.limits.request_timeout_s,
            },
        )
    target = serve.RunTarget(application(config, page), name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    _wait_until_running(config.scaling.start_timeout_s, is_stopping)


def _wait_until_running(limit_s: float, is_stopping: Callable[[], bool]) -> None:
    waiting = Waiting(limit_s)
    while True:
        if is_stopping():
            raise Stopped
        found = serve.status().applications.get(APPLICATION)
        if found and found.status == "RUNNING":
            return
        if found and found.status == "DEPLOY_FAILED":
            raise RuntimeError(f"the server does not start: {found.message}")
        reasons = [d.message for d in found.deployments.values()] if found else []
        waiting.say(lambda r=reasons: " ".join(["the replicas to load the model.", *r]).strip())
        if waiting.is_over():
            raise RuntimeError(
                f"the replicas are not ready after {limit_s:g} s: lower scaling.replicas, or raise "
                f"scaling.start-timeout-s. {' '.join(filter(None, reasons))}".strip()
            )
        time.sleep(START_CHECK_S)


def from_arguments(arguments: dict[str, Any]) -> serve.Application:
    """The application of a RayService manifest, whose `args` are the fields of `ServeConfig`.

    Raises:
        ValueError: an argument is unusable.
    """
    config = config_from(arguments)
    examples = shipped_examples() if config.model.is_embedded else []
    return application(config, render(examples, config.budget_ms))


def application(config: ServeConfig, page: str) -> serve.Application:
    """Gateway and replicas, as Serve runs them."""
    replicas = serve.deployment(**replica_options(config))(ReplicaDeployment).bind(
        ReplicaSettings(
            run=absolute_run(config.run) if config.run else None,
            worker=config.model.worker_settings(),
            executor=config.model.executor_settings(),
            episode_timeout_s=config.limits.episode_timeout_s,
            price=config.price,
        )
    )
    settings = GatewaySettings(config=config, token=config.token(), page=page)
    return serve.deployment(
        name="gateway",
        max_ongoing_requests=GATEWAY_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=config.scaling.drain_s,
        graceful_shutdown_wait_loop_s=0.1,
    )(GatewayDeployment).bind(replicas, settings)


def stop() -> None:
    """Ends the server after the requests that are running.

    Serve itself stays, for other applications of the cluster; with a local one it ends as well.
    """
    with telling("the requests that are running"):
        serve.delete(APPLICATION)


def replica_options(config: ServeConfig) -> dict[str, Any]:
    """Options of the replicas' deployment on the connected cluster."""
    scaling, found = config.scaling, ray.cluster_resources()
    num_gpus, device = int(found.get("GPU", 0)), config.model.device
    # Nodes with GPUs may still be starting.
    uses_gpu = device == "cuda" or (device != "cpu" and num_gpus > 0)
    least = scaling.replicas or max(1, num_gpus if uses_gpu else int(found.get("CPU", 1)))
    options: dict[str, Any] = {
        "name": REPLICAS,
        "max_ongoing_requests": 1,
        "ray_actor_options": {"num_cpus": 0, "num_gpus": 1} if uses_gpu else {"num_cpus": 1},
        "health_check_period_s": scaling.health_check_s,
        "health_check_timeout_s": 2 * scaling.health_check_s,
        "graceful_shutdown_timeout_s": scaling.drain_s,
        "graceful_shutdown_wait_loop_s": 0.1,
    }
    if scaling.max_replicas is None:
        return {**options, "num_replicas": least}
    return {
        **options,
        "autoscaling_config": {
            "min_replicas": max(1, scaling.replicas),
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_busy_share,
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
        },
    }
