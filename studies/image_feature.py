"""Which pooled features of the global crop predict the tier that a question needs.

    python launch/profile_knobs.py OUT --split train --num-samples 1500 \
        --configurations low-p1-k8-b16 medium-p1-k8-b16 high-p1-k8-b16
    python -m studies.image_feature OUT/rows.jsonl

Area under the curve of a logistic regression on the prompt's mean embedding and one way of pooling,
five-fold over the profiled samples, for two questions: the low tier scores as much as the high one,
and the high tier scores more than the medium one. `--quick` takes samples of the shipped profile.

Shapes: S samples, P patches, E encoder width.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.options import needed, read_options
from envs.spec import Knobs, Sample, Tier, all_knobs
from envs.tasks.registry import build_tasks
from launch.analysis.knob_effects import configuration_name
from launch.cluster.console import one_clear_error
from rollout.build import build_executor
from rollout.executor import MolmoEExecutor
from rollout.worker_config import WorkerConfig
from studies.known_outcomes import Outcomes

FULL = [Knobs(tier=tier, position=1, top_k=8, num_blocks=16) for tier in Tier]
REGULARISATION = 0.01
NUM_QUICK = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatureConfig:
    """One study.

    Attributes:
        quick: samples of the shipped profile.
        rows: file rows.jsonl of a profile with the full configuration at all tiers.
    """

    quick: bool = False
    rows: Annotated[Path | None, tyro.conf.Positional] = None


QUICK = ImageFeatureConfig(quick=True)


def poolings(executor: MolmoEExecutor, crop_1PX: torch.Tensor) -> dict[str, np.ndarray]:
    """Candidates [E] or [2 E] by name, from one crop."""
    vit, width = executor.model.vision.encoder.image_vit, executor.model.config.vision.dim
    first_PE, second_PE = vit(crop_1PX)[0].split(width, dim=-1)
    found = {}
    for name, layer_PE in (("first", first_PE), ("second", second_PE)):
        found[f"mean {name}"] = layer_PE.mean(0)
        found[f"std {name}"] = layer_PE.std(0)
        found[f"max {name}"] = layer_PE.amax(0)
    found["mean first, std first"] = torch.cat([found["mean first"], found["std first"]])
    found["mean first, max first"] = torch.cat([found["mean first"], found["max first"]])
    found["mean first, mean second"] = torch.cat([found["mean first"], found["mean second"]])
    return {name: value.numpy() for name, value in found.items()}


def area(features: np.ndarray, labels: np.ndarray) -> float:
    """Five-fold area under the curve."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=500))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    chances = np.asarray(
        cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    )
    return float(roc_auc_score(labels, chances[:, 1]))


def scores_of(row: dict[str, Any]) -> list[float]:
    """Scores of one sample at the three tiers, everything else in full."""
    by_name = {configuration_name(record): record["score"] for record in row["records"]}
    return [by_name[str(knobs)] for knobs in FULL]


def profiled(path: Path) -> tuple[list[Sample], np.ndarray]:
    """Samples of a profile, and their scores [S, 3] at the three tiers."""
    rows, tasks = [json.loads(line) for line in path.read_text().splitlines()], build_tasks()
    samples = [tasks.sample(row["split"], row["index"]) for row in rows]
    return samples, np.array([scores_of(row) for row in rows])


def shipped() -> tuple[list[Sample], np.ndarray]:
    """The same of the shipped profile, for a quick look."""
    outcomes, every = Outcomes.shipped(range(NUM_QUICK)), list(all_knobs())
    columns = [every.index(knobs) for knobs in FULL]
    return outcomes.samples(), outcomes.scores_SC[:, columns]


@torch.no_grad()
def main() -> int:
    """Prints both areas for every way of pooling."""
    options = read_options(QUICK, __doc__)
    if options.quick and options.rows is None:
        samples, scores_S3 = shipped()
    else:
        samples, scores_S3 = profiled(needed(options.rows, "ROWS, a profile's rows.jsonl,"))
    executor, language, pooled = build_executor(WorkerConfig(device="cpu")), [], []
    for sample in samples:
        language.append(executor.features(sample, None)[0].language)
        overview = executor.preprocessor.overview(sample.image)
        pooled.append(None if overview is None else poolings(executor, overview.crop))
    questions = (scores_S3[:, 0] >= scores_S3[:, 2], scores_S3[:, 2] > scores_S3[:, 1])
    language_SD = np.stack(language)
    example = next(found for found in pooled if found)
    print(f"{len(samples)} samples; low tier suffices, high tier gains")
    for name, inputs in [("prompt alone", None), *((name, name) for name in example)]:
        features = language_SD
        if inputs is not None:
            nothing = np.zeros_like(example[inputs])
            image = np.stack([found[inputs] if found else nothing for found in pooled])
            features = np.concatenate([language_SD, image], axis=1)
        print(f"{name:26s} {area(features, questions[0]):.3f} {area(features, questions[1]):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
