import networkx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from unsupseg_cli.clustering.spectral import (
    modularity,
    neighbours_of_others,
    share_in_own_group,
    spectral_embedding,
    to_affinity,
    vote,
)
from unsupseg_cli.clustering.spherical import spherical_kmeans


def arcs(count=200):
    """Two long arcs on the sphere that centres cannot tell apart, without a gap, and what each point is of."""
    noise = 0.02 * np.random.default_rng(0).normal(size=2 * count)
    angle = torch.linspace(0, 2.6, count).repeat_interleave(2)
    of = torch.arange(2 * count) % 2
    height = torch.where(of == 0, 0.35, -0.35) + torch.from_numpy(noise).float()
    return F.normalize(torch.stack([angle.cos(), angle.sin(), height], 1), dim=1), of


def test_arcs_are_told_apart_which_k_means_cannot():
    points, of = arcs()
    groups = torch.arange(len(points)) % 10
    columns, cosines, _ = neighbours_of_others(points, groups, 10)
    embedded = spectral_embedding(to_affinity(columns, cosines), 2, seed=0)
    labels = spherical_kmeans(embedded, 2, seed=0).labels
    assert adjusted_rand_score(of, labels) == 1.0
    assert adjusted_rand_score(of, spherical_kmeans(points, 2, seed=0).labels) < 0.5


@pytest.mark.filterwarnings("ignore:Graph is not fully connected")  # which is what tells the arcs apart
def test_clusters_are_those_of_scikit_learn_on_the_same_graph():
    points, _ = arcs(60)
    columns, cosines, _ = neighbours_of_others(points, torch.arange(len(points)), 8)
    affinity = to_affinity(columns, cosines)
    expected = SpectralClustering(2, affinity="precomputed", random_state=0).fit_predict(affinity.toarray())
    labels = spherical_kmeans(spectral_embedding(affinity, 2, seed=0), 2, seed=0).labels
    assert adjusted_rand_score(expected, labels) == 1.0


def test_modularity_is_that_of_networkx():
    points, of = arcs(30)
    columns, cosines, _ = neighbours_of_others(points, torch.arange(len(points)) % 7, 4)
    affinity = to_affinity(columns, cosines)
    graph = networkx.from_scipy_sparse_array(affinity)
    parts = [set(np.flatnonzero(of == number).tolist()) for number in (0, 1)]
    assert modularity(affinity, of) == pytest.approx(networkx.community.modularity(graph, parts))
    shuffled = of[torch.randperm(len(of), generator=torch.Generator().manual_seed(0))]
    assert modularity(affinity, of) > 0.4 > abs(modularity(affinity, shuffled))


def test_neighbours_are_the_nearest_of_other_groups():
    points = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    groups = torch.arange(50) // 10
    columns, cosines, same = neighbours_of_others(points, groups, 5)
    cosine = points @ points.T
    for row in range(50):
        others = [other for other in range(50) if groups[other] != groups[row]]
        nearest = sorted(others, key=lambda other: -float(cosine[row, other]))[:5]
        assert columns[row].tolist() == nearest
        assert torch.allclose(cosines[row], cosine[row, nearest].clamp_min(0))
    free = (cosine - 2 * torch.eye(50)).topk(5, 1).indices
    assert same == pytest.approx(float((groups[free] == groups[:, None]).float().mean()))


def test_of_a_single_group_the_neighbours_are_its_own():
    points, _ = arcs(20)
    columns, _, same = neighbours_of_others(points, torch.zeros(40, dtype=torch.long), 3)
    assert same == 1.0
    assert (columns != torch.arange(40)[:, None]).all()


def in_light(groups, of_group, strength):
    """Return points of three things, each group in a light of its own, and the group of each."""
    generator = torch.Generator().manual_seed(0)
    of = torch.arange(groups).repeat_interleave(of_group)
    things = torch.randn(3, 32, generator=generator)[torch.randint(3, (len(of),), generator=generator)]
    light = strength * torch.randn(groups, 32, generator=generator)[of]
    return F.normalize(things + light + 0.5 * torch.randn(len(of), 32, generator=generator), dim=1), of


def test_the_share_in_the_own_group_hardly_depends_on_how_many_points_and_groups_there_are():
    shares = [share_in_own_group(*in_light(*size, 0.3), seed=0) for size in ((48, 16), (48, 200), (200, 48))]
    assert max(shares) - min(shares) < 0.06
    assert 0.2 < min(shares) < share_in_own_group(*in_light(48, 16, 0.6), seed=0) - 0.2
    points, of = in_light(3, 4, 0.3)
    assert 0 <= share_in_own_group(points, 7 * of, seed=0) <= 1  # fewer than are looked among


def test_votes_are_shares_and_follow_the_nearest():
    points, of = arcs()
    shares = vote(points[::7], points, of, 3, 5)
    assert torch.allclose(shares.sum(1), torch.ones(len(shares)))
    assert shares.argmax(1).tolist() == of[::7].tolist()
    assert (shares[:, 2] == 0).all()
