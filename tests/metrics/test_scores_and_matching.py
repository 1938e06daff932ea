import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.matching import RULES, match
from unsupseg_cli.metrics.per_image import PerImage
from unsupseg_cli.metrics.scores import score

# Diagonal: 9 + 0 + 5 pixels, IoU 9/17 + 0 + 1. Crossed: 4 + 4 + 5 pixels, IoU 4/13 + 4/13 + 1.
BY_COUNT_OR_IOU = np.array([[9, 4, 0], [4, 0, 0], [0, 0, 5]])


def filled(prediction, target, clusters, classes):
    confusion = Confusion(clusters, classes)
    confusion.update(np.asarray(prediction), np.asarray(target))
    return confusion


def test_counts_by_cluster_and_class():
    confusion = filled([[0, 0, 1], [2, 2, 1]], [[0, 1, 1], [0, VOID, 1]], 3, 2)
    assert confusion.matrix.tolist() == [[1, 1], [0, 2], [1, 0]]
    assert confusion.matrix.dtype == np.int64


@pytest.mark.parametrize("void", [-1, 2, 255])
def test_every_label_outside_the_classes_is_void(void):
    confusion = filled([0, 1, 1], np.array([0, 1, void], np.int16), 2, 2)
    assert confusion.matrix.tolist() == [[1, 0], [0, 1]]


def test_small_unsigned_types_do_not_overflow():
    n = 200
    labels = np.arange(n, dtype=np.uint8)
    assert filled(labels, labels, n, n).matrix.trace() == n


def test_void_pixels_may_hold_any_prediction_but_labelled_ones_may_not():
    assert filled([0, -1], [0, VOID], 2, 2).matrix.sum() == 1
    for bad in (-1, 2):
        with pytest.raises(UnsupsegError, match=f"value {bad}, expected 0 to 1"):
            filled([0, bad], [0, 0], 2, 2)


def test_refuses_shapes_and_types_that_do_not_fit():
    with pytest.raises(UnsupsegError, match="shape"):
        filled([0, 1], [[0], [1]], 2, 2)
    with pytest.raises(UnsupsegError, match="integers"):
        filled([0.0, 1.0], [0, 1], 2, 2)
    with pytest.raises(UsageError):
        Confusion(0, 3)


def test_counts_of_several_updates_add_up():
    rng = np.random.default_rng(0)
    prediction, target = rng.integers(0, 5, (2, 60)), rng.integers(-1, 4, (2, 60))
    whole, parts = filled(prediction, target, 5, 4), Confusion(5, 4)
    parts.update(prediction[0], target[0])
    parts.update(prediction[1], target[1])
    assert np.array_equal(parts.matrix, whole.matrix)


def test_hungarian_maximises_pixels_and_iou_maximises_iou():
    assert match(BY_COUNT_OR_IOU, "hungarian").tolist() == [0, 1, 2]
    assert match(BY_COUNT_OR_IOU, "iou").tolist() == [1, 0, 2]
    assert match(BY_COUNT_OR_IOU, "majority").tolist() == [0, 0, 2]


def test_scores_by_hand():
    result = score(BY_COUNT_OR_IOU, np.array([0, 1, 2]))
    assert result.accuracy == pytest.approx(14 / 22)
    assert result.iou == pytest.approx([9 / 17, 0, 1])
    assert result.miou == result.miou_gt == result.miou_all == pytest.approx((9 / 17 + 1) / 3)
    assert result.pixels.tolist() == [13, 4, 5]
    assert result.confusion.tolist() == [[9, 4, 0, 0], [4, 0, 0, 0], [0, 0, 5, 0]]


def test_scores_of_some_classes_count_errors_of_all():
    result = score(BY_COUNT_OR_IOU, np.array([0, 1, 2]))
    assert result.of([1, 2]) == pytest.approx({"accuracy": 5 / 9, "miou": 0.5})
    assert result.of([0, 1, 2]) == pytest.approx({"accuracy": result.accuracy, "miou": result.miou})
    absent = score(np.array([[6, 0], [2, 0]]), np.array([0, -1]))
    assert absent.of([1]) == {"accuracy": None, "miou": None}


