import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from sklearn.metrics import adjusted_rand_score

from unsupseg_cli.clustering.diffusion import STEPS, diffused, diffused_clusters
from unsupseg_cli.clustering.spectral import modularity, neighbours_of_others, to_affinity
from unsupseg_cli.clustering.spherical import spherical_kmeans


@pytest.fixture
def uneven():
    """A class of widely scattered points beside two small narrow ones; their graph, and what each point is of."""
    generator = torch.Generator().manual_seed(0)
    of = torch.tensor([0] * 400 + [1] * 100 + [2] * 100)
    directions = torch.randn(3, 16, generator=generator) + torch.randn(1, 16, generator=generator)
    scatter = torch.where(of == 0, 0.6, 0.1)[:, None] * torch.randn(600, 16, generator=generator)
    points = F.normalize(F.normalize(directions, dim=1)[of] + scatter, dim=1)
    columns, cosines, _ = neighbours_of_others(points, torch.arange(600) % 10, 10)
    return points, to_affinity(columns, cosines), of


def test_a_step_goes_half_the_way_to_the_mean_of_the_neighbours():
    affinity = csr_matrix(np.array([[0, 1, 3, 0], [1, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]], float))
    points = torch.eye(4)
    after = dict(diffused(points, affinity))
    assert tuple(after) == STEPS
    assert torch.allclose(after[1][0], torch.tensor([0.5, 0.125, 0.375, 0]))
    assert torch.allclose(after[2][1], 0.5 * after[1][1] + 0.5 * after[1][0])
    assert torch.equal(after[32][3], points[3])  # it has no neighbour


def test_clusters_are_better_than_those_of_the_points(uneven):
    points, affinity, of = uneven
    found = diffused_clusters(points, affinity, 3, restarts=5, iterations=50, seed=0)
    before = spherical_kmeans(points, 3, restarts=5, seed=0).labels
    assert adjusted_rand_score(of, found.labels) > adjusted_rand_score(of, before) + 0.2
    assert found.modularity == modularity(affinity, found.labels) > modularity(affinity, before)


def test_the_steps_are_those_of_greatest_modularity(uneven):
    points, affinity, _ = uneven
    found = diffused_clusters(points, affinity, 3, restarts=5, iterations=50, seed=0)
    tried = {
        steps: modularity(affinity, spherical_kmeans(moved, 3, restarts=5, iterations=50, seed=0).labels)
        for steps, moved in diffused(points, affinity)
    }
    assert found.steps == max(tried, key=tried.get)
