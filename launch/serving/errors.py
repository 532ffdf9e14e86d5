"""Errors as OpenAI's API has them: a status, and a body that says what is wrong."""

from __future__ import annotations

import math
from typing import Any


class ApiError(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP status.
        message: what is wrong, and what to do about it.
        code: short name of the error, for programs.
        param: field of the request that is at fault, if one is.
        retry_after_s: seconds after which the same request may succeed; None if it never will.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.param, self.retry_after_s = param, retry_after_s

    @property
    def kind(self) -> str:
        """OpenAI's type of the error."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def to_json(self) -> dict[str, Any]:
        """The body of the response."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        found = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after_s is not None:
            return found | {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}
        # The official clients repeat some requests unless they are told not to.
        is_final = self.status < 500 and self.status != 408
        return found | ({"x-should-retry": "false"} if is_final else {})


def invalid(message: str, param: str | None = None, *, code: str = "invalid_value") -> ApiError:
    """A request that has to be changed."""
    return ApiError(400, message, code=code, param=param)
