"""Folder of the reference data; tests that compare with it are skipped if it is absent."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "reference"

needs_reference = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"there is no reference data at {FOLDER}"
)
