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
FIRST, SECOND = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
JOB, POLICY = yaml.safe_load_all(FIRST)
SERVICE = yaml.safe_load(SECOND)
CLUSTER = JOB["spec"]["rayClusterSpec"]
SERVING = SERVICE["spec"]["rayClusterConfig"]
HEAD, WORKERS = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
GROUPS = [c[k] for c in (CLUSTER, SERVING) for k in ("headGroupSpec",)] + [
    group for c in (CLUSTER, SERVING) for group in c["workerGroupSpecs"]
]
IMAGE_USER = 1000
METRICS_PORT = 8080

# Fields of KubeRay's types, as far as these manifests could use them, written down by hand.
CLUSTER_FIELDS = set(
    "rayVersion authOptions enableInTreeAutoscaling autoscalerOptions headGroupSpec "
    "workerGroupSpecs suspend headServiceAnnotations managedBy gcsFaultToleranceOptions".split()
)
JOB_FIELDS = set(
    "entrypoint runtimeEnvYAML jobId backoffLimit activeDeadlineSeconds ttlSecondsAfterFinished "
    "shutdownAfterJobFinishes rayClusterSpec submissionMode submitterPodTemplate submitterConfig "
    "entrypointNumCpus entrypointNumGpus entrypointResources suspend metadata".split()
)
SERVICE_FIELDS = set("serveConfigV2 rayClusterConfig serveService upgradeStrategy".split())
HEAD_FIELDS = set("rayStartParams template serviceType headService enableIngress".split())
WORKER_FIELDS = set(
    "groupName replicas minReplicas maxReplicas numOfHosts rayStartParams template "
    "scaleStrategy idleTimeoutSeconds suspend".split()
)
DASHBOARD_PORT = 8265


def test_the_submitter_reaches_the_dashboard_and_nobody_else_does():
    assert HEAD["rayStartParams"]["dashboard-host"] == "0.0.0.0"
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert POLICY["spec"]["policyTypes"] == ["Ingress"]
    inside, dashboard, metrics = POLICY["spec"]["ingress"]
    own = {"podSelector": POLICY["spec"]["podSelector"]}
    assert inside == {"from": [own]}
    assert [port["port"] for port in dashboard["ports"]] == [DASHBOARD_PORT]
    assert [port["port"] for port in metrics["ports"]] == [METRICS_PORT]
    assert "app.kubernetes.io/name" in metrics["from"][0]["podSelector"]["matchLabels"]
    submitter, operator = dashboard["from"]
    # The submitter's Kubernetes job has the name of the RayJob.
    assert submitter == {"podSelector": {"matchLabels": {"job-name": JOB["metadata"]["name"]}}}
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        (JOB["spec"], JOB_FIELDS),
        (SERVICE["spec"], SERVICE_FIELDS),
        *((cluster, CLUSTER_FIELDS) for cluster in (CLUSTER, SERVING)),
        *((cluster["headGroupSpec"], HEAD_FIELDS) for cluster in (CLUSTER, SERVING)),
        *((group, WORKER_FIELDS) for c in (CLUSTER, SERVING) for group in c["workerGroupSpecs"]),
    ],
)
def test_there_is_no_field_that_kuberay_does_not_have(spec, fields):
    assert spec.keys() <= fields


def test_a_failed_job_is_tried_again_with_the_code_of_the_image():
    assert JOB["spec"]["backoffLimit"] >= 1
    assert "runtimeEnvYAML" not in JOB["spec"], "replaced nodes would fetch newer code"
    assert CLUSTER["workerGroupSpecs"][0]["replicas"] == WORKERS[0]["minReplicas"]


def test_the_server_scales_its_nodes():
    assert SERVING["enableInTreeAutoscaling"] is True
    (group,) = SERVING["workerGroupSpecs"]
    assert group["maxReplicas"] > group["minReplicas"]
    assert SERVING["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("group", GROUPS)
def test_every_pod_can_write_the_volume_caches_downloads_there_and_shows_its_metrics(group):
    spec = group["template"]["spec"]
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"] == IMAGE_USER
    container = spec["containers"][0]
    assert {"name": "HF_HOME", "value": "/shared/huggingface"} in container["env"]
    assert METRICS_PORT in [port["containerPort"] for port in container["ports"]]


@pytest.mark.parametrize("group", [HEAD, *WORKERS])
def test_every_pod_is_covered_by_the_policy_and_shares_the_folder(group):
    template = group["template"]
    wanted = POLICY["spec"]["podSelector"]["matchLabels"]
    assert wanted.items() <= template["metadata"]["labels"].items()
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    mounts = template["spec"]["containers"][0]["volumeMounts"]
    assert {mount["name"] for mount in mounts} <= volumes
    assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    words = shlex.split(JOB["spec"]["entrypoint"])
    run_dir = words[words.index("--run-dir") + 1]
    assert any(Path(mount["mountPath"]) in Path(run_dir).parents for mount in mounts)


def test_the_ray_version_is_the_pinned_one_and_has_token_authentication():
    assert CLUSTER["rayVersion"] == ray.__version__
    assert tuple(map(int, CLUSTER["rayVersion"].split("."))) >= (2, 52)


def test_the_entrypoint_is_a_command_line_that_the_program_takes():
    script, recipe, *options = shlex.split(JOB["spec"]["entrypoint"])
    assert script == "joint-grpo"
    config = tyro.cli(type(RECIPES[recipe]()), args=options, default=RECIPES[recipe]())
    assert config.run_dir == "/shared/runs/one"
    assert config.cluster.num_nodes == 1 + sum(group["replicas"] for group in WORKERS)


def test_pods_and_policy_follow_kubernetes_schemas():
    """KubeRay's own fields are not checked, because no package has their schemas."""
    validate = pytest.importorskip("kubernetes_validate").validate
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}} | group["template"]
        for group in GROUPS
    ]
    for manifest in (POLICY, *pods):
        validate(manifest, "1.30", strict=True)