def test_the_three_means_differ_in_what_is_absent():
    # class 1: predicted but not in truth; class 2: neither; class 0: 6 of 8 pixels right
    result = score(np.array([[6, 0, 0], [2, 0, 0], [0, 0, 0]]), np.array([0, 1, 2]))
    assert result.iou[:2] == pytest.approx([0.75, 0])
    assert np.isnan(result.iou[2])
    assert result.miou == pytest.approx(0.75 / 2)
    assert result.miou_gt == pytest.approx(0.75)
    assert result.miou_all == pytest.approx(0.75 / 3)
    assert result.present == 1


def test_pixels_of_unmatched_clusters_are_errors():
    matrix = np.array([[6, 0], [0, 5], [3, 1]])
    assignment = match(matrix)
    assert assignment.tolist() == [0, 1, -1]
    result = score(matrix, assignment)
    assert result.accuracy == pytest.approx(11 / 15)
    assert result.iou == pytest.approx([6 / 9, 5 / 6])
    assert result.confusion.tolist() == [[6, 0, 3], [0, 5, 1]]


def test_majority_uses_every_cluster():
    matrix = np.array([[6, 0], [0, 5], [3, 1], [2, 2], [0, 0]])
    assignment = match(matrix, "majority")
    assert assignment.tolist() == [0, 1, 0, 0, -1]
    assert score(matrix, assignment).accuracy == pytest.approx(16 / 19)


def published_stego(matrix):
    """Written down from the formulas: pixels of clusters beyond the classes are dropped, then one-to-one by counts."""
    classes = matrix.shape[1]
    kept = matrix[:classes]
    best = max(
        itertools.permutations(range(classes)), key=lambda order: kept[list(order), range(classes)].sum()
    )
    histogram = kept[list(best)]
    hits = histogram.diagonal()
    union = histogram.sum(0) + histogram.sum(1) - hits
    return hits.sum() / histogram.sum(), (hits[union > 0] / union[union > 0]).mean()


def published_primaps(matrix):
    """One-to-one by counts, then the row of each cluster left over is added to that of its most frequent class."""
    clusters, classes = matrix.shape
    best = max(
        itertools.permutations(range(clusters), classes),
        key=lambda order: matrix[list(order), range(classes)].sum(),
    )
    histogram = matrix[list(best)].copy()
    for cluster in set(range(clusters)) - set(best):
        histogram[matrix[cluster].argmax()] += matrix[cluster]
    hits = histogram.diagonal()
    union = histogram.sum(0) + histogram.sum(1) - hits
    return hits.sum() / histogram.sum(), (hits[union > 0] / union[union > 0]).mean()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("rule", "published"), [("stego-extra", published_stego), ("primaps-extra", published_primaps)]
)
def test_extra_clusters_are_scored_as_each_paper_does(rule, published, seed):
    matrix = np.random.default_rng(seed).integers(0, 10**6, (6, 4))
    confusion = Confusion(6, 4)
    confusion.matrix += matrix
    result = confusion.compute(rule)
    assert (result.accuracy, result.miou) == pytest.approx(published(matrix))
    plain = confusion.compute()
    if rule == "primaps-extra":
        assert result.accuracy > plain.accuracy
    else:
        assert result.confusion.sum() == matrix[:4].sum()
    same = Confusion(4, 4)  # no extra clusters: nothing differs
    same.matrix += matrix[:4]
    assert same.compute(rule).to_json() == same.compute().to_json()


def test_dropping_every_pixel_is_an_error():
    confusion = Confusion(3, 2)
    confusion.matrix[2] = 5
    with pytest.raises(UnsupsegError, match="extra cluster"):
        confusion.compute("stego-extra")


def test_fewer_clusters_than_classes():
    matrix = np.array([[6, 0, 2], [0, 5, 7]])
    assignment = match(matrix)
    assert assignment.tolist() == [0, 2]
    assert score(matrix, assignment).iou == pytest.approx([6 / 8, 0, 7 / 14])


