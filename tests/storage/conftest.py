"""What the tests of object storage share: a bucket on this machine, and machines that share nothing else."""

import pytest


@pytest.fixture
def machine(bucket, tmp_path):
    """Return the workspace in the bucket as a machine of a name sees it: each has a cache of its own."""
    from unsupseg_cli.artifacts.cache import Cache
    from unsupseg_cli.core.address import parse_address
    from unsupseg_cli.storage.remote import RemoteWorkspace

    def open_(name="one", most=10**9, lease=0.6, tell=None):
        return RemoteWorkspace(parse_address(bucket.address()), Cache(tmp_path / name, most), tell, lease)

    return open_
