"""The class that lmms-eval loads for `--model latency_budget_molmoe`; see `lmms_eval_model`."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import (  # pyright: ignore[reportMissingImports]
    GenerationResult,
    TokenCounts,
)
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.model_utils.gen_metrics import (  # pyright: ignore[reportMissingImports]
    log_metrics,
)
from loguru import logger  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from launch.answering.answerer import Answer, Answerer
from launch.answering.lmms_eval_model import MODEL_ID, AnswerFile, ModelArguments, latency_metrics
from launch.answering.lmms_eval_prompts import PROMPTS, images_of, prompt_of


class LatencyBudgetMolmoE(lmms):
    """Answers the harness' questions one by one, each within the budget.

    Args:
        arguments: see `ModelArguments`.

    Raises:
        ValueError: an argument is unusable, or the harness runs in several processes.
    """

    is_simple = False

    def __init__(self, **arguments: Any) -> None:
        given = ModelArguments.parse(arguments)
        # The harness' cache of answers is kept by this name.
        self.model_version = f"{MODEL_ID} {given.run} {given.budget_ms:g} ms"
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("latencies are measured by one process per device: start one only")
        self.budget_ms = given.budget_ms
        self.answer_file = AnswerFile(given.answers) if given.answers else None
        self.answerer = Answerer.load(
            given.run,
            worker_settings=given.worker_settings(),
            say=functools.cache(logger.info),  # Each message once, not with every answer.
        )

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answers every request, in order; logs latencies and violations of all of them.

        Raises:
            ValueError: a question has a video or sound, or cannot be put to the model.
        """
        for task in sorted({request.args[4] for request in requests} - PROMPTS.keys()):
            logger.warning(f"Molmo has no style for {task}: it is asked in the harness' own words")
        results, answers = [], []
        for request in tqdm(requests, desc="Model Responding"):
            response, answer = self._answered(*request.args)
            counts = TokenCounts(output_tokens=answer.num_output_tokens)
            results.append(GenerationResult(text=response, token_counts=counts))
            answers.append(answer)
        if answers:
            self._log(answers)
        return results

    def _answered(
        self, context: str, doc_to_messages: Any, arguments: Any, doc_id: int, task: str, split: str
    ) -> tuple[str, Answer]:
        """The response to one request, given by these six arguments, and facts about its answer."""
        doc = self.task_dict[task][split][doc_id]
        messages = doc_to_messages(doc)
        prompt, images = prompt_of(task, doc, messages), images_of(messages)
        image = images[0] if images else None
        answer = self.answerer.answer(prompt.text, budget_ms=self.budget_ms, image=image)
        response = prompt.read(answer.text)
        if self.answer_file is not None:
            facts = {"task": task, "split": split, "doc_id": doc_id, "num_images": len(images)}
            self.answer_file.write({**facts, "prompt": prompt.text, "response": response}, answer)
        self.cache_hook.add_partial("generate_until", (context, arguments), response)
        return response, answer

    def _log(self, answers: Sequence[Answer]) -> None:
        seconds = sum(answer.latency_ms for answer in answers) / 1e3
        num_tokens = sum(answer.num_output_tokens for answer in answers)
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=num_tokens,
            avg_speed=num_tokens / seconds,
            additional_metrics=latency_metrics(answers),
        )

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Raises NotImplementedError: a budget is for an answer."""
        raise NotImplementedError("the model answers questions: choose generate_until tasks")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[Any]:
        """Raises NotImplementedError: the model was tuned on single questions."""
        raise NotImplementedError("the model answers single questions: choose generate_until tasks")
