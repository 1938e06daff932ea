"""k-means over all tokens: Lloyd's iterations in memory, whatever the parts."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unsupseg_cli.clustering.lloyd import Run, learn, lloyd
from unsupseg_cli.clustering.spherical import nearest, spherical_kmeans
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.training import all_tokens
from unsupseg_cli.training.all_tokens import OwnParts, kmeans_of_all_tokens
from unsupseg_cli.training.tokens import MemorySource


class Recorded(OwnParts):
    """Parts of which the test sees what was made."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def gather(self, name, count, make):
        self.made[name] = list(super().gather(name, count, make))
        return iter(self.made[name])


@pytest.fixture
def source():
    """Forty views of different size, whose tokens scatter widely around ten directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(10, 12, generator=generator)
    views = []
    for number in range(40):
        classes = torch.randint(10, (3 + number % 3, 5), generator=generator)
        noise = torch.randn(*classes.shape, 12, generator=generator)
        views.append((1 + number) * (directions[classes] + noise))
    return MemorySource(views)


@pytest.fixture
def unit(source):
    return F.normalize(torch.cat([view.flatten(0, 1) for view in source.tokens(range(40))]), dim=1)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(all_tokens, "_LEAST_VIEWS", 7)
    monkeypatch.setattr(all_tokens, "_BLOCK", 1)


def test_the_passes_are_lloyds_iterations_in_memory(source, unit, small_parts):
    parts = Recorded()
    result = kmeans_of_all_tokens(source, 6, parts, sample=60, seed=1)
    assert len(parts.made["k-means pass 1"]) == 6
    run = Run(parts.made["k-means start"][0]["centroids"])
    for _ in lloyd(partial(learn, [unit]), [run], 50, 1e-5):
        pass
    torch.testing.assert_close(result.centroids, run.centroids, atol=1e-6, rtol=0)
    assert result.inertia == pytest.approx(run.statistics.inertia, abs=1e-7)
    assert result.passes > 3, "the sample was too good for this test"


def test_figures_are_of_all_tokens(source, unit, small_parts):
    parts = Recorded()
    result = kmeans_of_all_tokens(source, 6, parts, sample=60, restarts=3)
    assert result.tokens == len(unit)
    assert sum(len(part["tokens"]) for part in parts.made["k-means sample"]) == pytest.approx(60, abs=6)
    assert len(result.inertias) == 3
    assert result.inertia == pytest.approx(float((1 - nearest(unit, result.centroids)[1]).mean()), abs=1e-6)
    start = parts.made["k-means start"][0]["centroids"]
    assert result.inertia < float((1 - nearest(unit, start)[1]).mean())


def test_the_parts_do_not_matter(source, monkeypatch):
    whole = kmeans_of_all_tokens(source, 6, OwnParts(), sample=10_000)
    monkeypatch.setattr(all_tokens, "_LEAST_VIEWS", 3)
    monkeypatch.setattr(all_tokens, "_BLOCK", 1)
    cut = kmeans_of_all_tokens(source, 6, OwnParts(), sample=10_000)
    assert cut.inertia == pytest.approx(whole.inertia, rel=0.02)  # other samples, and so other starts


def test_where_the_sample_is_all_its_centres_stay(source, unit):
    result = kmeans_of_all_tokens(source, 6, OwnParts(), sample=10**9, seed=2)
    in_memory = spherical_kmeans(unit, 6, seed=2)
    torch.testing.assert_close(result.centroids, in_memory.centroids, atol=1e-2, rtol=0)
    assert result.inertia <= in_memory.inertia + 1e-6
    assert result.passes <= 3


def test_an_empty_centre_moves_to_the_farthest_token_of_all_parts(source, unit, small_parts, monkeypatch):
    start = F.normalize(unit[:1] + 1e-3 * torch.eye(12)[:6], dim=1)
    start[5] = -start[0]
    start[4] = start[3]  # ties go to the first of them: no token is left
    made = spherical_kmeans(unit, 6)
    monkeypatch.setattr(
        all_tokens, "spherical_kmeans", lambda *_, **__: made.__class__(start, 0.0, (0.0,), made.labels)
    )
    result = kmeans_of_all_tokens(source, 6, OwnParts())
    assert nearest(unit, result.centroids)[0].unique().numel() == 6


@pytest.mark.parametrize(
    ("views", "sizes"),
    [(1, [1]), (256, [256]), (257, [256, 1]), (65_536, [256] * 256), (70_000, [320] * 218 + [240])],
)
def test_parts_are_whole_files_and_not_too_many(views, sizes):
    cut = all_tokens._cut(views)
    assert [len(part) for part in cut] == sizes
    assert np.array_equal(np.concatenate(cut), np.arange(views))


def test_tokens_that_cannot_be_clustered_are_refused():
    with pytest.raises(UsageError, match="5 clusters in 4 points"):
        kmeans_of_all_tokens(MemorySource([torch.randn(2, 2, 8)]), 5, OwnParts())
    with pytest.raises(UnsupsegError, match="NaN"):
        kmeans_of_all_tokens(MemorySource([torch.full((2, 2, 8), float("nan"))]), 2, OwnParts())
    views = [torch.randn(2, 2, 8) for _ in range(9)]
    views[8][0, 0, 0] = float("inf")
    views[8][0, 0, 1] = float("nan")
    with pytest.raises(UnsupsegError, match="NaN"):
        kmeans_of_all_tokens(MemorySource(views), 2, OwnParts(), sample=4)
