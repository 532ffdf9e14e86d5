"""The server on Ray Serve: replicas with a model each, and the gateway in front of them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingContext
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.middleware import Middleware

from launch.cluster.signals import Stopped
from launch.cluster.waiting import Waiting, telling
from launch.serving.admission import Admission
from launch.serving.app import AppConfig, build_app
from launch.serving.body import BoundedBodies
from launch.serving.config import ServeConfig, config_from
from launch.serving.episodes import ReplicaFacts
from launch.serving.exposition import cluster_metrics
from launch.serving.gateway import Gateway
from launch.serving.limits import Limits
from launch.serving.listening import listening
from launch.serving.metrics import ServingMetrics, count_replica_start
from launch.serving.page import render, shipped_examples
from launch.serving.pool import REGISTER_S, ReplicaPool
from launch.serving.replica_app import replica_app
from launch.storage.fetched_run import absolute_run

log = logging.getLogger(__name__)

APPLICATION = "latency-budget"
GATEWAY, REPLICAS = "gateway", "replicas"

BUSY_SHARE = "busy_share"
"""Name of the figure that replicas are scaled by."""

LIMITS_VARIABLE = "LATENCY_BUDGET_LIMITS"
"""Environment variable by which Serve's proxies know the limits of one request, as JSON."""

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
        limits: limits of one request.
        price: price of requests that state none, if it is not the controller's own.
        key: key by which the gateway is known.
        drain_s: time limit for a running episode when the replica stops, in seconds.
    """

    run: str | None
    worker: dict[str, str]
    executor: dict[str, int]
    limits: Limits
    price: float | None
    key: str
    drain_s: float


class ReplicaDeployment:
    """A `Replica` in a process of its own, which the gateway asks over HTTP."""

    async def __init__(self, settings: ReplicaSettings) -> None:
        # The gateway, which imports this module too, needs no PyTorch.
        from launch.answering.policy_set import PolicySet
        from launch.serving.replica import Replica

        load = partial(
            PolicySet.load,
            settings.run,
            worker_settings=settings.worker,
            executor_settings=settings.executor,
        )
        self._replica = await asyncio.to_thread(Replica, load, settings.limits, settings.price)
        self._listening = AsyncExitStack()
        host = ray.util.get_node_ip_address()
        app = replica_app(self._replica.stream, settings.key)
        listener = listening(app, host, drain_s=settings.drain_s)
        self._address = f"{host}:{await self._listening.enter_async_context(listener)}"
        self._gateway = serve.get_deployment_handle(GATEWAY, APPLICATION)
        self._busy_s, self._asked_s = 0.0, time.monotonic()
        self._registering = asyncio.create_task(self._keep_registering())
        count_replica_start()

    async def _keep_registering(self) -> None:
        while True:
            try:
                await self._gateway.register.remote(
                    self._address, self._replica.facts, is_idle=self._replica.is_idle
                )
            except Exception as error:  # the gateway may be restarting
                log.warning("the gateway cannot be reached: %s", error)
            await asyncio.sleep(REGISTER_S)

    def check_health(self) -> None:
        """Called by Serve from time to time; an exception restarts the replica."""
        self._replica.check_alive()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve from time to time: the share of the time since then that was busy."""
        busy_s, now_s = self._replica.busy_s, time.monotonic()
        share = (busy_s - self._busy_s) / max(now_s - self._asked_s, 1e-3)
        self._busy_s, self._asked_s = busy_s, now_s
        return {BUSY_SHARE: share}

    async def __del__(self) -> None:
        """Called by Serve at the end: takes no more questions, and finishes its episode."""
        if hasattr(self, "_registering"):
            self._registering.cancel()
            await self._listening.aclose()


