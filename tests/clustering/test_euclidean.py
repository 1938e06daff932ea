"""k-means of scikit-learn, start by start."""

import numpy as np
from sklearn.cluster import KMeans

from unsupseg_cli.clustering.euclidean import euclidean_kmeans
from unsupseg_cli.core.progress import Silent


class Counting(Silent):
    """Notes what was told."""

    def __init__(self):
        self.told = []

    def track(self, items, description, total=None, done=0):
        for item in items:
            yield item
            self.told.append((description, total))


def test_start_by_start_gives_what_all_starts_at_once_give():
    points = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    reporter = Counting()
    found = euclidean_kmeans(points, 7, restarts=6, iterations=20, seed=3, reporter=reporter)
    expected = KMeans(7, n_init=6, max_iter=20, random_state=3).fit(points)
    np.testing.assert_array_equal(found.cluster_centers_, expected.cluster_centers_)
    np.testing.assert_array_equal(found.labels_, expected.labels_)
    assert reporter.told == [("k-means, 7 centres: starts", 6)] * 6
