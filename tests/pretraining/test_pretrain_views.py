"""Random crops: geometry, correspondence and colour."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unsupseg_cli.pretraining.views import (
    Crops,
    change_colours,
    corresponding_points,
    crop_pixels,
    draw_colours,
    draw_crops,
    random_boxes,
    sample_crops,
    tokens_at,
    whole_crops,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.3, 3.3), st.floats(0.05, 0.9), st.integers(0, 1000))
def test_boxes_lie_in_the_image_and_keep_area_and_shape(aspect, low, seed):
    ratio = torch.full((64,), aspect)
    box = random_boxes(ratio, (low, 1.0), seeded(seed))
    assert (box >= -1e-6).all()
    assert (box <= 1 + 1e-6).all()
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    assert (width * height <= 1 + 1e-5).all()
    inside = (width < 0.999) & (height < 0.999)  # not clamped at a border
    assert (width * height >= low - 1e-4)[inside].all()
    pixel_shape = (width * aspect / height)[inside]
    assert ((pixel_shape > 0.74) & (pixel_shape < 1.35)).all()


def test_crop_of_the_whole_image_is_the_image_and_flip_mirrors_it():
    images = torch.rand(2, 3, 16, 16)
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    out = sample_crops(images, box, torch.tensor([False, True]), 16)
    assert torch.allclose(out[0], images[0], atol=1e-5)
    assert torch.allclose(out[1], images[1].flip(-1), atol=1e-5)


def test_crop_of_a_quadrant_is_that_quadrant():
    images = torch.rand(1, 3, 16, 16)
    out = sample_crops(images, torch.tensor([[0.5, 0.0, 1.0, 0.5]]), torch.tensor([False]), 8)
    assert torch.allclose(out[0], images[0, :, :8, 8:], atol=1e-5)


def test_corresponding_points_show_the_same_place():
    axis = (torch.arange(64) + 0.5) / 64
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    image = torch.stack([x, y, torch.zeros_like(x)])[None].repeat(8, 1, 1, 1)  # colour says where
    generator = seeded(3)
    crops = [draw_crops(torch.ones(8), (0.4, 1.0), generator) for _ in range(2)]
    assert crops[0].flip.logical_xor(crops[1].flip).any()  # the mirrored case occurs
    at_a, at_b, valid = corresponding_points(*crops, 10, generator)
    pixels = [sample_crops(image, crop.box, crop.flip, 48).permute(0, 2, 3, 1) for crop in crops]
    seen = [tokens_at(sampled, at) for sampled, at in zip(pixels, (at_a, at_b), strict=True)]
    assert valid.any()
    assert torch.allclose(seen[0][valid], seen[1][valid], atol=0.02)


def test_crops_without_overlap_are_marked():
    flip, colours = torch.tensor([False]), draw_colours(1, 0.0, 0.0, 0.0, seeded())
    a = Crops(torch.tensor([[0.0, 0.0, 0.4, 0.4]]), flip, colours)
    b = Crops(torch.tensor([[0.5, 0.5, 0.9, 0.9]]), flip, colours)
    assert not corresponding_points(a, b, 2, seeded())[2].any()


def test_colour_jitter_keeps_range_and_does_nothing_when_off():
    x = torch.rand(32, 3, 8, 8)

    def jitter(*strengths):
        return change_colours(x, draw_colours(32, *strengths, seeded()))

    out = jitter(0.8, 0.5, 0.5)
    assert out.min() >= 0
    assert out.max() <= 1
    assert not torch.allclose(out, x)
    assert torch.allclose(jitter(0.0, 0.0, 0.0), x, atol=1e-5)
    gray = jitter(0.0, 1.0, 0.0)
    assert torch.allclose(gray[:, 0], gray[:, 2])


def test_same_generator_gives_same_crops_and_sizes_are_as_asked():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    aspect = torch.tensor([0.5, 1.0, 1.5, 2.0])
    one, two, other = (
        crop_pixels(images, draw_crops(aspect, (0.2, 1.0), seeded(seed)), 48) for seed in (7, 7, 8)
    )
    assert one.shape == (4, 3, 48, 48)  # enlarged beyond the image
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_crops_of_some_images_are_those_of_all():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    crops = draw_crops(torch.ones(4), (0.2, 1.0), seeded())
    whole = crop_pixels(images, crops, 24)
    torch.testing.assert_close(crop_pixels(images[[2, 0]], crops.of([2, 0]), 24), whole[[2, 0]])


def test_whole_crops_are_normalised():
    black = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    assert whole_crops(black, 8)[0, 0, 0, 0].item() == pytest.approx(-0.485 / 0.229, abs=1e-4)
