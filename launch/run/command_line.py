"""The command line of joint GRPO: recipes, and the options of one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence

import tyro
from rich.console import Console

from envs.checks import nearest
from envs.tasks.registry import check_names
from launch.cluster.config import DoctorConfig
from launch.cluster.console import check_local_paths
from launch.cluster.usage import options_from
from launch.run.recipes import RECIPES, JointGRPOConfig, to_json
from launch.storage.inputs import check_file
from rollout.model_name import check_model_name


def doctor_configuration(arguments: Sequence[str]) -> DoctorConfig:
    """What `doctor` is asked to check; `arguments` follow its name."""
    config = options_from(
        lambda: tyro.cli(DoctorConfig, args=arguments, prog="joint_grpo.py doctor")
    )
    check_local_paths(config)
    return config


def configuration(arguments: Sequence[str], description: str | None) -> JointGRPOConfig:
    """The configuration that a command line asks for.

    Args:
        arguments: recipe and options; without a recipe, those of `embedded`.
        description: what the program does, for --help.

    Raises:
        ValueError: there is no such recipe or option, or a value is unusable.
    """
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in RECIPES:
        known = [*RECIPES, "doctor"]
        close = nearest(arguments[0], known)
        hint = f"did you mean {close}?" if close else f"use one of {', '.join(known)}"
        raise ValueError(f"there is no recipe or command {arguments[0]!r}: {hint}")
    if not arguments or arguments[0] not in (*RECIPES, "-h", "--help"):
        arguments = ["embedded", *arguments]
    recipes = {name: (inspect.getdoc(recipe) or "", recipe()) for name, recipe in RECIPES.items()}
    config = options_from(
        lambda: tyro.extras.overridable_config_cli(
            recipes, args=arguments, prog="joint_grpo.py", description=description
        )
    )
    check_local_paths(config)
    check_inputs(config)
    return config


def check_inputs(config: JointGRPOConfig) -> None:
    """Raises ValueError for names that are unknown and files that do not exist."""
    worker = config.worker
    check_names(worker.tasks, worker.data)
    if worker.model != "embedded":
        check_model_name(worker.model)
    check_file(config.warm_start_profile, "--warm-start-profile")
    check_file(config.comparison_profile, "--comparison-profile")
    check_file(config.simulated_latency, "--simulated-latency")
    check_file(worker.importance, "--worker.importance")
    for task, path in worker.importance_by_task.items():
        check_file(path, f"--worker.importance-by-task {task}")


def print_configuration(config: JointGRPOConfig) -> int:
    """Prints the whole configuration as JSON; returns the exit code."""
    Console().print_json(json.dumps(to_json(config)))
    return 0
