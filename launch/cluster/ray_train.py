"""Ray for the programs that train on Ray Train's workers."""

from __future__ import annotations

import logging
import os

import ray

from launch.cluster.connection import connect


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
        is_local = not os.environ.get("RAY_ADDRESS")
        hook = {"worker_process_setup_hook": set_up_worker} if is_local else None
        connect(log_to_driver=True, runtime_env=hook)
    kind = "GPU" if use_gpu else "CPU"
    available = int(ray.cluster_resources().get(kind, 0))
    if available < num_workers:
        raise ValueError(
            f"--num_workers {num_workers} needs as many {kind}s and the cluster has {available}: "
            "use fewer workers, or 0 for none"
        )
