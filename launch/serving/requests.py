"""Chat completion requests: what is read of OpenAI's schema, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from launch.serving.errors import ApiError, invalid
from launch.serving.images import image_bytes, size_within
from launch.serving.limits import Limits


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
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Strict):
    """Image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class UserMessage(Strict):
    """The only kind of message that the frozen model was trained on."""

    role: Literal["user"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(Strict):
    """What a stream contains beyond the text; the usage is always sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(Strict):
    """The body of POST /v1/chat/completions.

    Sampling parameters are accepted and have no effect, because decoding is greedy. Unsupported
    parameters that would change the answer are refused.
    """

    model: str
    messages: list[UserMessage]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    latency_budget_ms: float | None = None
    price: float | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = None
    user: str | None = None
    store: Literal[False] | None = None
    logprobs: Literal[False] | None = None
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a replica is asked.

    Attributes:
        model: name of the policy, or of a configuration.
        text: the prompt.
        image: the encoded image, None for a question without one.
        image_size: its width and height in pixels, by its header.
        budget_ms: latency budget in ms, from the arrival of the request to the end of the answer.
        price: price of time; None for the policy's own.
        max_new_tokens: maximum length of the answer in tokens, None for the server's.
        is_streamed: whether the answer is sent while it is decoded.
    """

    model: str
    text: str
    image: bytes | None
    image_size: tuple[int, int] | None
    budget_ms: float
    price: float | None
    max_new_tokens: int | None
    is_streamed: bool


def parse_question(body: bytes, limits: Limits, default_budget_ms: float) -> Question:
    """Reads the body of a request.

    Raises:
        ApiError: with status 400, naming the field at fault.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise _explained(error) from None
    if len(request.messages) != 1:
        message = f"{len(request.messages)} messages: send exactly one, with the question"
        raise invalid(message, "messages")
    text, image = _content(request.messages[0].content)
    _check_text(text, limits)
    return Question(
        model=request.model,
        text=text,
        image=image,
        image_size=None if image is None else size_within(image, limits.megapixels),
        budget_ms=_budget_ms(request.latency_budget_ms, limits, default_budget_ms),
        price=request.price,
        max_new_tokens=request.max_completion_tokens or request.max_tokens,
        is_streamed=bool(request.stream),
    )


def _explained(error: pydantic.ValidationError) -> ApiError:
    """The first mistake that validation found."""
    first: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return invalid("the body is not valid JSON", code="invalid_json")
    names = [str(part) for part in first["loc"]]
    path = ".".join(names)[:200] or None
    if first["type"] == "extra_forbidden":
        message = f"{path} is not supported: leave it out"
        return invalid(message, path, code="unsupported_parameter")
    if names and names[-1] == "role":
        message = "only messages of the role user are supported: put everything into one question"
        return invalid(message, path, code="unsupported_value")
    return invalid(f"{path or 'the body'}: {first['msg']}", path)


def _content(content: str | list[TextPart | ImagePart]) -> tuple[str, bytes | None]:
    """The text, and the encoded image if there is one."""
    if isinstance(content, str):
        return content, None
    texts = [part.text for part in content if isinstance(part, TextPart)]
    images = [part.image_url.url for part in content if isinstance(part, ImagePart)]
    if len(images) > 1:
        raise invalid(f"{len(images)} images: send at most one", "messages")
    image = image_bytes(images[0], "messages") if images else None
    return "\n".join(texts), image


def _check_text(text: str, limits: Limits) -> None:
    if not text.strip():
        raise invalid("the question is empty", "messages")
    if len(text) > limits.prompt_chars:
        message = (
            f"the question has {len(text)} characters: send at most {limits.prompt_chars} of them"
        )
        raise invalid(message, "messages", code="string_above_max_length")


def _budget_ms(budget_ms: float | None, limits: Limits, default_ms: float) -> float:
    if budget_ms is None:
        return default_ms
    if not (math.isfinite(budget_ms) and 0 < budget_ms <= limits.max_budget_ms):
        message = (
            f"latency_budget_ms is {budget_ms:g}: give more than 0 and at most "
            f"{limits.max_budget_ms:g} ms"
        )
        raise invalid(message, "latency_budget_ms")
    return budget_ms
