"""MaskDistill's clusters: what a mask's class comes from, and what becomes of masks that have none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unsupseg_cli.clustering.principal import whitened
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.data.masks import masked_means
from unsupseg_cli.methods.interface import Inputs, MaskSet, RegionSet
from unsupseg_cli.methods.maskdistill.clusters import MaskClusters
from unsupseg_cli.methods.maskdistill.config import ClustersOptions
from unsupseg_cli.training.tokens import MemorySource


class Rows(SimpleNamespace):
    """Features of regions that lie in memory."""

    def array(self, name, rows):
        return [self.tokens[row] for row in rows]


def regions_of(tokens, parent, tag, of_masks=True):
    parent, tag = np.array(parent), np.array(tag)
    rows = (lambda view: np.flatnonzero(parent == view)) if of_masks else None
    box = np.zeros((len(parent), 4))
    return RegionSet(Rows(tokens=torch.tensor(tokens)), parent, parent, tag, box, of_masks=rows)


DIRECTIONS = [[1.0, 0.1], [0.1, 1.0], [0.9, 0.0], [0.0, 0.8]]
LAYERS = [np.array([[0, 0, -1], [1, 1, 2]], np.int16), np.array([[0, 1, 1], [-1, -1, -1]], np.int16)]

RIGHT, UP, FAR = [1.0, 0.1], [0.1, 1.0], [-1.0, -1.0]
TOKENS = [
    torch.tensor([[RIGHT, RIGHT, FAR], [UP, UP, FAR]]),
    torch.tensor([[UP, RIGHT, RIGHT], [FAR, FAR, FAR]]),
]


def labeller_of(regions, classes=3, support=None, reporter=None, **options):
    options = {"token": "cls", "whiten": True, **options}
    masks = MaskSet(
        LAYERS,
        [np.full(3, -1), np.full(2, -1)],
        {},
        lambda view: np.stack([LAYERS[view] == number for number in range(LAYERS[view].max() + 1)]),
        boxes=lambda view: np.zeros((LAYERS[view].max() + 1, 4)),
        scores=[np.array([0.5, 0.6, 0.7], np.float32), np.array([0.8, 0.9], np.float32)],
    )
    inputs = Inputs(
        MemorySource(TOKENS),
        classes=classes,
        seed=0,
        masks=masks,
        regions=regions,
        support=support,
        reporter=reporter,
    )
    return MaskClusters(ClustersOptions(**options), inputs)


def test_masks_whose_crops_are_alike_share_a_class_and_class_0_is_the_background():
    """Mask 2 of view 0 has no crop: it has no class."""
    labeller = labeller_of(regions_of(DIRECTIONS, parent=[0, 0, 1, 1], tag=[1, 0, 0, 1]))
    labeller.fit()
    assert labeller.sizes().tolist() == [[2, 3], [2, 3]]
    first, second = labeller.label([0, 1])
    assert first.group[1] == second.group[0]
    assert first.group[0] == second.group[1] != first.group[1]
    assert {*first.group[:2].tolist()} == {1, 2}
    assert first.group[2] == -1
    np.testing.assert_array_equal(first.labels[0], LAYERS[0])
    assert first.score.tolist() == pytest.approx([0.5, 0.6, 0.7])
    assert first.area.tolist() == [2, 2, 1]
    nearest = labeller.exemplars()
    assert nearest[0] == []
    assert {*nearest[first.group[1]]} == {0, 2}
    assert {*nearest[first.group[0]]} == {1, 3}


def test_without_a_background_classes_begin_at_0():
    labeller = labeller_of(
        regions_of(DIRECTIONS, parent=[0, 0, 1, 1], tag=[1, 0, 0, 1]), classes=2, background=False
    )
    labeller.fit()
    assert {*labeller.label([0])[0].group[:2].tolist()} == {0, 1}
    assert len(labeller.exemplars()) == 2


def test_a_support_set_takes_part_in_clustering_and_in_spread():
    regions = regions_of(DIRECTIONS[:1], parent=[0], tag=[0])
    with pytest.raises(UsageError, match="There is 1 mask for 2 clusters"):
        labeller_of(regions).fit()
    labeller = labeller_of(regions, support=regions_of(DIRECTIONS[1:], [-1] * 3, [-1] * 3))
    assert labeller.fit() == {"mask_classes": 2, "clustered": 1, "support": 3, "single_clusters": 0}
    assert labeller.label([0])[0].group[0] in (1, 2)


def test_without_crops_the_tokens_under_a_mask_stand_for_it():
    labeller = labeller_of(None, classes=4, token="masked", whiten=False)
    labeller.fit()
    first, second = labeller.label([0, 1])
    assert first.group[0] == second.group[1]
    assert first.group[1] == second.group[0]
    assert len({*first.group.tolist()}) == 3
    shown = labeller.exemplar_regions()
    assert {(shown.view[row], shown.tag[row]) for row in labeller.exemplars()[first.group[0]]} == {
        (0, 0),
        (1, 1),
    }


def test_a_cell_counts_as_much_as_the_mask_covers_of_it():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    masks = np.zeros((2, 4, 8), bool)
    masks[0, :, :5] = True
    np.testing.assert_allclose(masked_means(tokens, masks), [[0.8, 0.2], [0, 0]], atol=1e-6)


def test_clusters_of_one_mask_are_told():
    said = []
    reporter = SimpleNamespace(warn=said.append, info=said.append, track=Silent().track)
    regions = regions_of([*DIRECTIONS, [-1.0, -1.0]], parent=[0, 0, 1, 1, 0], tag=[1, 0, 0, 1, 2])
    assert labeller_of(regions, classes=4, reporter=reporter).fit()["single_clusters"] == 1
    assert any("1 of 3 clusters have at most one mask" in text for text in said)


def test_whitening_gives_every_channel_the_same_weight():
    tokens = torch.tensor([[100.0, 1.0, 5.0], [-100.0, -1.0, 5.0]])
    np.testing.assert_allclose(whitened(tokens)[0, :2] / whitened(tokens)[0, 0], [1, 1], rtol=1e-6)


def test_regions_of_other_masks_and_broken_tokens_are_refused():
    with pytest.raises(UsageError, match=r"not the crops of these masks.*extract --regions masks"):
        labeller_of(regions_of(DIRECTIONS, [0] * 4, [0] * 4, of_masks=False))
    with pytest.raises(UnsupsegError, match="NaN"):
        labeller_of(regions_of([[float("nan"), 1.0]] * 4, [0] * 4, [0] * 4)).fit()
    with pytest.raises(UsageError, match="no cluster beside the background"):
        labeller_of(regions_of(DIRECTIONS, [0] * 4, [0] * 4), classes=1).fit()
