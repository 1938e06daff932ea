"""k-means on CUDA beside the CPU, in memory and over all tokens: `make test-gpu`. Skipped without a GPU."""

import pytest
import torch
import torch.nn.functional as F

from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.training import all_tokens
from unsupseg_cli.training.all_tokens import OwnParts, kmeans_of_all_tokens
from unsupseg_cli.training.tokens import DeviceSource, MemorySource

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def blobs():
    """Return views of tokens (4, 4, 8) around six directions."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(6, 8, generator=generator), dim=-1)
    chosen = torch.randint(6, (12, 4, 4), generator=generator)
    return directions[chosen] + 0.1 * torch.randn(12, 4, 4, 8, generator=generator)


def test_in_memory():
    points = blobs().flatten(0, 2)
    cpu, gpu = spherical_kmeans(points, 6), spherical_kmeans(points.cuda(), 6)
    assert torch.allclose(cpu.centroids, gpu.centroids.cpu(), atol=1e-3)
    assert gpu.centroids.is_cuda


def test_over_all_tokens(monkeypatch):
    monkeypatch.setattr(all_tokens, "_LEAST_VIEWS", 2)
    monkeypatch.setattr(all_tokens, "_BLOCK", 2)
    source = MemorySource(list(blobs()))
    cpu, gpu = (
        kmeans_of_all_tokens(DeviceSource(source, device), 6, OwnParts(), sample=60, device=device)
        for device in (torch.device("cpu"), torch.device("cuda"))
    )
    assert gpu.inertia == pytest.approx(cpu.inertia, rel=1e-2)
    assert not gpu.centroids.is_cuda
