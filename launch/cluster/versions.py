"""Versions of Python, of the packages that results depend on, and of the project itself."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (*("torch", "transformers", "ray", "numpy", "gymnasium", "safetensors", "tokenizers"),)


def package_versions() -> dict[str, str]:
    """By package; `absent` where it is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def python_version() -> str:
    """Such as 3.11.9."""
    return platform.python_version()


def git_revision() -> str:
    """The project's commit, or `unknown` where there is no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
