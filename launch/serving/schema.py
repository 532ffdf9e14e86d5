"""What is read of OpenAI's chat completion requests, as types.

Fields that would change the answer, if they were supported, are accepted with the value that
changes nothing; their description says which one that is.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """No conversions, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """Address of an image."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict):
    """Image of a message; as a string, the address is refused with a message of its own."""

    type: Literal["image_url"]
    image_url: ImageUrl | str


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]

Nothing = Annotated[list[Any], Field(max_length=0)] | None
"""An empty list, or null."""


class UserMessage(Strict):
    """A question, with or without an image."""

    role: Literal["user"]
    content: str | list[Part] | None
    name: str | None = None


class InstructionMessage(Strict):
    """What goes before the question; an image in it is refused with a message of its own."""

    role: Literal["system", "developer"]
    content: str | list[Part] | None
    name: str | None = None


class AssistantMessage(Strict):
    """An earlier answer, as clients send it back; it is not read."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: Nothing = None
    tool_calls: Nothing = None
    audio: None = None
    function_call: None = None


Message = Annotated[
    UserMessage | InstructionMessage | AssistantMessage, Field(discriminator="role")
]


class StreamOptions(Strict):
    """What a stream contains beyond the text; the usage is always sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextFormat(Strict):
    """Plain text."""

    type: Literal["text"]


class ChatRequest(Strict):
    """The body of POST /v1/chat/completions.

    Sampling parameters, hints and names are accepted and have no effect: decoding is greedy, and
    the model does not reason.
    """

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    latency_budget_ms: float | None = None
    price: float | None = Field(None, ge=0)

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None

    n: int | None = Field(None, ge=1, le=1, description="1")
    stop: Nothing = Field(None, description="null or []")
    tools: Nothing = Field(None, description="null or []")
    tool_choice: Literal["none", "auto"] | None = Field(None, description='"none" or "auto"')
    functions: Nothing = Field(None, description="null or []")
    function_call: Literal["none", "auto"] | None = Field(None, description='"none" or "auto"')
    response_format: TextFormat | None = Field(None, description='{"type": "text"}')
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = Field(
        None, description="null or {}"
    )
    logprobs: Literal[False] | None = Field(None, description="false")
    top_logprobs: int | None = Field(None, ge=0, le=0, description="null or 0")
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = Field(
        None, description='["text"]'
    )
    audio: None = Field(None, description="null")
    prediction: None = Field(None, description="null")
    web_search_options: None = Field(None, description="null")
    store: Literal[False] | None = Field(None, description="false")


def neutral_value(field: str) -> str | None:
    """The value with which a field is accepted, as text; None if others are, too."""
    known = ChatRequest.model_fields.get(field)
    return None if known is None else known.description
