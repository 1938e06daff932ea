from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_proposals import clustered, reference_proposals, smooth_random
from torch import Tensor

from unsupseg_cli.clustering.principal import principal_direction
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.methods.interface import Inputs, Masks
from unsupseg_cli.methods.primaps.config import PseudolabelOptions
from unsupseg_cli.methods.primaps.pseudolabel import PrimapsLabeller, Proposals, propose
from unsupseg_cli.training.tokens import MemorySource

CONFIG = PseudolabelOptions()


def label(
    tokens: Sequence[Tensor], images: Sequence[np.ndarray] | None = None, **options: object
) -> list[Masks]:
    """Return the masks of views of tokens (h, w, C), whose images are given where the CRF reads them."""
    given = {} if images is None else {"images": lambda views: [images[view] for view in views]}
    labeller = PrimapsLabeller(PseudolabelOptions(**options), Inputs(MemorySource(tokens), **given))
    return labeller.label(range(len(tokens)))


def best_match_iou(ours: Tensor, theirs: Tensor) -> float:
    one, two = ours.flatten(1).float(), theirs.flatten(1).float()
    both = one @ two.T
    union = one.sum(1)[:, None] + two.sum(1)[None] - both
    return float((both / union).amax(1).mean())


@pytest.mark.parametrize("anchor", ["largest", "signed"])
@pytest.mark.parametrize("channels", [64, 420])  # fewer and more than there are cells
@pytest.mark.parametrize("make", [clustered, smooth_random])
def test_the_masks_agree_with_a_loop_over_images(make, channels, anchor) -> None:
    features = make(4, side=20, channels=channels)
    config = PseudolabelOptions(anchor=anchor)
    for ours, image in zip(propose(features, config), features, strict=True):
        masks, _, covered = reference_proposals(image, anchor=anchor)
        assert best_match_iou(ours.covers, torch.stack(masks) > 0) >= 0.95
        assert abs(int(ours.covers.sum()) - covered) <= 2


def test_a_signed_anchor_in_any_batch_is_the_same() -> None:
    config = PseudolabelOptions(anchor="signed")
    features = smooth_random(3, side=12, channels=32, seed=5)
    ragged = [features[0], features[1, :5], features[2, :, :7]]
    for mixed, image in zip(propose(ragged, config), ragged, strict=True):
        same(mixed, propose(image[None], config)[0])
    differs = [
        not torch.equal(one.covers, two.covers)
        for one, two in zip(propose(features, config), propose(features, CONFIG), strict=True)
    ]
    assert any(differs)


def test_every_cluster_becomes_one_mask() -> None:
    features = clustered(3, side=16, channels=64, clusters=4, noise=0.1, seed=3)
    for found in propose(features, CONFIG):
        assert 3 <= len(found) <= 4
        assert found.stop == "coverage"


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 999),
    cap=st.integers(1, 20),
    threshold=st.floats(0.05, 1.0),
)
def test_no_cell_is_covered_twice_and_the_stop_is_true(
    height: int, width: int, seed: int, cap: int, threshold: float
) -> None:
    features = torch.randn(2, height, width, 8, generator=torch.Generator().manual_seed(seed))
    config = PseudolabelOptions(max_masks=cap, threshold=threshold)
    for found in propose(features, config):
        assert int(found.covers.sum(0).max()) <= 1
        share = float(found.covers.sum()) / (height * width)
        assert (found.stop == "coverage") == (share >= 0.95 - 1e-6)
        assert len(found) <= cap
        if found.stop == "cap":
            assert len(found) == cap
        for mask, anchor in zip(found.covers, found.anchors, strict=True):
            assert bool(mask.flatten()[anchor])
        torch.testing.assert_close(found.log_probs.exp().sum(0), torch.ones(height, width))


def same(one: Proposals, two: Proposals) -> None:
    assert torch.equal(one.covers, two.covers)
    assert one.stop == two.stop
    torch.testing.assert_close(one.log_probs, two.log_probs, atol=1e-3, rtol=0)


def test_an_image_gets_the_same_masks_in_any_batch() -> None:
    features = clustered(4, side=12, channels=32, seed=5)
    together = propose(features, CONFIG)
    for index, shuffled in zip([2, 0, 3, 1], propose(features[[2, 0, 3, 1]], CONFIG), strict=True):
        same(together[index], shuffled)
    ragged = [features[0], features[1, :5], features[2, :, :7], features[3, :1, :1]]
    for mixed, image in zip(propose(ragged, CONFIG), ragged, strict=True):
        same(mixed, propose(image[None], CONFIG)[0])
        assert mixed.background.shape == image.shape[:2]


def test_the_masks_do_not_depend_on_the_sign_of_the_features() -> None:
    features = clustered(2, side=12, channels=32, seed=7)
    for one, two in zip(propose(features, CONFIG), propose(-features, CONFIG), strict=True):
        same(one, two)


