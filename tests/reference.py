"""Where the reference data is, for tests that compare with it; they skip where it is absent."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "reference"

needs_reference = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"the reference data is not beside the project ({FOLDER})"
)
