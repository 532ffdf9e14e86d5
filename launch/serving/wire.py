"""What goes over the connection between gateway and replica.

A question is a line of JSON, and after it the bytes of the image. The answer is a line of JSON per
report: a piece of text, the result, or an error.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pydantic

from launch.serving.episodes import EpisodeRequest, EpisodeResult
from launch.serving.errors import ApiError

PATH = "/episode"
"""Where a replica takes questions."""

KEY_HEADER = "X-Replica-Key"
"""Header with the key of the server that a replica belongs to."""

Report = str | EpisodeResult | ApiError
"""A piece of text, or the end of an episode. The first, empty piece says that it has begun."""

REQUESTS = pydantic.TypeAdapter(EpisodeRequest)
RESULTS = pydantic.TypeAdapter(EpisodeResult)


def encode_request(request: EpisodeRequest) -> bytes:
    """The body of a question."""
    line = REQUESTS.dump_json(replace(request, image=None))
    return line + b"\n" + (request.image or b"")


def decode_request(body: bytes) -> EpisodeRequest:
    """The question in a body; raises ValueError if it is none."""
    line, _, image = body.partition(b"\n")
    return replace(REQUESTS.validate_json(line), image=image or None)


def encode_report(report: Report) -> bytes:
    """The line of a report."""
    if isinstance(report, str):
        content: dict[str, Any] = {"text": report}
    elif isinstance(report, EpisodeResult):
        content = {"result": RESULTS.dump_python(report, mode="json")}
    else:
        content = {"error": _error_fields(report)}
    return json.dumps(content).encode() + b"\n"


def decode_report(line: bytes) -> Report:
    """The report of a line; raises ValueError if it is none."""
    ((kind, content),) = json.loads(line).items()
    if kind == "text":
        return content
    if kind == "result":
        return RESULTS.validate_python(content)
    return ApiError(**content)


def _error_fields(error: ApiError) -> dict[str, Any]:
    names = ("status", "message", "code", "param", "retry_after_s")
    return {name: getattr(error, name) for name in names}
