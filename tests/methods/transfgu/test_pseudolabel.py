"""Concepts and maps: what is clustered together, which patches keep evidence, what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.interface import Inputs, RegionSet
from unsupseg_cli.methods.transfgu.config import PseudolabelOptions
from unsupseg_cli.methods.transfgu.maps import unpack_maps
from unsupseg_cli.methods.transfgu.pseudolabel import TransfguLabeller, highest, maps_of
from unsupseg_cli.models.backbone import load_backbone
from unsupseg_cli.models.class_row import class_row
from unsupseg_cli.training.tokens import MemorySource

BACKBONE = load_backbone("untrained")


def pictures(count):
    draw = torch.Generator().manual_seed(1)
    return [torch.rand(3, 64, 96 if number % 2 else 64, generator=draw) for number in range(count)]


def labeller(tags, classes, same_network=True, views=1, **options):
    draw = torch.Generator().manual_seed(0)
    cls = [torch.randn(192, generator=draw) for _ in tags]
    tags, zeros = np.array(tags), np.zeros(len(tags), np.int64)
    shown = pictures(views)
    regions = RegionSet(
        MemorySource([torch.zeros(1, 1, 192)] * len(tags), {"cls": cls}),
        zeros,
        zeros,
        tags,
        np.zeros((len(tags), 4)),
        same_network,
    )
    source = MemorySource([torch.zeros(4, image.shape[2] // 16, 192) for image in shown])
    network = SimpleNamespace(backbone=BACKBONE, pixels=lambda views: [shown[view] for view in views])
    inputs = Inputs(source, regions=regions, network=network, classes=classes, seed=0)
    return TransfguLabeller(PseudolabelOptions(**options), inputs)


def test_things_come_first_and_centres_are_means_of_tokens_as_they_are():
    part = labeller([0, 1, 0, 0], 2, things=1, stuff=1)
    part.fit()
    tokens = part.regions.rows("cls")
    expected = torch.stack([tokens[1], tokens[[0, 2, 3]].mean(0)])
    torch.testing.assert_close(part.state()["centroids"], expected)
    assert [sorted(rows) for rows in part.exemplars()] == [[1], [0, 2, 3]]


def test_one_of_the_two_counts_is_enough():
    part = labeller([0, 1, 0, 0, 1], 3, stuff=1)
    assert part.fit()["concepts"] == 3
    assert {*part.exemplars()[0], *part.exemplars()[1]} == {1, 4}


def test_of_more_regions_than_are_clustered_together_some_are_drawn_evenly(monkeypatch):
    monkeypatch.setattr("unsupseg_cli.methods.transfgu.pseudolabel._CLUSTERED", 4)
    part = labeller([1] * 10, 1)
    assert part.fit()["regions"] == 10
    drawn = part.regions.rows("cls")[[0, 3, 6, 9]]
    torch.testing.assert_close(part.concepts[0], drawn.mean(0))


@pytest.mark.parametrize("at_once", [4, 4096])
def test_exemplars_are_the_nearest_regions_nearest_first(monkeypatch, at_once):
    monkeypatch.setattr("unsupseg_cli.methods.interface._ROWS", at_once)
    part = labeller([1] * 30, 3)
    part.fit()
    distances = torch.cdist(part.concepts, part.regions.rows("cls"))
    for concept, rows in enumerate(part.exemplars()):
        assert rows == distances[concept].argsort()[:8].tolist()


@pytest.mark.parametrize("background", [False, True])
def test_each_mask_is_a_class_and_what_is_stored_is_what_was_found(background):
    part = labeller([1] * 12, 4, views=3, background=background)
    part.fit()
    for view, masks in enumerate(part.label([0, 1, 2])):
        assert masks.labels.shape == tuple(part.inputs.features.grids[view])
        classes = np.append(masks.group, -1)[masks.labels]
        stored = unpack_maps(masks.arrays, 4 - background)
        assert np.array_equal(classes, highest(stored, 0.1 if background else None).numpy())
        assert [int((masks.labels == mask).sum()) for mask in range(len(masks.group))] == masks.area.tolist()


def test_the_maps_of_a_view_are_its_own_whatever_is_labelled_with_it():
    part = labeller([1] * 12, 4, views=3)
    part.fit()
    together = part.label([0, 1, 2])
    for view in range(3):
        (alone,) = part.label([view])
        np.testing.assert_allclose(
            unpack_maps(alone.arrays, 4), unpack_maps(together[view].arrays, 4), atol=1e-4
        )


def test_the_patches_with_most_evidence_hold_the_share_that_was_asked_for():
    with torch.no_grad():
        row = class_row(BACKBONE, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    concepts = torch.randn(3, 192, generator=torch.Generator().manual_seed(1))
    attention, open_to, whole = maps_of(row, concepts, 1.0, mass=1.0)
    _, _, kept = maps_of(row, concepts, 0.5, mass=0.8)
    assert float(attention.amax()) == 1
    assert bool((whole[~open_to] == 0).all())
    share = 2 * kept.sum(-1) / whole.sum(-1)
    assert bool((share >= 0.8 - 1e-4).all())
    lowest = torch.where(kept > 0, kept, torch.inf).amin(-1)
    assert bool((2 * kept.sum(-1) - 2 * lowest < 0.8 * whole.sum(-1) + 1e-4).all())  # none too many
    dropped = torch.where((kept == 0), whole, 0).amax(-1)
    assert bool((dropped <= 2 * lowest + 1e-6).all())


def test_a_patch_that_all_concepts_are_against_goes_to_the_one_least_against_it():
    row = class_row(BACKBONE, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    concepts = torch.randn(3, 192, generator=torch.Generator().manual_seed(1))
    gradients = row.gradients(concepts)
    _, open_to, _ = maps_of(row, concepts, 1.0, mass=0.8)
    _, filled, _ = maps_of(row, concepts, 1.0, mass=0.8, everywhere=True)
    closed = ~open_to.any(1)
    assert bool(closed.any())
    assert bool(filled.any(1).all())
    assert torch.equal(filled.float().argmax(1)[closed], gradients.argmin(1)[closed])
    assert torch.equal(filled.movedim(1, -1)[~closed], open_to.movedim(1, -1)[~closed])


def test_a_patch_where_no_concept_may_be_has_no_class_or_the_background():
    maps = torch.tensor([[[0.0, 0.4]], [[0.0, 0.6]]])
    assert highest(maps).tolist() == [[-1, 1]]
    assert highest(maps, 0.1).tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("tags", "classes", "options", "message"),
    [
        ([1, 0] * 5, 5, {"things": 2, "stuff": 2}, "2 things, 2 stuff are not the 5 classes"),
        ([1, 0] * 5, 4, {"things": 2, "stuff": 2, "background": True}, "2 stuff and the background"),
        ([1, 0] * 5, 3, {"things": 5}, "are not the 3 classes"),
        ([1] * 3, 5, {}, "3 regions for 5 concepts"),
        (
            [1] * 5,
            4,
            {"things": 2, "stuff": 2},
            "0 background regions for 2 concepts; lower --background-share",
        ),
        ([1] * 5, 1, {"background": True}, "no concept beside the background"),
    ],
)
def test_counts_and_regions_that_cannot_serve_are_refused(tags, classes, options, message):
    with pytest.raises(UsageError, match=message):
        labeller(tags, classes, **options).fit()


def test_regions_of_another_network_are_refused():
    with pytest.raises(UsageError, match="another backbone, weights, layer or model"):
        labeller([1] * 5, 3, same_network=False)
