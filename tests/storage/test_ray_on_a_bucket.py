"""`--executor ray` over a workspace in a bucket: the actors share nothing but it."""

import numpy as np
import pytest
from PIL import Image

from unsupseg_cli import Context, ExtractConfig, extract
from unsupseg_cli.artifacts.workspace import Workspace


@pytest.mark.slow
def test_actors_share_a_bucket_and_give_the_digest_of_one_process(machine, tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    for number in range(150):  # three blocks of 64 views
        pixels = np.random.default_rng(number).integers(0, 255, (2, 3, 3), np.uint8)
        Image.fromarray(pixels).resize((24, 16)).save(tmp_path / f"{number:03d}.png")
    given = {"dataset": f"{tmp_path}/", "size": 16, "workers": 0, "backbone": "tiny", "device": "cpu"}
    whole = extract(ExtractConfig(**given), Context(Workspace(tmp_path / "local")))
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1}
    )  # it inherits the way to the bucket
    cluster.add_node(num_cpus=1)
    try:
        workspace = machine("driver", lease=30)
        shared = extract(ExtractConfig(**given, executor="ray", address=cluster.address), Context(workspace))
    finally:
        cluster.shutdown()
    assert (shared.manifest.key, shared.manifest.digest) == (whole.manifest.key, whole.manifest.digest)
    other = machine("other").find_key("features", whole.manifest.key)
    assert other.manifest.digest == whole.manifest.digest
