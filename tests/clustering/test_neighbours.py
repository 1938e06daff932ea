import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unsupseg_cli.clustering import neighbours
from unsupseg_cli.clustering.neighbours import nearest_neighbours, resolve_engine
from unsupseg_cli.core.errors import UnsupsegError, UsageError


def random_rows(count, dim=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def by_hand(rows, k):
    unit = rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    cosine = (unit @ unit.T * 2**20).round() / 2**20
    np.fill_diagonal(cosine, -np.inf)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosine, order, 1)


@pytest.mark.parametrize("block", [1, 7, 100])
@pytest.mark.parametrize("engine", ["exact", "faiss"])
def test_neighbours_are_those_of_the_whole_matrix(engine, block):
    rows = random_rows(50)
    found = nearest_neighbours(rows, 5, engine=engine, block=block)
    order, cosine = by_hand(rows, 5)
    assert found.indices.dtype == np.int32
    assert found.similarity.dtype == np.float16
    assert (found.indices == order).all()
    np.testing.assert_allclose(found.similarity, cosine, atol=1e-3)


def test_lengths_do_not_matter():
    rows = random_rows(20)
    scaled = rows * np.linspace(0.1, 50, 20)[:, None]
    assert (nearest_neighbours(rows, 3).indices == nearest_neighbours(scaled, 3).indices).all()


@pytest.mark.parametrize("engine", ["exact", "faiss"])
def test_few_rows_have_all_others_as_neighbours(engine):
    found = nearest_neighbours(random_rows(4), 30, engine=engine)
    assert found.indices.shape == (4, 3)
    assert [sorted(row) for row in found.indices.tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


@pytest.mark.parametrize("engine", ["exact", "faiss"])
def test_among_duplicates_the_lowest_index_comes_first_and_the_row_itself_never(engine):
    rows = np.tile(random_rows(1), (12, 1))
    found = nearest_neighbours(rows, 4, engine="exact", block=5)
    for row, columns in enumerate(found.indices.tolist()):
        assert columns == [index for index in range(12) if index != row][:4]
    found = nearest_neighbours(rows, 4, engine=engine)
    assert all(row not in columns for row, columns in enumerate(found.indices.tolist()))
    assert (found.similarity == 1).all()


def copies():
    """Seven directions, forty copies of each: a row and its equals fill any short list."""
    return np.random.default_rng(2).permutation(np.repeat(random_rows(7, 16), 40, axis=0))


def signs():
    """Corners of a cube in eight dimensions: nine different cosines, and every corner several times."""
    return np.random.default_rng(3).choice([-1.0, 1.0], (1200, 8)).astype(np.float32)


def with_zeros():
    rows = signs()[:300]
    rows[::3] = 0
    return rows


@pytest.mark.parametrize("make", [copies, signs, with_zeros])
@pytest.mark.parametrize("k", [1, 8, 30, 60, 150])
@pytest.mark.parametrize("block", [10, 64, None])
def test_ties_at_the_border_go_to_the_lower_index(make, k, block):
    rows = make()
    order, cosine = by_hand(rows, k)
    for engine in ("exact", "faiss"):
        found = nearest_neighbours(rows, k, engine=engine, block=block)
        assert (found.indices == order).all()
        np.testing.assert_allclose(found.similarity, cosine, atol=1e-3)


def test_equal_rows_are_equal_however_their_products_are_rounded():
    rows = np.array(
        [[-2, -1, 0], *[[-1, -1, -1]] * 4], np.float32
    )  # a cosine nearly half way between two steps
    for block in (1, 2, 5):
        found = nearest_neighbours(rows * np.array([[1], [1], [3], [0.7], [11]], np.float32), 2, block=block)
        assert found.indices.tolist() == [[1, 2], [2, 3], [1, 3], [1, 2], [1, 2]]


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.int8, st.tuples(st.integers(2, 12), st.integers(1, 3)), elements=st.integers(-2, 2)),
    st.integers(1, 14),
    st.integers(1, 5),
)
def test_no_row_is_its_own_neighbour_and_blocks_change_nothing(rows, k, block):
    rows = rows.astype(np.float32)  # few values: many ties, zero rows too
    found = nearest_neighbours(rows, k, engine="exact")
    assert found.indices.shape == (len(rows), min(k, len(rows) - 1))
    assert (found.indices != np.arange(len(rows))[:, None]).all()
    assert all(len(set(columns)) == len(columns) for columns in found.indices.tolist())
    assert (np.diff(found.similarity.astype(float), axis=1) <= 0).all()
    assert (nearest_neighbours(rows, k, engine="exact", block=block).indices == found.indices).all()


def test_inverted_lists_find_nearly_all_neighbours_and_fill_up_short_rows(monkeypatch):
    monkeypatch.setattr(neighbours, "_FLAT", 100)
    rows = random_rows(3000, 16)
    exact = nearest_neighbours(rows, 10, engine="exact").indices
    found = nearest_neighbours(rows, 10, engine="faiss")
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.indices.tolist(), strict=True)]
    assert np.mean(shared) > 0.9
    monkeypatch.setattr(neighbours, "_PROBES", 1)  # a list alone holds fewer than 200 rows
    full = nearest_neighbours(rows, 200, engine="faiss").indices
    assert ((full >= 0) & (full < 3000)).all()
    assert (full == nearest_neighbours(rows, 200, engine="exact").indices).mean() > 0.9


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(value):
    rows = random_rows(6)
    rows[4, 2] = value
    with pytest.raises(UnsupsegError, match="1 of 6 descriptors"):
        nearest_neighbours(rows, 2)


def test_wrong_calls_are_refused():
    with pytest.raises(UsageError, match="at least one neighbour"):
        nearest_neighbours(random_rows(5), 0)
    with pytest.raises(UsageError, match="at least two images"):
        nearest_neighbours(random_rows(1), 3)
    with pytest.raises(UnsupsegError, match=r"\(5, 2, 4\)"):
        nearest_neighbours(torch.zeros(5, 2, 4), 3)
    with pytest.raises(UsageError, match="auto, exact or faiss"):
        nearest_neighbours(random_rows(5), 2, engine="annoy")


def test_auto_takes_faiss_for_large_collections_only():
    assert resolve_engine("auto", 20_000) == "exact"
    assert resolve_engine("auto", 250_000) == "faiss"
