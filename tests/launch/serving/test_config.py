"""What a server is told: addresses, tokens, numbers of replicas, manifests."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray.serve.config import AutoscalingConfig

from launch.serving import deployment
from launch.serving.config import (
    TOKEN_VARIABLE,
    ScalingConfig,
    ServeConfig,
    ServedModel,
    config_from,
    is_loopback,
)
from launch.serving.limits import Limits
from launch.serving.local_names import is_local_name

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "cluster.md").read_text()
SERVICE = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((name, True) for name in ("localhost", "127.0.0.1", "127.8.9.1", "::1")),
        *((name, False) for name in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")),
    ],
)
def test_what_only_this_machine_reaches(host, expected):
    assert is_loopback(host) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((name, True) for name in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST")),
        *((name, False) for name in ("example.org", "127.0.0.1.example.org", "", "[::1", "a@b")),
    ],
)
def test_names_that_a_browser_may_use_without_a_token(host, expected):
    assert is_local_name(host) == expected


def test_an_open_address_needs_a_token(monkeypatch, tmp_path):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert ServeConfig().token() == ""
    with pytest.raises(ValueError, match=r"anyone who reaches 0\.0\.0\.0 could use this server"):
        ServeConfig(host="0.0.0.0").token()
    monkeypatch.setenv(TOKEN_VARIABLE, "from the environment")
    assert ServeConfig(host="0.0.0.0").token() == "from the environment"
    path = tmp_path / "token"
    path.write_text("from a file\n")
    assert ServeConfig(host="0.0.0.0", token_file=path).token() == "from a file"
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty: write a token into it"):
        ServeConfig(token_file=path).token()
    with pytest.raises(ValueError, match="the token file cannot be read"):
        ServeConfig(token_file=tmp_path / "none").token()


@pytest.mark.parametrize(
    "make",
    [
        *(lambda f=field: Limits(**{f: 0}) for field in Limits.__slots__),
        lambda: ServeConfig(port=0),
        lambda: ServeConfig(budget_ms=0),
        lambda: ServeConfig(price=-0.1),
        lambda: ServeConfig(budget_ms=float("nan")),
        lambda: ServeConfig(budget_ms=61_000),
        lambda: ScalingConfig(replicas=4, max_replicas=3),
        lambda: ScalingConfig(target_busy_share=1.5),
        lambda: ScalingConfig(drain_s=-1),
    ],
)
def test_unusable_numbers_are_refused(make):
    with pytest.raises(ValueError, match="give a finite number"):
        make()


@pytest.mark.parametrize(
    ("device", "found", "replicas", "resources"),
    [
        (None, {"CPU": 2.0}, 2, {"num_cpus": 1}),
        (None, {"CPU": 32.0, "GPU": 8.0}, 8, {"num_cpus": 0, "num_gpus": 1}),
        ("cpu", {"CPU": 4.0, "GPU": 8.0}, 4, {"num_cpus": 1}),
        ("cuda", {"CPU": 4.0}, 1, {"num_cpus": 0, "num_gpus": 1}),
    ],
)
def test_one_replica_per_device(monkeypatch, device, found, replicas, resources):
    monkeypatch.setattr(deployment.ray, "cluster_resources", lambda: found)
    options = deployment.replica_options(ServeConfig(model=ServedModel(device=device)))
    assert (options["num_replicas"], options["ray_actor_options"]) == (replicas, resources)
    assert options["max_ongoing_requests"] == 1
    growing = ServeConfig(scaling=ScalingConfig(replicas=2, max_replicas=9, drain_s=5))
    options = deployment.replica_options(growing)
    assert options["autoscaling_config"]["min_replicas"] == 2
    assert options["autoscaling_config"]["max_replicas"] == 9
    assert options["graceful_shutdown_timeout_s"] == 5
    assert "num_replicas" not in options


def service():
    return yaml.safe_load(SERVICE["spec"]["serveConfigV2"])


def test_the_manifests_arguments_are_those_of_the_server(monkeypatch, tmp_path):
    (application,) = service()["applications"]
    module, _, function = application["import_path"].partition(":")
    assert module == deployment.__name__
    assert getattr(deployment, function) is deployment.from_arguments
    config = config_from(application["args"])
    assert config.queue.late == "refuse"
    assert config.scaling.max_replicas == 16
    assert config.run == "/shared/runs/one"
    assert application["name"] == deployment.APPLICATION
    assert service()["http_options"]["request_timeout_s"] >= config.limits.request_timeout_s
    # The application itself, with a token that is there.
    token = tmp_path / "token"
    token.write_text("secret")
    monkeypatch.setattr(deployment.ray, "cluster_resources", dict)
    built = deployment.from_arguments({**application["args"], "token_file": str(token)})
    assert built is not None
    for wrong in ({"quue": {}}, {"queue": {"lte": "refuse"}}):
        with pytest.raises(ValueError, match="there is no field"):
            deployment.from_arguments({**application["args"], **wrong})
    with pytest.raises(ValueError, match="late"):
        deployment.from_arguments({**application["args"], "queue": {"late": "never"}})


def test_the_manifests_pods_can_serve():
    cluster = SERVICE["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        variables = {variable["name"]: variable["value"] for variable in container["env"]}
        path = variables["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
        assert path == f"{deployment.__name__}:{deployment.proxy_middleware.__name__}"
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"/shared", "/secrets"}
        assert {v["name"] for v in pod["volumes"]} == {"shared", "token"}


def test_proxies_know_the_limits(monkeypatch):
    monkeypatch.setenv(deployment.LIMITS_VARIABLE, json.dumps({"body_mib": 3}))
    (middleware,) = deployment.proxy_middleware()
    assert middleware.kwargs["limits"] == Limits(body_mib=3)
    monkeypatch.delenv(deployment.LIMITS_VARIABLE)
    (middleware,) = deployment.proxy_middleware()
    assert middleware.kwargs["limits"] == Limits()


def test_the_image_starts_the_server_that_the_project_installs():
    dockerfile = (ROOT / "Dockerfile").read_text()
    scripts = (ROOT / "pyproject.toml").read_text()
    command, *options = json.loads(re.search(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)[1])
    assert f"{command} = " in scripts
    assert ServeConfig(**dict([(options[0].removeprefix("--"), options[1])])).host == "0.0.0.0"
    copied = set(re.findall(r"^COPY (\w+)/__init__", dockerfile, re.MULTILINE))
    assert copied == {"envs", "policy", "rollout", "learner", "launch"}


def test_replicas_are_scaled_by_how_busy_they_are(monkeypatch):
    monkeypatch.setattr(deployment.ray, "cluster_resources", dict)
    options = deployment.replica_options(
        ServeConfig(scaling=ScalingConfig(replicas=1, max_replicas=9, target_busy_share=0.7))
    )
    scaling = AutoscalingConfig(**options["autoscaling_config"])
    assert scaling.policy.get_policy().__qualname__ == deployment.replicas_for_load.__qualname__
    for shares, wanted in (((), 0), ((0.7,), 1), ((1.0, 1.0), 3), ((0.1, 0.1, 0.1), 1)):
        metrics = {deployment.BUSY_SHARE: dict(enumerate(shares))}
        context = SimpleNamespace(aggregated_metrics=metrics, config=scaling)
        assert math.ceil(deployment.replicas_for_load(context)[0]) == wanted
