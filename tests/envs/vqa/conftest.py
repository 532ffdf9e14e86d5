"""All data sets in all their published forms, written once."""

from pathlib import Path

import datasets
import pytest

from tests.envs.vqa.opening import write_all


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each form of each data set, as `opening.FORMS` names them."""
    return write_all(tmp_path_factory.mktemp("data_sets"))


@pytest.fixture(scope="session", autouse=True)
def arrow_cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of the `datasets` library that goes with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("arrow")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        yield
