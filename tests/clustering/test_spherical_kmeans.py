import pytest
import torch
import torch.nn.functional as F

from unsupseg_cli.clustering import spherical
from unsupseg_cli.clustering.spherical import kmeans_plus_plus, nearest, spherical_kmeans
from unsupseg_cli.core.errors import UnsupsegError, UsageError


def blobs(k=6, per=60, dim=16, noise=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q[:k]
    points = centres.repeat_interleave(per, 0) + noise * torch.randn(k * per, dim, generator=generator)
    return points, torch.arange(k).repeat_interleave(per)


def purity(labels, truth):
    return sum(truth[labels == label].bincount().max().item() for label in labels.unique()) / len(truth)


def test_recovers_separate_directions_whatever_the_lengths():
    points, truth = blobs()
    points = points * torch.linspace(0.01, 100, len(points))[:, None]
    result = spherical_kmeans(points, 6, seed=1)
    assert purity(result.labels, truth) == 1
    assert torch.allclose(result.centroids.norm(dim=1), torch.ones(6))
    assert result.inertia == min(result.inertias)
    assert len(result.inertias) == 5


def test_labels_and_inertia_belong_to_the_centroids():
    points, _ = blobs(noise=0.5)
    result = spherical_kmeans(points, 6, restarts=2)
    cosine = F.normalize(points, dim=1) @ result.centroids.T
    assert torch.equal(result.labels, cosine.argmax(1))
    assert result.inertia == pytest.approx((1 - cosine.amax(1)).mean().item(), abs=1e-5)
    labels, best = nearest(points, result.centroids, chunk=7)
    assert torch.equal(labels, result.labels)
    assert torch.allclose(best, cosine.amax(1), atol=1e-6)


def test_each_centroid_is_the_mean_direction_of_its_points():
    points, _ = blobs(noise=0.3)
    result = spherical_kmeans(points, 6, iterations=200, tolerance=0)
    for cluster in range(6):
        mean = F.normalize(points, dim=1)[result.labels == cluster].mean(0)
        assert torch.allclose(F.normalize(mean, dim=0), result.centroids[cluster], atol=1e-4)


def test_more_iterations_never_hurt():
    points, _ = blobs(noise=1.0)
    inertias = [
        spherical_kmeans(points, 8, restarts=1, iterations=n, tolerance=0).inertia for n in (1, 2, 5, 50)
    ]
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[-1] < inertias[0]


def test_same_seed_same_result_and_chunks_do_not_matter():
    points, _ = blobs(noise=0.5)
    first, second = (spherical_kmeans(points, 6, seed=3) for _ in range(2))
    assert torch.equal(first.centroids, second.centroids)
    chunked = spherical_kmeans(points, 6, seed=3, chunk=17)
    assert torch.equal(chunked.labels, first.labels)
    assert not torch.equal(kmeans_plus_plus(points, 6, seed=4), kmeans_plus_plus(points, 6, seed=5))


def test_half_precision_features():
    points, truth = blobs()
    assert purity(spherical_kmeans(points.half(), 6).labels, truth) == 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_features_give_one_cluster_in_use(value):
    result = spherical_kmeans(torch.full((20, 4), value), 3, iterations=5)
    assert torch.isfinite(result.centroids).all()
    assert torch.allclose(result.centroids.norm(dim=1), torch.ones(3))
    assert result.labels.unique().numel() == 1


def test_an_empty_cluster_moves_to_far_points(monkeypatch):
    points, truth = blobs(k=3)
    start = F.normalize(torch.stack([points[0], points[0] + 1e-3, -points.sum(0)]), dim=1)
    monkeypatch.setattr("unsupseg_cli.clustering.spherical.kmeans_plus_plus", lambda *a, **k: start)
    result = spherical_kmeans(points, 3, restarts=1)
    assert purity(result.labels, truth) == 1
    assert result.labels.unique().numel() == 3


def test_as_many_clusters_as_points():
    result = spherical_kmeans(torch.eye(5), 5, restarts=1)
    assert result.labels.unique().numel() == 5
    assert result.inertia == pytest.approx(0, abs=1e-6)


def test_errors_say_what_to_do():
    points, _ = blobs(k=2, per=3)
    with pytest.raises(UsageError, match="7 clusters in 6 points: lower --classes"):
        spherical_kmeans(points, 7)
    with pytest.raises(UsageError, match="at least one cluster"):
        spherical_kmeans(points, 0)
    with pytest.raises(UsageError, match="at least one run"):
        spherical_kmeans(points, 2, restarts=0)
    points[1, 0] = float("nan")
    with pytest.raises(UnsupsegError, match="1 of 6 features hold NaN"):
        spherical_kmeans(points, 2)


def test_runs_side_by_side_are_those_of_one_after_the_other(monkeypatch):
    points, _ = blobs(noise=0.5)
    together = spherical_kmeans(points, 7, restarts=5, seed=3)
    monkeypatch.setattr(spherical, "_CENTRES_AT_ONCE", 1)
    alone = spherical_kmeans(points, 7, restarts=5, seed=3)
    assert len(set(together.inertias)) > 1  # starts differ
    assert together.inertias == pytest.approx(alone.inertias, rel=1e-5)
    torch.testing.assert_close(together.centroids, alone.centroids, atol=1e-4, rtol=0)
    assert torch.equal(together.labels, alone.labels)


@pytest.mark.parametrize(("most", "groups"), [(1024, 1), (12, 2), (1, 3)])
def test_progress_counts_every_pass_also_those_that_are_left_out(monkeypatch, most, groups):
    monkeypatch.setattr(spherical, "_CENTRES_AT_ONCE", most)

    class Counting:
        seen, total = 0, None

        def track(self, items, description, total=None, done=0):
            self.total = total
            for item in items:
                self.seen += 1
                yield item

    reporter = Counting()
    points, _ = blobs()
    told = spherical_kmeans(points, 6, restarts=3, iterations=40, seed=1, reporter=reporter)
    assert reporter.seen == reporter.total == groups * 40
    assert told.inertias == spherical_kmeans(points, 6, restarts=3, iterations=40, seed=1).inertias