def test_json_has_no_nan():
    text = json.dumps(score(np.array([[6, 0], [0, 0]]), np.array([0, 1])).to_json(), allow_nan=False)
    assert json.loads(text)["iou"] == [1.0, None]


def test_nothing_labelled_is_an_error_not_a_zero():
    empty = filled([0, 1], [VOID, VOID], 2, 2)
    for rule in RULES:
        with pytest.raises(UnsupsegError, match="No labelled pixel"):
            empty.compute(rule)
    with pytest.raises(UnsupsegError, match="No labelled pixel"):
        score(empty.matrix, np.array([0, 1]))


def test_refuses_an_unknown_rule_and_foreign_assignments():
    with pytest.raises(UsageError, match="did you mean 'hungarian'"):
        match(BY_COUNT_OR_IOU, "hungarien")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="another model"):
        score(BY_COUNT_OR_IOU, np.array([0, 1]))
    with pytest.raises(UsageError, match="another label space"):
        score(BY_COUNT_OR_IOU, np.array([0, 1, 3]))


def test_a_given_assignment_replaces_the_matching():
    confusion = Confusion(2, 2)
    confusion.update(np.array([0, 0, 1]), np.array([0, 0, 1]))
    assert confusion.compute().accuracy == 1
    assert confusion.compute(assignment=np.array([1, 0])).accuracy == 0


def test_per_image_matching_forgives_labels_that_change_meaning():
    left, right = np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])
    per_image, whole = PerImage(2, 2), Confusion(2, 2)
    for metric in (per_image, whole):
        metric.update(left, left)
        metric.update(right, left)
    per_image.update(left, np.full(4, VOID))
    result = per_image.compute()
    assert (result.accuracy, result.miou, result.images, result.skipped) == (1, 1, 2, 1)
    assert whole.compute().accuracy == 0.5
    assert result.to_json()["comparable_with_dataset_wide"] is False
    with pytest.raises(UnsupsegError, match="labelled"):
        PerImage(2, 2).compute()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 2**31),
    st.sampled_from([rule for rule in RULES if rule != "stego-extra"]),
)
def test_scores_are_bounded_and_do_not_depend_on_cluster_names(clusters, classes, seed, rule):
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, 50, (clusters, classes)) * rng.integers(0, 2, (clusters, classes))
    matrix[0, 0] += 1
    result = score(matrix, match(matrix, rule))
    assert result.confusion.sum() == matrix.sum()
    assert 0 <= result.miou_all <= result.miou <= result.miou_gt <= 1
    assert 0 <= result.accuracy <= 1
    order = rng.permutation(clusters)
    again = score(matrix[order], match(matrix[order], rule))
    # Of equal sums of IoU, or equal matches, others may keep different numbers of pixels, or leave other clusters over.
    if rule not in ("iou", "primaps-extra"):
        assert again.accuracy == pytest.approx(result.accuracy)
    matched = result.assignment[result.assignment >= 0]
    if rule == "primaps-extra":
        assert (result.assignment[matrix.any(1)] >= 0).all()
    elif rule != "majority":
        assert len(set(matched.tolist())) == len(matched) == min(clusters, classes)
    else:
        assert np.array_equal(result.assignment >= 0, matrix.any(1))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31), st.sampled_from(["hungarian", "iou"]))
def test_one_to_one_matching_is_the_best_of_all(clusters, classes, seed, rule):
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, 20, (clusters, classes))
    matrix[0, 0] += 1
    union = matrix.sum(1, keepdims=True) + matrix.sum(0, keepdims=True) - matrix
    gain = matrix if rule == "hungarian" else matrix / np.maximum(union, 1)
    long = gain if clusters >= classes else gain.T
    columns = range(long.shape[1])
    best = max(
        long[list(rows), columns].sum() for rows in itertools.permutations(range(len(long)), len(columns))
    )
    assignment = match(matrix, rule)
    found = sum(gain[cluster, one] for cluster, one in enumerate(assignment) if one >= 0)
    assert found == pytest.approx(best)
