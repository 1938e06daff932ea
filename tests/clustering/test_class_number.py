"""The number of clusters: found where groups are plain, one where there are none."""

import pytest
import torch

from unsupseg_cli.clustering.class_number import (
    components,
    cosine_distances,
    largest_of_share,
    numbers,
    scan,
    silhouette,
)
from unsupseg_cli.core.errors import UsageError


def blobs(k, per=80, dim=24, noise=0.08):
    generator = torch.Generator().manual_seed(k)
    centres = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q[:k]
    return centres.repeat_interleave(per, 0) + noise * torch.randn(k * per, dim, generator=generator)


@pytest.mark.parametrize("k", [3, 7, 12])
def test_separate_groups_are_counted_whatever_the_lengths(k):
    points = blobs(k)
    found = scan(points * torch.linspace(0.1, 50, len(points))[:, None], 2, 20, seed=0)
    assert found.best == k
    assert found.components <= k
    assert [row["classes"] for row in found.rows()] == list(found.classes)
    assert all(len(centres) == number for centres, number in zip(found.centroids, found.classes, strict=True))


def test_points_that_are_all_alike_are_the_fewest_classes():
    found = scan(torch.ones(50, 8), 2, 6, seed=0)
    assert found.best == 2


def test_a_scan_is_the_same_again_and_tells_its_progress():
    class Counting:
        seen = 0

        def track(self, items, description, total=None, done=0):
            for item in items:
                yield item
                self.seen += 1

    points, reporter = blobs(4), Counting()
    one, other = scan(points, 2, 9, seed=3, reporter=reporter), scan(points, 2, 9, seed=3)
    assert one.rows() == other.rows()
    assert reporter.seen == len(one.classes)


def test_more_clusters_than_points_are_refused():
    with pytest.raises(UsageError, match="more images"):
        scan(torch.eye(4), 2, 6, seed=0)


def test_the_rule_takes_the_largest_number_near_the_highest_value():
    assert largest_of_share((2, 3, 4, 5), (1.0, 0.95, 0.91, 0.5)) == 4
    assert largest_of_share((2, 3, 4), (-0.2, -0.1, -0.3)) == 2


def test_features_without_groups_have_as_many_classes_as_components():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(600, 12, generator=generator) * torch.linspace(1, 0.4, 12)
    found = scan(points + 0.2, 2, 20, seed=0)
    assert 5 <= found.components <= 9
    assert found.best >= found.components
    assert found.best in found.classes


def test_components_are_counted_by_the_variance_they_hold():
    corners = torch.cat([torch.eye(3), -torch.eye(3)]) * torch.tensor([3.0, 2.0, 1.0])
    assert [components(corners, share) for share in (0.6, 0.7, 0.95)] == [1, 2, 3]
    assert components(torch.ones(5, 3), 0.7) == 1


def test_every_small_number_is_tried_and_the_last_one():
    assert numbers(4, 30)[:9] == (4, 5, 6, 7, 8, 9, 10, 11, 12)
    assert numbers(4, 30)[-1] == 30
    assert numbers(5, 5) == (5,)


def test_the_silhouette_of_no_clustering_is_zero():
    distance = cosine_distances(torch.eye(4))
    assert silhouette(distance, torch.zeros(4).long().numpy()) == 0
    assert silhouette(distance, torch.arange(4).numpy()) == 0
