"""Guidance: sums to one, aligns levels by what they hold, and refuses what is no pyramid."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unsupseg_cli.clustering.prototypes import temperature
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.data.views import pyramid
from unsupseg_cli.methods.context.config import PseudolabelOptions
from unsupseg_cli.methods.context.guidance import align, guide, pack, spread, unpack
from unsupseg_cli.methods.context.pseudolabel import ContextLabeller
from unsupseg_cli.methods.interface import Inputs, RegionSet
from unsupseg_cli.models.boxes import place_maps
from unsupseg_cli.training.tokens import MemorySource

SIZE = 48  # of an image in pixels


def labeller(count=4, levels=1, grid=(6, 6), reporter=None, noise=0.1, classes=3, tags=None, **options):
    """Images of two kinds, of which each has a left half of its own and a right half of both, and their pyramid."""
    draw = torch.Generator().manual_seed(0)
    kinds = F.normalize(torch.randn(3, 16, generator=draw), dim=-1)

    def look(view, box, grid=(6, 6)):
        left, _, right, _ = box
        at = left + (torch.arange(grid[1]) + 0.5) / grid[1] * (right - left)
        columns = torch.where(at < SIZE / 2, view % 2, 2)
        tokens = kinds[columns].expand(*grid, 16)
        return tokens + noise * torch.randn(*grid, 16, generator=draw)

    regions = pyramid(SIZE, SIZE, levels, 0.25)
    boxes = np.tile(regions.boxes, (count, 1)).astype(float)
    of_view = np.repeat(np.arange(count), len(regions.boxes))
    crops = [look(view, box) for view, box in zip(of_view, boxes, strict=True)]
    tag = np.tile(regions.tag, count) if tags is None else tags
    source = MemorySource(crops, {"patch": crops, "cls": [crop.mean((0, 1)) for crop in crops]})
    found = RegionSet(source, of_view, of_view, tag, boxes, shown=lambda rows: boxes[rows] / SIZE)
    tokens = MemorySource([look(view, (0, 0, SIZE, SIZE), grid) for view in range(count)])
    return ContextLabeller(
        PseudolabelOptions(restarts=2, **options),
        Inputs(tokens, reporter=reporter, regions=found, classes=classes, seed=0),
    )


def test_the_temperature_gives_the_confidence_asked_for_whatever_the_spread_of_cosines():
    cosines = torch.rand(500, 6, generator=torch.Generator().manual_seed(0))
    for spread_ in (1.0, 0.02):
        found = temperature(spread_ * cosines, 0.7)
        assert float((spread_ * cosines / found).softmax(1).amax(1).mean()) == pytest.approx(0.7, abs=1e-3)


def test_clusters_are_aligned_by_what_their_regions_hold():
    holistic = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    content = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(align(holistic, content), torch.tensor([[0.75, 0.25, 0], [0, 0, 1.0]]))


def test_a_cell_gets_the_mean_of_what_covers_it():
    weights = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 0.0]]])
    maps = spread(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), weights)
    torch.testing.assert_close(maps[0, 0], torch.tensor([1.0, 0.5, 0.0, 0.5]))


def test_maps_of_regions_come_to_their_places():
    maps = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 4.0]]]])
    placed, there = place_maps(maps, np.array([[0, 0, 0.5, 1.0], [0.5, 0, 1.0, 1.0]]), (1, 4))
    torch.testing.assert_close((placed * there).sum(0)[0, 0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert there[:, 0, 0].tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_context_turns_a_patch_that_was_undecided():
    patches = torch.tensor([0.5, 0.5]).view(2, 1, 1)
    priors = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1)
    shares = torch.tensor([0.5, 0.5])
    torch.testing.assert_close(guide(patches, priors, shares, 1.0).flatten(), torch.tensor([0.9, 0.1]))
    torch.testing.assert_close(guide(patches, priors[:0], shares, 0.0), patches)


def test_guidance_comes_back_and_sums_to_one():
    guidance = torch.randn(30, 4, 5, generator=torch.Generator().manual_seed(0)).softmax(0)
    stored = unpack(pack(guidance, top=30), 30)
    torch.testing.assert_close(stored, guidance, rtol=2e-3, atol=1e-6)
    few = unpack(pack(guidance, top=3), 30)
    torch.testing.assert_close(few.sum(0), torch.ones(4, 5))
    assert torch.equal(few.argmax(0), guidance.argmax(0))


@pytest.mark.parametrize("options", [{}, {"views": 0.0}, {"holistic": 0.0}, {"views": 0.0, "holistic": 0.0}])
def test_guidance_of_a_view_sums_to_one_and_names_its_halves(options):
    part = labeller(**options)
    part.fit()
    halves = set()
    for view, masks in enumerate(part.label(range(4))):
        guidance = unpack(masks.arrays, 3)
        torch.testing.assert_close(guidance.sum(0), torch.ones(12, 12))
        assert np.array_equal(masks.group[masks.labels], guidance.argmax(0).numpy())
        left, right = guidance.argmax(0)[:, 0], guidance.argmax(0)[:, -1]
        assert len(left.unique()) == len(right.unique()) == 1
        halves.add((view % 2, int(left[0]), int(right[0])))
    assert len(halves) == 2  # the halves of a kind are of the same classes in all its views
    assert len({right for _, _, right in halves}) == 1


def test_context_helps_where_patches_are_noisy():
    """Of noisy patches more get the class of their half where the views say which halves there are."""
    right = []
    for options in ({"holistic": 0.0, "views": 0.0}, {"holistic": 1.0, "views": 1.0}):
        part = labeller(count=16, noise=0.35, **options)
        part.fit()
        labels = torch.stack([part.guidance(view).argmax(0) for view in range(16)])
        halves = labels.view(8, 2, 12, 2, 6).permute(1, 3, 0, 2, 4).reshape(4, -1)
        right.append(sum(float((half == half.mode().values).float().mean()) for half in halves) / 4)
    assert right[1] > right[0] + 0.02


class Said(Silent):
    def __init__(self):
        self.lines = []

    def info(self, message):
        self.lines.append(message)


def test_one_image_is_enough_and_said():
    said = Said()
    part = labeller(count=1, classes=2, reporter=said)
    assert part.fit()["holistic_clusters"] == [1, 1]
    (masks,) = part.label([0])
    assert set(masks.group.tolist()) == {0, 1}
    assert any("one image" in line for line in said.lines)


def test_images_too_small_for_the_pyramid_are_counted_and_labelled():
    said = Said()
    part = labeller(levels=2, grid=(2, 2), reporter=said)
    assert part.fit()["small_images"] == 4
    assert any("4 of 4 images are so small" in line and "--levels" in line for line in said.lines)
    torch.testing.assert_close(part.guidance(0).sum(0), torch.ones(4, 4))
    boxes = pyramid(2, 1, 2, 0.25).boxes  # fewer pixels than parts
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_exemplars_hold_most_of_their_class():
    part = labeller()
    part.fit()
    for number, rows in enumerate(part.exemplars()):
        assert part.content[rows[0], number] == part.content[:, number].max()


def test_what_is_no_pyramid_is_refused():
    with pytest.raises(UsageError, match="no pyramid"):
        labeller(tags=np.zeros(20, np.int64))


def test_views_without_regions_are_refused():
    part = labeller()
    tokens = MemorySource([torch.zeros(6, 6, 16)] * 5)
    inputs = Inputs(tokens, regions=part.regions, classes=3, seed=0)
    with pytest.raises(UsageError, match="1 of 5 views have no pyramid"):
        ContextLabeller(PseudolabelOptions(), inputs)
