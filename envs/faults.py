"""Where in the code an error comes from, for messages that have no traceback."""

from __future__ import annotations

import traceback
from pathlib import Path


def code_line(error: BaseException) -> str:
    """The line of code that raised an error, as `FILE line N`; of several, the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else "no line"
