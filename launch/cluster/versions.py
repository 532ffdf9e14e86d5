"""Versions of Python, of the packages that results depend on, and of the project itself."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (*("torch", "transformers", "ray", "numpy", "gymnasium", "safetensors", "tokenizers"),)

ROOT = Path(__file__).resolve().parents[2]
"""The top level of the project's repository, where there is one."""

REVISION_VARIABLE = "LBG_REVISION"
"""Environment variable that names the commit where there is no repository."""

UNKNOWN = "unknown"


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
    """The project's commit; `unknown` where neither a repository nor LBG_REVISION names it.

    Images and Ray jobs have no repository, so that LBG_REVISION comes first. A repository around
    ours, such as one that holds a virtual environment, is ignored.
    """
    if stated := os.environ.get(REVISION_VARIABLE, ""):
        return stated
    top_level, _, revision = _git("rev-parse", "--show-toplevel", "HEAD").strip().partition("\n")
    return revision if revision and Path(top_level).resolve() == ROOT else UNKNOWN


def differences(saved: Mapping[str, Any]) -> str:
    """How a run's revision, packages and Python differ from the present ones; empty if nowhere.

    Args:
        saved: a checkpoint's state, with `git_revision`, `packages` and `python`.
    """
    now = {"revision": git_revision(), "Python": python_version(), **package_versions()}
    then = {"revision": saved["git_revision"], "Python": saved["python"], **saved["packages"]}
    return ", ".join(
        f"{name} {then[name][:12]} (now {now[name][:12]})"
        for name in now
        if name in then and then[name] != now[name] and UNKNOWN not in (then[name], now[name])
    )


def _git(*arguments: str) -> str:
    """The output of a git command at the project's top level; empty if it fails."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
