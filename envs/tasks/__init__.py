"""Tasks: each loads, prompts and scores; the default mixture draws from all of them."""

from envs.spec import DataError, Task
from envs.tasks.mixture import Mixture
from envs.tasks.registry import WEIGHTS, build_tasks, load_tasks
from envs.tasks.scene import SPLITS, Question, Scene

__all__ = [
    "SPLITS",
    "WEIGHTS",
    "DataError",
    "Mixture",
    "Question",
    "Scene",
    "Task",
    "build_tasks",
    "load_tasks",
]
