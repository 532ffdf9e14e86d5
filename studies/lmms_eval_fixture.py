"""Runs lmms-eval on local fixtures with the embedded model and prints the harness' tables.

    python -m studies.lmms_eval_fixture [FOLDER] [--run RUN] [--budget-ms MS]

Needs an environment that has both; see launch/answering/lmms_eval_model.py. Two tasks of the same
pictures: `fixture`, whose documents hold prompts that the embedded model knows, and a `docvqa_val`
of local parquet files, which is asked in Molmo's style (nonsense to the embedded model). `--quick`
writes the tasks and leaves the harness out.
"""

# lmms-eval lives in an environment of its own.
# pyright: reportMissingImports=false

import io
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.options import read_options
from launch.cluster.console import one_clear_error

NUM_DOCS = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class FixtureConfig:
    """One run of the harness.

    Attributes:
        quick: the tasks are written, and the harness is left out.
        folder: where to write; a temporary folder by default.
        run: a training run on the embedded model; a fixed configuration by default.
        budget_ms: latency budget in ms.
    """

    quick: bool = False
    folder: Annotated[Path | None, tyro.conf.Positional] = None
    run: Path | None = None
    budget_ms: float = 150.0


QUICK = FixtureConfig(quick=True)

CODE = """
def images(doc):
    return [doc["image"].convert("RGB")]


def scored(doc, results):
    return {"exact_match": float(results[0].strip() in doc["answers"])}
"""

TASK = """
task: {task}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.images
doc_to_text: question
doc_to_target: question
process_results: !function utils.scored
generation_kwargs:
  max_new_tokens: 16
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""

TASKS = ("fixture", "docvqa_val")


def write_tasks(folder: Path) -> None:
    """The first samples with an image of the embedded tasks, as parquet, and the tasks' files."""
    import datasets

    from envs.tasks import WEIGHTS
    from envs.tasks.registry import build_tasks

    mixture = build_tasks(tuple(WEIGHTS))
    samples = (mixture.sample("test", index) for index in range(10 * NUM_DOCS))
    rows = []
    for sample in samples:
        if sample.image is None:
            continue
        encoded = io.BytesIO()
        sample.image.save(encoded, format="PNG")
        image = {"bytes": encoded.getvalue(), "path": None}
        rows.append({"image": image, "question": sample.prompt, "answers": list(sample.answers)})
    data = datasets.Dataset.from_list(rows[:NUM_DOCS]).cast_column("image", datasets.Image())
    data.to_parquet(folder / "docs.parquet")
    (folder / "utils.py").write_text(CODE)
    for task in TASKS:
        (folder / f"{task}.yaml").write_text(TASK.format(task=task, data=folder / "docs.parquet"))


def main() -> int:
    """Writes the fixtures and runs the harness on them, without a network."""
    options = read_options(QUICK, __doc__)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="lmms_eval_"))
    write_tasks(folder)
    if options.quick:
        print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    else:
        run_harness(options, folder)
    return 0


def run_harness(options: FixtureConfig, folder: Path) -> None:
    """Prints the tables of the harness, and an answer."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import make_table

    from launch.answering.lmms_eval_model import MODEL_ID

    answers = folder / "answers.jsonl"
    results = simple_evaluate(
        model=MODEL_ID,
        model_args=f"budget_ms={options.budget_ms},answers={answers}"
        + (f",run={options.run}" if options.run else ""),
        tasks=list(TASKS),
        batch_size=1,
        task_manager=TaskManager(
            include_path=str(folder), include_defaults=False, model_name=MODEL_ID
        ),
    )
    print(make_table(results))
    print(f"{answers}, its first line:")
    print(answers.read_text().splitlines()[0])


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
