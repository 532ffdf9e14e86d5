"""Runs a benchmark or study with --quick, in this process."""

import importlib
import sys

import pytest


def run_quick(module: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Calls the program's `main` as the command line would, and expects exit code 0."""
    monkeypatch.setattr(sys, "argv", [module, "--quick", *arguments])
    assert importlib.import_module(module).main() == 0
