"""Finds users' mistakes that can be found without a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from envs.tasks.registry import check_names
from launch.cluster.waiting import telling
from launch.run.recipes import JointGRPOConfig
from launch.tracking.names import check_trackers
from rollout.block_skipping import BlockImportance
from rollout.build import model_source
from rollout.executor import check_knobs_fit
from rollout.image_feature import image_dim
from rollout.molmoe.checkpoint import check_shards
from rollout.molmoe.config import resolve_config
from rollout.profiling.conversion import check_held_out, places_in
from rollout.profiling.profile_table import ProfileTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What was read for the checks and is needed afterwards.

    Attributes:
        widths: d_model, and length of the image feature (0 if stage 1 does not see the image).
        warm_start: the profile that the run starts from, in its own milliseconds.
        comparison: the profile whose tables the run is compared with, in its own milliseconds.
    """

    widths: tuple[int, int]
    warm_start: ProfileTable | None = None
    comparison: ProfileTable | None = None

    @classmethod
    def of(cls, config: JointGRPOConfig) -> Preflight:
        """Checks trackers, tasks, profiles, the model's files and the importance scores.

        Raises:
            ValueError: one of them is unusable; says which and what to do.
        """
        worker = config.worker
        check_trackers(config.trackers)
        check_names(worker.tasks, worker.data)
        warm_start = comparison = None
        if config.warm_start_profile is not None:
            warm_start = ProfileTable.load(config.warm_start_profile)
            name = str(config.warm_start_profile)
            check_held_out(warm_start, config.evaluation.indices, name)
        compared = config.comparison_profile or config.warm_start_profile
        if compared is not None:
            comparison = ProfileTable.load(compared)
            places_in("validation", comparison, str(compared))
        with telling(f"the configuration of {worker.model}"):
            model = resolve_config(model_source(worker))
        check_shards(Path(model_source(worker)))
        check_knobs_fit(model)
        for path in filter(None, (worker.importance, *worker.importance_by_task.values())):
            BlockImportance.from_file(path, model.n_layers)
        widths = model.d_model, image_dim(model) if config.sees_image else 0
        return cls(widths=widths, warm_start=warm_start, comparison=comparison)
