import numpy as np
import torch

from unsupseg_cli.methods.interface import Inputs
from unsupseg_cli.methods.maskdistill.config import MasksOptions
from unsupseg_cli.methods.maskdistill.masks import ObjectMasks, find_objects
from unsupseg_cli.training.tokens import MemorySource

ONE_HEAD = {"heads": 1, "head_size": 2, "center": "none", "threshold": 0}


def scene(rows):
    """Keys (h, w, 2) and a CLS query: 'a' agrees with the query, 'b' half as much, '.' opposes both."""
    values = {"a": (2.0, 0.0), "b": (1.0, 0.0), ".": (-1.0, 0.1)}
    return torch.tensor([[values[cell] for cell in row] for row in rows]), torch.tensor([1.0, 0.0])


def masks_of(rows, **options):
    keys, query = scene(rows)
    found = find_objects([keys], [query], MasksOptions(**ONE_HEAD | options))[0]
    return [["".join(".#"[cell] for cell in row) for row in mask.astype(int)] for mask in found.masks]


def test_the_mask_is_the_component_of_the_source_over_edges_only():
    assert masks_of(["aab.", "...b", "b..."]) == [["###.", "....", "...."]]


def test_each_further_object_is_sought_in_what_is_left():
    found = masks_of(["aab.", "...b", "b..."], objects=3)
    assert found[0] == ["###.", "....", "...."]
    assert sorted(found[1:]) == [["....", "...#", "...."], ["....", "....", "#..."]]


def test_keys_of_zero_are_no_object_and_a_mask_of_the_whole_view_is_counted():
    whole, query = scene(["aa", "ba"])
    features = MemorySource(
        [whole, torch.zeros(2, 2, 2)], {"key": [whole, 0 * whole], "cls_query": [query, query]}
    )
    labeller = ObjectMasks(MasksOptions(**ONE_HEAD), Inputs(features))
    masks = labeller.label([0, 1])
    assert [mask.area.tolist() for mask in masks] == [[4], []]
    assert labeller.figures() == {"no_object": 1, "whole_view": 1}


def test_a_batch_gives_what_its_images_give_alone():
    generator = torch.Generator().manual_seed(0)
    keys = [torch.randn(h, w, 4, generator=generator) for h, w in ((5, 9), (7, 3), (2, 2), (8, 8))]
    queries = [torch.randn(4, generator=generator) for _ in keys]
    for order in ("affinity", "mass"):
        for center in ("none", "image"):
            options = MasksOptions(heads=1, head_size=2, objects=3, order=order, center=center)
            for key, query, batched in zip(keys, queries, find_objects(keys, queries, options), strict=True):
                alone = find_objects([key], [query], options)[0]
                assert np.array_equal(alone.masks, batched.masks)
                assert np.allclose(alone.scores, batched.scores)


def test_a_threshold_leaves_out_what_agrees_less():
    keys, query = torch.tensor([[(1.0, 0.0), (1.0, 1.0), (0.3, 1.0)]]), torch.tensor([1.0, 0.0])
    for threshold, cells in ((0, 3), (0.7, 2), (0.95, 1)):
        options = MasksOptions(**ONE_HEAD | {"threshold": threshold, "top": 0.3})
        (mask,) = find_objects([keys], [query], options)[0].masks
        assert mask.sum() == cells


def test_less_the_mean_of_their_image_keys_that_all_agree_tell_an_object_apart():
    keys = torch.tensor([[(3.0, 0.5), (3.0, 0.5), (3.0, -0.5), (3.0, -0.5)]])
    query = torch.tensor([0.0, 1.0])
    found = {
        center: find_objects([keys], [query], MasksOptions(**ONE_HEAD | {"center": center}))[0]
        .masks[0]
        .tolist()
        for center in ("none", "image")
    }
    assert found == {"none": [[True] * 4], "image": [[True, True, False, False]]}
