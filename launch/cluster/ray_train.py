"""Ray for the programs that train on Ray Train's workers."""

from __future__ import annotations

import logging
import os
import secrets

import ray


def start_local_ray() -> None:
    """Starts Ray on this machine, with an auth token that lives as long as this process.

    Without the token in the environment Ray would leave one in the home folder, which breaks later
    `ray job submit` calls.
    """
    if not os.environ.keys() & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ray.init(include_dashboard=False, runtime_env={"worker_process_setup_hook": set_up_worker})


def set_up_worker() -> None:
    """Setup hook of every process of a local Ray.

    An actor of Ray Train asks for its controller's state: without RAY_ADDRESS it would ask any Ray
    of this machine, and where there is no dashboard it warns every second that nobody answers.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    name = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(name).setLevel(logging.ERROR)


def start_ray(num_workers: int, use_gpu: bool) -> None:
    """Joins the cluster that RAY_ADDRESS names, else starts a local one; checks its resources.

    Raises:
        ValueError: fewer CPUs or GPUs than workers, for which Ray would wait forever.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it prints every line twice
        if os.environ.get("RAY_ADDRESS"):
            ray.init()
        else:
            start_local_ray()
    kind = "GPU" if use_gpu else "CPU"
    available = int(ray.cluster_resources().get(kind, 0))
    if available < num_workers:
        raise ValueError(
            f"--num_workers {num_workers} needs as many {kind}s and the cluster has {available}: "
            "use fewer workers, or 0 for none"
        )
