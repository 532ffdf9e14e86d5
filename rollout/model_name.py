"""Names of frozen models; a command line checks them without PyTorch."""

from __future__ import annotations

from pathlib import Path

from envs.checks import did_you_mean

MODEL_NAMES = ("embedded", "allenai/MolmoE-1B-0924")
"""What a model can be called without a folder of one's own."""


def check_model_name(source: str | Path) -> None:
    """Raises ValueError unless this is a folder, or looks like a hub id."""
    text = str(source)
    may_be_hub_id = text.count("/") == 1 and not text.startswith(("/", "."))
    if not Path(source).is_dir() and not may_be_hub_id:
        raise ValueError(
            f"{source} is not a folder: give a MolmoE folder or a hub id owner/name"
            f"{did_you_mean(text, MODEL_NAMES)}"
        )