def test_constant_features_are_one_mask() -> None:
    (found,) = propose(torch.full((1, 6, 5, 16), 0.7), CONFIG)
    assert len(found) == 1
    assert bool(found.covers.all())
    assert (found.log_probs.argmax(0) == 1).all()


def test_tokens_that_are_all_alike_are_compared_less_their_mean() -> None:
    """A large mean makes every cosine pass the threshold: without centring each image is one mask."""
    features = clustered(3, side=16, channels=64, clusters=4, noise=0.1, seed=3)
    alike = [view + 3 * torch.ones(64) for view in features]
    flat = torch.ones(16, 16, 64) + 1e-4 * torch.randn(16, 16, 64)

    def masks(tokens: list[Tensor], center: str) -> list[int]:
        labeller = PrimapsLabeller(PseudolabelOptions(crf=False, center=center), Inputs(MemorySource(tokens)))
        labeller.fit()
        return [len(made.area) for made in labeller.label(range(len(tokens)))]

    assert masks([*alike, flat], "none") == [1, 1, 1, 1]
    found = masks([*alike, flat], "auto")
    assert min(found[:3]) >= 3
    assert found[3] == 1
    assert masks(list(features), "auto") == masks(list(features), "none")


def test_zero_features_have_no_mask() -> None:
    (found,) = propose(torch.zeros(1, 4, 4, 8), CONFIG)
    assert (len(found), found.stop) == (0, "stall")
    assert found.log_probs.argmax(0).tolist() == [[0] * 4] * 4


def test_a_single_patch_is_a_mask() -> None:
    (found,) = propose(torch.randn(1, 1, 1, 8), CONFIG)
    assert len(found) == 1
    assert found.log_probs.argmax(0).tolist() == [[1]]


def test_nan_is_refused() -> None:
    features = torch.zeros(2, 3, 3, 4)
    features[1, 0, 0, 0] = torch.nan
    with pytest.raises(UnsupsegError, match="image 1"):
        propose(features, CONFIG)


def test_the_cap_stops_the_search() -> None:
    (found,) = propose(torch.randn(1, 8, 8, 128), PseudolabelOptions(max_masks=5))
    assert (len(found), found.stop) == (5, "cap")


def test_the_median_removes_a_lone_cell_and_the_gain_makes_masks_binary() -> None:
    features = torch.zeros(1, 9, 9, 2)
    features[..., 0] = 1
    features[0, 4, 4] = torch.tensor([0.0, 1.0])
    (found,) = propose(features, PseudolabelOptions(coverage=1.0))
    assert sorted(found.areas.tolist()) == [0, 81]
    assert sorted(found.covers.flatten(1).sum(1).tolist()) == [1, 80]
    assert set(found.masks.unique().tolist()) == {0.0, 1.0}


def test_the_crf_gives_masks_of_the_image_and_follows_its_edges() -> None:
    """Two flat halves: the masks of the grid end between two patches, those of the CRF at the image's edge."""
    tokens = torch.zeros(4, 4, 8)
    tokens[:, :2, 0], tokens[:, 2:, 1] = 1, 1
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :19], image[:, 19:] = (
        (200, 40, 40),
        (30, 60, 200),
    )  # the edge lies in the third column of patches
    (plain,) = label([tokens], crf=False)
    assert plain.labels.shape == (4, 4)
    (refined,) = label([tokens], [image])
    assert refined.labels.shape == (32, 32)
    assert (refined.labels[:, :19] == refined.labels[0, 0]).all()
    assert (refined.labels[:, 19:] == refined.labels[0, 31]).all()
    assert refined.labels[0, 0] != refined.labels[0, 31]
    assert refined.area.tolist() == np.bincount(refined.labels.ravel()).tolist()
    with pytest.raises(UnsupsegError, match="'images'"):
        label([tokens])


def test_soft_masks_give_the_label_map_again() -> None:
    views = list(clustered(3, side=10, channels=16, seed=3))
    for masks in label(views, crf=False):
        assert masks.soft is not None
        assert masks.soft.shape == (len(masks.area) + 1, 10, 10)
        assert (masks.soft.astype(np.float32).argmax(0) - 1 == masks.labels).mean() > 0.95
        np.testing.assert_allclose(np.exp(masks.soft.astype(np.float64)).sum(0), 1, atol=0.01)


def test_the_principal_direction_is_the_top_eigenvector() -> None:
    rows = torch.randn(3, 200, 48) * torch.linspace(1, 2, 48)
    covariance = rows.mT @ rows
    expected = torch.linalg.eigh(covariance.double()).eigenvectors[..., -1]
    cosine = (principal_direction(covariance) * expected).sum(1).abs()
    assert bool((cosine > 0.999).all())
    assert not principal_direction(torch.zeros(1, 5, 5)).isnan().any()
