"""Chat completion requests as questions: one prompt, and at most one image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from launch.serving.errors import ApiError, invalid
from launch.serving.images import image_bytes, size_within
from launch.serving.limits import Limits
from launch.serving.schema import (
    AssistantMessage,
    ChatRequest,
    ImagePart,
    InstructionMessage,
    Message,
    Part,
    TextPart,
    UserMessage,
    neutral_value,
)

CAPTION_PROMPT = "Describe this image."
"""The prompt of an image without text."""

CONTENT = (
    'send a string, or a list of parts, {"type": "text", "text": ...} and {"type": "image_url", '
    '"image_url": {"url": "data:image/png;base64,..."}}'
)


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
    text, image = _asked(request.messages)
    if len(text) > limits.prompt_chars:
        message = (
            f"the question has {len(text)} characters: send at most {limits.prompt_chars} of them"
        )
        raise invalid(message, "messages", code="string_above_max_length")
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
    found: list[Any] = error.errors(include_url=False, include_context=False, include_input=False)
    # Of what a content could have been, the kind that it resembles most.
    first = max(found, key=lambda one: (one["loc"][:4] == found[0]["loc"][:4], len(one["loc"])))
    if first["type"] == "json_invalid":
        return invalid("the body is not valid JSON", code="invalid_json")
    names = [str(part) for part in first["loc"]]
    if names and (neutral := neutral_value(names[0])):
        message = f"{names[0]} is supported only as {neutral}: leave it out"
        return invalid(message, names[0], code="unsupported_parameter")
    if first["type"].startswith("union_tag") and len(names) == 2:
        message = "a message has one of the roles system, developer, user and assistant"
        return invalid(message, f"{'.'.join(names)}.role", code="unsupported_value")
    if names[:1] == ["messages"] and len(names) > 3:
        del names[2]  # the role, by which the kind of message was chosen
        if names[2] == "content":
            part = next((name for name in names[3:] if name.isdigit()), None)
            path = ".".join(names[:3] if part is None else [*names[:3], part])
            if first["type"] == "extra_forbidden":
                path = f"{path}.{names[-1]}"[:200]
                message = f"{path} is not supported: leave it out"
                return invalid(message, path, code="unsupported_parameter")
            return invalid(f"{path} cannot be read: {CONTENT}", path)
    path = ".".join(names)[:200] or None
    if first["type"] == "extra_forbidden":
        message = f"{path} is not supported: leave it out"
        return invalid(message, path, code="unsupported_parameter")
    return invalid(f"{path or 'the body'}: {first['msg']}", path)


def _asked(messages: Sequence[Message]) -> tuple[str, bytes | None]:
    """The prompt, and the encoded image if there is one.

    The last user message is the question, instructions go before it, and it is about the last image
    of all user messages. Earlier questions and answers are not read.
    """
    if not messages or isinstance(messages[-1], AssistantMessage):
        message = "the last message is not the user's: send the question as the last one"
        raise invalid(message, "messages")
    asked = [n for n, message in enumerate(messages) if isinstance(message, UserMessage)]
    if not asked:
        raise invalid("there is no message of the role user: send the question", "messages")
    contents = {number: _parts_of(messages[number], number) for number in asked}
    told = [
        *(_text_of(m, n) for n, m in enumerate(messages) if isinstance(m, InstructionMessage)),
        "\n".join(part.text for part in contents[asked[-1]] if isinstance(part, TextPart)),
    ]
    text, url = "\n".join(part for part in told if part.strip()), None
    for number in asked:
        urls = [_url_of(part, number) for part in contents[number] if isinstance(part, ImagePart)]
        if len(urls) > 1:
            raise invalid(f"{len(urls)} images in one message: send at most one", "messages")
        url = urls[0] if urls else url
    if url is None and not told[-1].strip():
        raise invalid("the question is empty", "messages")
    return text or CAPTION_PROMPT, None if url is None else image_bytes(url, "messages")


def _parts_of(message: Message, number: int) -> Sequence[Part]:
    path = f"messages.{number}.content"
    if message.content is None:
        raise invalid(f"{path} is null: {CONTENT}", path)
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    return message.content


def _text_of(message: InstructionMessage, number: int) -> str:
    parts = _parts_of(message, number)
    if any(isinstance(part, ImagePart) for part in parts):
        path = f"messages.{number}.content"
        raise invalid(f"{path} has an image: send it in a message of the role user", path)
    return "\n".join(part.text for part in parts if isinstance(part, TextPart))


def _url_of(part: ImagePart, number: int) -> str:
    if isinstance(part.image_url, str):
        path = f"messages.{number}.content"
        message = f'image_url in {path} is a string: send {{"url": "data:image/png;base64,..."}}'
        raise invalid(message, path)
    return part.image_url.url


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
