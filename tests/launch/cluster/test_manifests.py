"""The manifests in docs/cluster.md, as far as they can be checked without a cluster."""

import re
import shlex
from pathlib import Path

import pytest
import ray
import tyro
import yaml

from launch.run.recipes import RECIPES

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "cluster.md").read_text()
JOB, POLICY = yaml.safe_load_all(re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1])
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD, WORKERS = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
DASHBOARD_PORT = 8265


def test_the_submitter_reaches_the_dashboard_and_nobody_else_does():
    assert HEAD["rayStartParams"]["dashboard-host"] == "0.0.0.0"
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert POLICY["spec"]["policyTypes"] == ["Ingress"]
    inside, dashboard = POLICY["spec"]["ingress"]
    own = {"podSelector": POLICY["spec"]["podSelector"]}
    assert inside == {"from": [own]}
    assert [port["port"] for port in dashboard["ports"]] == [DASHBOARD_PORT]
    submitter, operator = dashboard["from"]
    # The submitter's Kubernetes job has the name of the RayJob.
    assert submitter == {"podSelector": {"matchLabels": {"job-name": JOB["metadata"]["name"]}}}
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


@pytest.mark.parametrize("group", [HEAD, *WORKERS])
def test_every_pod_is_covered_by_the_policy_and_shares_the_folder(group):
    template = group["template"]
    wanted = POLICY["spec"]["podSelector"]["matchLabels"]
    assert wanted.items() <= template["metadata"]["labels"].items()
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    mounts = template["spec"]["containers"][0]["volumeMounts"]
    assert {mount["name"] for mount in mounts} <= volumes
    assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    run_dir = shlex.split(JOB["spec"]["entrypoint"])[-1]
    assert any(Path(mount["mountPath"]) in Path(run_dir).parents for mount in mounts)


def test_the_ray_version_is_the_pinned_one_and_has_token_authentication():
    assert CLUSTER["rayVersion"] == ray.__version__
    assert tuple(map(int, CLUSTER["rayVersion"].split("."))) >= (2, 52)


def test_the_entrypoint_is_a_command_line_that_the_program_takes():
    python, script, recipe, *options = shlex.split(JOB["spec"]["entrypoint"])
    assert (python, script) == ("python", "launch/joint_grpo.py")
    config = tyro.cli(type(RECIPES[recipe]()), args=options, default=RECIPES[recipe]())
    assert config.run_dir == "/shared/runs/one"
    assert yaml.safe_load(JOB["spec"]["runtimeEnvYAML"])["working_dir"].startswith("https://")


def test_pods_and_policy_follow_kubernetes_schemas():
    """KubeRay's own fields are not checked, because no package has their schemas."""
    validate = pytest.importorskip("kubernetes_validate").validate
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}} | group["template"]
        for group in (HEAD, *WORKERS)
    ]
    for manifest in (POLICY, *pods):
        validate(manifest, "1.30", strict=True)
