"""One local Ray for all tests of this folder; actors ask for no CPU."""

import pytest
import ray


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory):
    import os

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
