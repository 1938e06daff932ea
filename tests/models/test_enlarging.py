"""Scores of a grid of cells brought to pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unsupseg_cli.models import dense
from unsupseg_cli.models.dense import ScoreMap
from unsupseg_cli.models.linear_model import LinearModel

CLASSES = 5


@pytest.fixture(scope="module")
def model():
    head = {"type": "linear", "classes": CLASSES, "dim": CLASSES}
    tensors = {"class_head.weight": torch.eye(CLASSES), "class_head.bias": torch.zeros(CLASSES)}
    return LinearModel(None, [], head, tensors)


def score_map(scores):
    return ScoreMap(scores, torch.ones(scores.shape[1:]))


def interpolated(scores, height, width):
    return F.interpolate(scores[None], (height, width), mode="bilinear", align_corners=False)[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 70), st.integers(1, 70), st.integers(0, 99))
def test_log_probs_are_of_scores_interpolated_bilinearly(model, rows, columns, height, width, seed):
    scores = torch.randn(CLASSES, rows, columns, generator=torch.Generator().manual_seed(seed))
    found = model.log_probs(score_map(scores), height, width)
    expected = interpolated(scores, height, width).log_softmax(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_score_that_rules_a_class_out_does_so_where_it_lies_alone(model):
    scores = torch.zeros(CLASSES, 4, 4)
    scores[2, 0, 0] = -torch.inf
    found = model.log_probs(score_map(scores), 32, 32)
    expected = interpolated(scores, 32, 32).log_softmax(0)
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found[:, 12:, 12:].isfinite().all()  # where that cell has no share


def test_classes_do_not_depend_on_the_bands_they_are_found_in(model, monkeypatch):
    scores = torch.randn(CLASSES, 6, 7, generator=torch.Generator().manual_seed(0))
    whole = model.labels(score_map(scores), 64, 80)
    monkeypatch.setattr(dense, "_BAND_CELLS", CLASSES * 80 * 5)
    assert np.mean(model.labels(score_map(scores), 64, 80) == whole) > 0.999
