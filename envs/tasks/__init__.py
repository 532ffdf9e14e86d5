"""Tasks: each loads, prompts and scores; the default mixture draws from all of them."""

from envs.tasks.mixture import WEIGHTS, Mixture, load_tasks
from envs.tasks.task import SPLITS, DataError, Question, Scene, Task

__all__ = ["SPLITS", "WEIGHTS", "DataError", "Mixture", "Question", "Scene", "Task", "load_tasks"]
