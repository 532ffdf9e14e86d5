"""Which pooled features of the global crop tell the tier that a question needs.

    python launch/profile_knobs.py OUT --split train --num-samples 1500 \
        --configurations low-p1-k8-b16 medium-p1-k8-b16 high-p1-k8-b16
    python -m studies.image_feature OUT/rows.jsonl

Area under the curve of a logistic regression on the prompt's mean embedding and one way of pooling,
five-fold over the profiled samples, for two questions: the low tier scores as much as the high one,
and the high tier scores more than the medium one.

Shapes: S samples, P patches, E encoder width.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from envs.tasks.registry import build_tasks
from launch.analysis.knob_effects import configuration_name
from rollout.build import WorkerConfig, build_executor
from rollout.executor import MolmoEExecutor

TIERS = ("low-p1-k8-b16", "medium-p1-k8-b16", "high-p1-k8-b16")
REGULARISATION = 0.01


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
    chances = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    return float(roc_auc_score(labels, chances[:, 1]))


def scores_of(row: dict[str, Any]) -> list[float]:
    """Scores of one sample at the three tiers, everything else in full."""
    by_name = {configuration_name(record): record["score"] for record in row["records"]}
    return [by_name[name] for name in TIERS]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    rows = [json.loads(line) for line in parser.parse_args().rows.read_text().splitlines()]
    executor, tasks = build_executor(WorkerConfig(device="cpu")), build_tasks()
    language, pooled = [], []
    for row in rows:
        sample = tasks.sample(row["split"], row["index"])
        language.append(executor.language_feature(sample))
        overview = executor.preprocessor.overview(sample.image)
        pooled.append(None if overview is None else poolings(executor, overview.crop))
    executor.timeline.take()
    scores_S3 = np.array([scores_of(row) for row in rows])
    questions = (scores_S3[:, 0] >= scores_S3[:, 2], scores_S3[:, 2] > scores_S3[:, 1])
    language_SD = np.stack(language)
    example = next(found for found in pooled if found)
    print(f"{len(rows)} samples; low tier suffices, high tier gains")
    for name, inputs in [("prompt alone", None), *((name, name) for name in example)]:
        features = language_SD
        if inputs:
            nothing = np.zeros_like(example[name])
            image = np.stack([found[name] if found else nothing for found in pooled])
            features = np.concatenate([language_SD, image], axis=1)
        print(f"{name:26s} {area(features, questions[0]):.3f} {area(features, questions[1]):.3f}")


if __name__ == "__main__":
    main()
