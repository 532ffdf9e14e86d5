"""Refuses to mix the latencies of two runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class OneRuntime:
    """The runtime of the profiles read so far (see `rollout.runtime`)."""

    def __init__(self) -> None:
        self._runtime = ""
        self._file = ""

    def check(self, content: Mapping[str, Any], file: str) -> None:
        """Checks a profile against those before it.

        Args:
            content: of the JSON file; one that names no runtime is eager.
            file: name of the file.

        Raises:
            ValueError: its runtime differs from that of the first file; names both.
        """
        device = content.get("device")
        runtime = device.get("runtime", "eager") if isinstance(device, Mapping) else "eager"
        if not self._file:
            self._runtime, self._file = runtime, file
        if runtime != self._runtime:
            raise ValueError(
                f"{self._file} was measured with the runtime {self._runtime} and {file} with "
                f"{runtime}: their latencies are not comparable, put them into separate folders"
            )
