"""What the tests of object storage share: a bucket on this machine, and machines that share nothing else."""

import pytest


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A bucket of the test's own, and the environment that leads to it."""
    pytest.importorskip("obstore", reason="the extra `cloud` is missing: pip install 'unsupseg[cloud]'")
    pytest.importorskip("moto", reason="moto is missing: pip install 'unsupseg[dev]'")
    from fixtures.bucket import open_bucket

    bucket = open_bucket()
    environment = {
        "AWS_ENDPOINT_URL": bucket.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "UNSUPSEG_CACHE": str(tmp_path / "cache"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    yield bucket
    bucket.stop()


@pytest.fixture
def machine(bucket, tmp_path):
    """Return the workspace in the bucket as a machine of a name sees it: each has a cache of its own."""
    from unsupseg_cli.artifacts.cache import Cache
    from unsupseg_cli.core.address import parse_address
    from unsupseg_cli.storage.remote import RemoteWorkspace

    def open_(name="one", most=10**9, lease=0.6, tell=None):
        return RemoteWorkspace(parse_address(bucket.address()), Cache(tmp_path / name, most), tell, lease)

    return open_