def replicas_for_load(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Serve's scaling policy: as many replicas as are busy for the share that is aimed at."""
    shares = (context.aggregated_metrics or {}).get(BUSY_SHARE, {})
    assert context.config is not None
    return sum(shares.values()) / context.config.get_target_ongoing_requests(), {}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What the gateway is given.

    Attributes:
        config: the server's configuration.
        token: token that requests must carry.
        key: key by which replicas know the gateway.
        is_listening: whether it listens on the configured address itself; otherwise Serve's
            proxies pass requests on.
    """

    config: ServeConfig
    token: str
    key: str
    is_listening: bool


@serve.ingress()
class GatewayDeployment:
    """The `Gateway` and its HTTP interface in a process of their own."""

    def __init__(self, settings: GatewaySettings, _replicas: DeploymentHandle) -> None:
        # The replicas register by themselves; the handle makes them part of the application.
        self._settings, config = settings, settings.config
        self._pool = ReplicaPool(settings.key)
        self._gateway = Gateway(
            self._pool, Admission(config=config.queue), config.limits, ServingMetrics()
        )

    async def register(self, address: str, facts: ReplicaFacts, *, is_idle: bool) -> None:
        """Hears of a replica; see `ReplicaPool.register`."""
        if self._pool.register(address, facts, is_idle=is_idle):
            await self._gateway.refresh()

    def __serve_build_asgi_app__(self) -> Starlette:
        """The ASGI application; Serve calls this once."""
        config = self._settings.config
        examples = shipped_examples() if config.model.is_embedded else []
        app = build_app(
            self._gateway,
            AppConfig(
                page=render(examples, config.budget_ms),
                default_budget_ms=config.budget_ms,
                token=self._settings.token,
                metrics=cluster_metrics,
            ),
        )
        refreshed = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            async with refreshed(app), AsyncExitStack() as stack:
                stack.push_async_callback(self._pool.close)
                if self._settings.is_listening:
                    drain_s = config.scaling.drain_s
                    listener = listening(app, config.host, config.port, drain_s=drain_s)
                    await stack.enter_async_context(listener)
                yield

        app.router.lifespan_context = lifespan
        return app


def proxy_middleware() -> list[Middleware]:
    """Called by Serve's proxies, if RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names this function.

    Otherwise a proxy would collect a request of any size before the gateway could refuse it.
    """
    limits = Limits(**json.loads(os.environ.get(LIMITS_VARIABLE, "{}")))
    return [Middleware(BoundedBodies, limits=limits)]


def start(config: ServeConfig, is_stopping: Callable[[], bool]) -> None:
    """Starts the server on the connected cluster and waits until it answers.

    Args:
        config: the server.
        is_stopping: called while waiting.

    Raises:
        Stopped: `is_stopping` returned True.
        RuntimeError: it does not start, for instance because the model cannot be loaded, or the
            cluster has no room for the replicas.
    """
    with telling("Ray Serve to start"):
        serve.start(proxy_location="Disabled")
    # Without a route, proxies that Serve may have for other applications do not lead here.
    built = application(config, is_listening=True)
    target = serve.RunTarget(built, name=APPLICATION, route_prefix=None)
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
    return application(config_from(arguments), is_listening=False)


def application(config: ServeConfig, *, is_listening: bool) -> serve.Application:
    """Gateway and replicas, as Serve runs them; see `GatewaySettings`."""
    key, scaling = secrets.token_hex(16), config.scaling
    replicas = serve.deployment(**replica_options(config))(ReplicaDeployment).bind(
        ReplicaSettings(
            run=absolute_run(config.run) if config.run else None,
            worker=config.model.worker_settings(),
            executor=config.model.executor_settings(),
            limits=config.limits,
            price=config.price,
            key=key,
            drain_s=scaling.drain_s,
        )
    )
    settings = GatewaySettings(
        config=config, token=config.token(), key=key, is_listening=is_listening
    )
    here = {f"node:{ray.util.get_node_ip_address()}": 0.001} if is_listening else {}
    return serve.deployment(
        name=GATEWAY,
        max_ongoing_requests=GATEWAY_REQUESTS,
        ray_actor_options={"num_cpus": 0, "resources": here},
        graceful_shutdown_timeout_s=scaling.drain_s,
        graceful_shutdown_wait_loop_s=0.1,
    )(GatewayDeployment).bind(settings, replicas)


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
            "policy": {"policy_function": f"{__name__}:{replicas_for_load.__name__}"},
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
        },
    }
