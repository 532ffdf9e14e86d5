"""Configuration of a server."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pydantic
import tyro

from envs.checks import check_within, did_you_mean
from launch.serving.admission import QueueConfig
from launch.serving.limits import Limits

TOKEN_VARIABLE = "LATENCY_BUDGET_TOKEN"
"""Environment variable with the token that requests must carry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """Number of replicas, each with a GPU or a CPU core of its own.

    Attributes:
        replicas: number of replicas; 0 means one per GPU, or one per CPU core if there is no GPU.
        max_replicas: with a number, replicas are added and removed between `replicas`, at least 1,
            and this one.
        start_timeout_s: time limit for all replicas to load the model and be ready, in seconds.
        target_busy_share: share of their time for which scaled replicas should be busy.
        upscale_delay_s: how long they must be busier before one is added, in seconds.
        downscale_delay_s: how long they must be less busy before one is removed, in seconds.
        drain_s: time limit for running requests when a replica is removed or the server stops, in
            seconds.
        health_check_s: interval of health checks, in seconds.
    """

    replicas: int = 0
    max_replicas: int | None = None
    start_timeout_s: float = 600.0
    target_busy_share: float = 0.7
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 300.0
    drain_s: float = 20.0
    health_check_s: float = 5.0

    def __post_init__(self) -> None:
        check_within(self, "replicas", low=0)
        check_within(self, "max_replicas", low=max(1, self.replicas))
        check_within(self, "target_busy_share", low=0, above=True, high=1)
        check_within(self, "upscale_delay_s", "downscale_delay_s", low=0)
        check_within(self, "start_timeout_s", "drain_s", "health_check_s", low=0, above=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The frozen model; by default as the controller's run had it.

    Attributes:
        model: `embedded`, a folder, or a hub id such as allenai/MolmoE-1B-0924.
        dtype: dtype of the weights.
        device: device of every replica.
        max_new_tokens: maximum length of an answer, in tokens; requests may ask for less.
    """

    model: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    device: Literal["auto", "cpu", "cuda"] | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        check_within(self, "max_new_tokens", low=1)

    @property
    def is_embedded(self) -> bool:
        """Whether the model may be the one that ships with the project."""
        return self.model in (None, "embedded")

    def worker_settings(self) -> dict[str, str]:
        """The fields of `WorkerConfig` that are stated."""
        stated = {"model": self.model, "dtype": self.dtype, "device": self.device}
        return {name: value for name, value in stated.items() if value is not None}

    def executor_settings(self) -> dict[str, int]:
        """The fields of `ExecutorConfig` that are stated."""
        return {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """One server.

    Attributes:
        run: a run folder, whose newest intact checkpoint is served, or the folder of one
            checkpoint, as a path or URI; without it fixed configurations are served.
        host: address to listen on. Any other than a loopback address needs a token.
        port: port to listen on.
        token_file: file with the token that requests must carry; by default the environment
            variable LATENCY_BUDGET_TOKEN, if it is set.
        budget_ms: latency budget of requests that do not state one, in ms.
        price: price of time of requests that do not state one, without load; by default the one
            that the controller was trained to be deployed with. It rises with the load.
        address: Ray address; `auto` joins a running cluster. By default RAY_ADDRESS, or else a
            local cluster that ends with the server.
        queue: the queue in front of the replicas.
        limits: limits of one request.
        scaling: number of replicas.
        model: the frozen model.
    """

    run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    budget_ms: float = 200.0
    price: float | None = None
    address: str = ""
    queue: QueueConfig = field(default_factory=QueueConfig)
    limits: Limits = field(default_factory=Limits)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    model: ServedModel = field(default_factory=ServedModel)

    def __post_init__(self) -> None:
        check_within(self, "port", low=1, high=65535)
        check_within(self, "price", low=0)
        check_within(self, "budget_ms", low=0, above=True, high=self.limits.max_budget_ms)

    def token(self) -> str:
        """The token that requests must carry; empty on a loopback address without one.

        Raises:
            ValueError: the address is not a loopback one and there is no token, or the token's file
                is unusable.
        """
        token = os.environ.get(TOKEN_VARIABLE, "")
        if self.token_file is not None:
            try:
                token = self.token_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"the token file cannot be read: {error}") from None
            if not token:
                raise ValueError(f"{self.token_file} is empty: write a token into it")
        if not token and not is_loopback(self.host):
            raise ValueError(
                f"anyone who reaches {self.host} could use this server: give a --token-file, or "
                f"set {TOKEN_VARIABLE}"
            )
        return token


def config_from(arguments: Mapping[str, Any]) -> ServeConfig:
    """The configuration from plain values by name of the field, nested ones included.

    Raises:
        ValueError: an unknown field, or an unusable value.
    """
    _check_fields(ServeConfig, arguments)
    return pydantic.TypeAdapter(ServeConfig).validate_python(arguments)


def _check_fields(kind: type, arguments: Mapping[str, Any]) -> None:
    fields = get_type_hints(kind)
    for name, value in arguments.items():
        if name not in fields:
            raise ValueError(
                f"there is no field {name}: use one of {', '.join(fields)}"
                f"{did_you_mean(name, fields)}"
            )
        if dataclasses.is_dataclass(fields[name]) and isinstance(value, Mapping):
            _check_fields(fields[name], value)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
