"""Answers one question, with or without an image, within a latency budget.

    python launch/generate.py --image PICTURE --prompt TEXT --budget-ms MS [--controller RUN]

The embedded model knows six small tasks (easy_vqa, digits, reading, counting, recall, chain), which
it tells apart by a prompt's first word; other questions get meaningless answers. It answers these
two prompts without an image, the first with 7, the second with lead:

    --prompt 'chain: 3 plus 4' --budget-ms 60
    --prompt 'recall: what metal of c4' --budget-ms 60
"""

import sys
from pathlib import Path

from launch.cluster.signals import stop_quietly

if __name__ == "__main__":
    stop_quietly()

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from tyro.conf import arg

from envs.checks import check_prompt, check_within
from envs.terms import Terms
from launch.cluster.console import (
    check_first,
    check_local_paths,
    logs_to_stderr,
    one_clear_error,
    printable,
)
from launch.cluster.usage import options_from
from launch.storage.inputs import check_file, check_run
from rollout.model_name import check_model_name
from rollout.worker_config import MAX_THREADS

# The model, and PyTorch with it, is imported only once the command line has been checked: the
# import takes seconds, and --help does not need it.


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerConfig:
    """Length of the answer and scope of the budget; by default those of the controller's run.

    Attributes:
        max_new_tokens: maximum length of the answer, in tokens; 16 without a run.
        prefill_only: whether the budget covers the prefill alone, without decoding.
    """

    max_new_tokens: Annotated[int | None, arg(metavar="INT")] = None
    prefill_only: Annotated[bool | None, arg(metavar="{True,False}")] = None

    def __post_init__(self) -> None:
        check_within(self, "max_new_tokens", low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The frozen model; settings that are left out are those of the controller's run.

    Attributes:
        model: `embedded`, a folder, or a hub id such as allenai/MolmoE-1B-0924; `embedded` without
            a run.
        dtype: dtype of the weights; auto without a run: bfloat16 on CUDA, float32 on the CPU.
        device: auto without a run: a GPU if there is one.
        num_threads: number of threads on a CPU; 1 without a run.
        importance: JSON file of block importance scores; those of the model without a run.
        executor: length of the answer, scope of the budget.
    """

    model: Annotated[str | None, arg(metavar="MODEL")] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"] | None, arg(metavar="{auto,float32,bfloat16}")
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, arg(metavar="{auto,cpu,cuda}")] = None
    num_threads: Annotated[int | None, arg(metavar="INT")] = None
    importance: Annotated[Path | None, arg(metavar="FILE")] = None
    executor: AnswerConfig = field(default_factory=AnswerConfig)

    def __post_init__(self) -> None:
        check_within(self, "num_threads", low=1, high=MAX_THREADS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """One question.

    Attributes:
        prompt: the question, starting with the style of its task if there is one.
        budget_ms: latency budget in ms.
        price: price of time: what the time of one full answer is worth, in right answers. At 0, any
            time within the budget is free. By default the one that the controller's run names.
        image: image file.
        controller: a run folder, whose newest intact checkpoint is used, or the folder of one
            checkpoint, as a path or URI. Without it, the controller that ships with the small
            model answers, or a fixed configuration if --worker names another model.
        json: prints one JSON object instead of text.
        worker: the frozen model.
    """

    prompt: Annotated[str, arg(metavar="TEXT")]
    budget_ms: Annotated[float, arg(metavar="MS")]
    price: Annotated[float | None, arg(metavar="FLOAT")] = None
    image: Annotated[Path | None, arg(metavar="PICTURE")] = None
    controller: Annotated[str | None, arg(metavar="RUN")] = None
    json: bool = False
    worker: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        check_prompt(self.prompt, "--prompt")
        Terms(budget_ms=self.budget_ms, price=self.price or 0.0)


def command_line() -> GenerateConfig:
    """Reads the command line."""
    config = options_from(lambda: tyro.cli(GenerateConfig, prog="generate.py", description=__doc__))
    check_local_paths(config)
    check_file(config.image, "--image")
    check_run(config.controller, "--controller")
    check_file(config.worker.importance, "--worker.importance")
    if config.worker.model not in (None, "embedded"):
        check_model_name(config.worker.model)
    return config


def answered(config: GenerateConfig) -> dict[str, Any]:
    """Loads model and controller, and answers."""
    progress = Console(stderr=True, soft_wrap=True, highlight=False)
    progress.print("loading PyTorch and the model ...")
    from launch.answering.answerer import Answerer, as_sample
    from launch.cluster.waiting import telling

    as_sample(config.prompt, config.image)  # finds an unusable image before the model is loaded
    stated = {name: value for name, value in asdict(config.worker).items() if value is not None}
    stated_executor = {k: v for k, v in stated.pop("executor").items() if v is not None}
    with telling("the model to load"):
        answerer = Answerer.load(
            config.controller,
            worker_settings=stated,
            executor_settings=stated_executor,
            say=progress.print,
        )
    return answerer.answer(
        config.prompt, budget_ms=config.budget_ms, price=config.price, image=config.image
    ).to_json()


def show(result: dict[str, Any]) -> None:
    """Prints the answer, the choices and the measured stages."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(printable(f"answer        {result['answer']}"), markup=False)
    choices = "  ".join(f"{name} {value}" for name, value in result["choices"].items())
    console.print(f"choices       {choices}")
    console.print(printable(f"decided by    {result['decided_by']}"), markup=False)
    for name, elapsed_ms in result["stages_ms"].items():
        console.print(f"{name:<16}{elapsed_ms:9.2f} ms")
    verdict = "within" if result["within_budget"] else "OVER"
    console.print(
        f"{'latency':<16}{result['latency_ms']:9.2f} ms, {verdict} the budget of "
        f"{result['budget_ms']:g} ms at a price of {result['price']:g} (plus "
        f"{result['host_ms']:.2f} ms of host work)"
    )
    console.print(f"{'wall clock':<16}{result['wall_ms']:9.2f} ms (latency: {result['clock']})")
    if not result["finished"]:
        console.print("the answer was cut off at the token limit")


def main() -> int:
    """Reads the command line and answers."""
    logs_to_stderr()
    config = command_line()
    result = answered(config)
    if config.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    check_first(command_line)
    sys.exit(one_clear_error(main))
