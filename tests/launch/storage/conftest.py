"""A run in an S3 store of its own."""

import pytest

from tests.launch.storage.s3 import client, keys, s3_server, uri_of


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as (endpoint, _):
        yield endpoint


@pytest.fixture
def uri(endpoint):
    """The URI of an empty run."""
    for key in keys(endpoint):
        client(endpoint).delete_object(Bucket="bucket", Key=f"run/{key}")
    return uri_of(endpoint, "bucket/run")
