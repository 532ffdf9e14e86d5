"""Answers in OpenAI's form, whole or as server-sent events, with what was chosen and measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from envs.reward import is_violation
from launch.serving.episodes import EpisodeResult

DONE = "data: [DONE]\n\n"
"""The last event of a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A request that was answered.

    Attributes:
        result: the episode.
        budget_ms: the request's budget.
        waited_ms: time in the queue.
        total_ms: time from the request's arrival to the end of its answer.
        is_late: whether the wait had made it impossible to meet the budget, so that the cheapest
            configuration answered.
    """

    result: EpisodeResult
    budget_ms: float
    waited_ms: float
    total_ms: float
    is_late: bool

    @property
    def within_budget(self) -> bool:
        """Whether the answer came in time, the wait included."""
        return not is_violation(self.total_ms, self.budget_ms).item()

    def to_json(self) -> dict[str, Any]:
        """What OpenAI's schema has no place for: the field `latency_budget` of a response."""
        result = self.result
        return {
            "budget_ms": self.budget_ms,
            "price": result.price,
            "within_budget": self.within_budget,
            "total_ms": round(self.total_ms, 3),
            "waited_ms": round(self.waited_ms, 3),
            "latency_ms": round(result.latency_ms, 3),
            "wall_ms": round(result.wall_ms, 3),
            "stages_ms": {name: round(ms, 3) for name, ms in result.stages_ms.items()},
            "host_ms": round(result.host_ms, 3),
            "clock": result.clock,
            "choices": result.knobs.to_json(),
            "in_words": in_words(result, self.is_late),
            "decided_by": result.decided_by,
            "is_late": self.is_late,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """What all parts of a response have in common.

    Attributes:
        id: id of the response.
        created_s: when the request came, in seconds since the epoch.
        model: the requested model.
    """

    id: str
    created_s: int
    model: str

    def completion(self, served: Served) -> dict[str, Any]:
        """A whole response."""
        message = {"role": "assistant", "content": served.result.text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": _finish_reason(served.result)}
        return {
            **self._common("chat.completion"),
            "choices": [{**choice, "logprobs": None}],
            "usage": _usage(served.result),
            "latency_budget": served.to_json(),
        }

    def first_event(self) -> str:
        """The event that opens a stream."""
        return self._event({"role": "assistant", "content": ""}, None)

    def text_event(self, piece: str) -> str:
        """The event of a piece of text."""
        return self._event({"content": piece}, None)

    def last_event(self, served: Served) -> str:
        """The event that ends the text."""
        reason = _finish_reason(served.result)
        more = {"usage": _usage(served.result), "latency_budget": served.to_json()}
        return self._event({}, reason, **more)

    def _event(self, delta: dict[str, Any], finish_reason: str | None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return event({**self._common("chat.completion.chunk"), "choices": [choice], **more})

    def _common(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created_s, "model": self.model}


def event(content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


def in_words(result: EpisodeResult, is_late: bool) -> str:
    """What was chosen, as a sentence."""
    knobs, stages_ms = result.knobs, result.stages_ms
    crops = f"up to {knobs.tier.max_crops} crops of the image, " if _has_image(stages_ms) else ""
    sentence = (
        f"{crops}{knobs.top_k} of 8 experts from block {knobs.position + 1} on, "
        f"{knobs.num_blocks} of 16 blocks"
    )
    late = " (the cheapest configuration: no other could still meet the budget)" if is_late else ""
    return sentence[0].upper() + sentence[1:] + late


def _has_image(stages_ms: Any) -> bool:
    return stages_ms.get("vision_global", 0) > 0


def _finish_reason(result: EpisodeResult) -> str:
    return "stop" if result.finished else "length"


def _usage(result: EpisodeResult) -> dict[str, int]:
    prompt, completion = result.num_prompt_tokens, result.num_output_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
