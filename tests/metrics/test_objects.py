"""Average precision by hand, and the votes that name clusters."""

import numpy as np
import pytest

from unsupseg_cli.metrics.matching import match
from unsupseg_cli.metrics.objects import MOST, Object, ObjectScores

SIZE = (40, 60)


def square(row, column, side=10, width=None):
    mask = np.zeros(SIZE, bool)
    mask[row : row + side, column : column + (width or side)] = True
    return mask


def scored(images, clusters=3, classes=3):
    scores = ObjectScores(clusters, classes)
    for found, truth in images:
        scores.update(found, truth, SIZE)
    return scores


def test_average_precision_by_hand():
    """Two of four objects are found, the better one of three masks is wrong: precision 0, 1/2, 2/3 at 0, 1/4, 1/2."""
    first = [Object(square(0, 0), score=0.9), Object(square(20, 20), score=0.8)]
    second = [Object(square(0, 0), score=0.7)]
    scores = scored(
        [
            (first, [Object(square(0, 30), 0), Object(square(20, 20), 0)]),
            (second, [Object(square(0, 0), 1), Object(square(20, 40), 1)]),
        ]
    )
    precision = scores.precision()
    # of 101 recalls 0.00 to 1.00, those up to 0.50 have the best precision of any higher recall, 2/3
    assert precision.ap50 == pytest.approx(51 / 101 * 2 / 3)
    assert precision.ap == pytest.approx(precision.ap50)  # the masks fit exactly
    assert (scores.images, scores.objects, scores.masks) == (2, 4, 3)


def test_an_iou_of_half_counts_at_50_and_not_above():
    truth = [Object(square(0, 0, 10, 20), 0)]
    for width, ap50, ap in ((11, 1, 0.2), (9, 0, 0)):  # IoU 0.55: at 0.5 and 0.55 of ten thresholds; 0.45
        precision = scored([([Object(square(0, 0, 10, width))], truth)]).precision()
        assert (precision.ap50, precision.ap) == (pytest.approx(ap50), pytest.approx(ap))


def test_a_second_mask_of_an_object_is_an_error():
    truth = [Object(square(0, 0), 0), Object(square(20, 20), 0)]
    found = [
        Object(square(0, 0), score=0.9),
        Object(square(0, 0), score=0.8),
        Object(square(20, 20), score=0.7),
    ]
    # precision 1 up to recall 0.5, then 2/3
    assert scored([(found, truth)]).precision().ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_classes_count_where_clusters_are_named():
    truth = [Object(square(0, 0), 1), Object(square(20, 20), 2)]
    found = [Object(square(0, 0), 0, 0.9), Object(square(20, 20), 1, 0.8), Object(square(0, 40), -1, 1.0)]
    scores = scored([(found, truth)])
    right = scores.precision(np.array([1, 2, -1]))
    assert right.classes == (None, pytest.approx(1), pytest.approx(1))  # class 0 is in no image
    assert right.ap50 == pytest.approx(1)  # the mask without a cluster is no object of a class
    assert scores.precision(np.array([2, 1, -1])).ap50 == 0
    assert scores.precision(np.array([1, -1, -1])).classes == (None, pytest.approx(1), 0)
    assert scores.precision().ap50 == pytest.approx(2 / 3)  # of any class, the surest mask is wrong


@pytest.mark.parametrize("classes", [0, 3])
def test_an_object_without_a_class_names_nothing_and_counts_of_any_class(classes):
    found = [Object(square(0, 0), 0, 0.9), Object(square(20, 20), 1, 0.8)]
    scores = scored([(found, [Object(square(0, 0)), Object(square(20, 20))])], classes=classes)
    assert not scores.votes.any()
    assert (scores.objects, scores.unnamed) == (2, 2)
    assert scores.precision().ap50 == pytest.approx(1)


def test_what_lies_in_a_crowd_is_no_error():
    crowd = Object(square(0, 30, 20, 20), 0, crowd=True)
    found = [Object(square(5, 35, 5), score=0.9), Object(square(0, 0), score=0.8)]
    scores = scored([(found, [Object(square(0, 0), 0), crowd])])
    assert scores.precision().ap50 == pytest.approx(1)
    assert scores.objects == 1
    alone = scored([(found, [crowd])])
    assert alone.precision() is None
    assert not alone.votes.any()


def test_masks_vote_for_the_object_of_the_best_box():
    """A frame has the box of what it surrounds, and no pixel of it."""
    frame = square(10, 10, 20) & ~square(12, 12, 16)
    truth = [Object(square(12, 12, 16), 2), Object(square(10, 10, 2, 60), 1)]
    scores = scored([([Object(frame, 1), Object(square(30, 50), 0), Object(square(0, 0), -1)], truth)])
    assert scores.votes.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]  # the second meets no box


def test_one_large_object_does_not_outvote_two_small_ones():
    truth = [Object(square(0, 0, 20, 40), 0), Object(square(30, 0, 5), 1), Object(square(30, 20, 5), 1)]
    assert scored([([Object(one.mask, 0) for one in truth], truth)]).naming().tolist() == [1, -1, -1]
    pixels = np.array([[800, 50, 0], [0, 0, 0], [0, 0, 0]])
    assert match(pixels)[0] == 0


def test_masks_beyond_the_hundred_best_of_an_image_do_not_count():
    found = [Object(square(0, 0, 1), score=0.5)] * MOST + [Object(square(20, 20), score=0.1)]
    scores = scored([(found, [Object(square(20, 20), 0)])])
    assert (scores.beyond, scores.precision().ap50) == (1, 0)
